"""Train the mixture of a network and an n-gram model, beside the network and without a change to it.

Letters: B windows, T tokens of a window.
"""

from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grouped_lm.config import IGNORE_INDEX, Config
from grouped_lm.data.loader import ValidWindows
from grouped_lm.data.token_file import TokenFile
from grouped_lm.distributed.process_group import ProcessGroup
from grouped_lm.errors import CheckpointError, DivergedError
from grouped_lm.models.lm import LanguageModel
from grouped_lm.prior.head import build_mixed
from grouped_lm.prior.mixture import fit_mixture_weight
from grouped_lm.runs.load import load_prior_state, prior_state
from grouped_lm.system.phases import phase
from grouped_lm.system.runtime import autocast

WINDOWS = 12
"""The gate sees one of so many windows: a step of the default head at width 128 takes 1.1 times as long then."""


class PriorTraining:
    """The gate and the one weight of a run with `prior=kneser_ney`, and what trains them.

    The `model` is on `device`. `train` is the training text, cut by `counted_text`.
    """

    def __init__(
        self, config: Config, model: LanguageModel, train: TokenFile, device: torch.device, process_group: ProcessGroup
    ) -> None:
        self.config, self.device, self.process_group = config, device, process_group
        with phase("counting n-grams"):
            self.mixed = build_mixed(model, config, train)
        self.head = self.mixed.head
        self.held_out = train.rest()
        self.fitted_step = -1
        self.optimizer = None
        if self.head.gate is not None:
            self.head.gate.to(device)
            options: dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}
            self.optimizer = torch.optim.AdamW(self.head.gate.parameters(), lr=config.prior.lr, **options)

    def train_on(self, input_ids: Tensor, targets: Tensor, index: int, lr_share: float) -> None:
        """Train the gate on some windows of micro-batch `index`, (B, T) each, which the network has not learnt yet.

        The learning rate is `lr_share` of its peak. States and losses are those of evaluation: without dropout.
        """
        n_windows = len(input_ids)
        taken = (index + 1) * n_windows // WINDOWS - index * n_windows // WINDOWS
        if self.optimizer is None or not taken:
            return
        rows = slice(taken)
        self.mixed.eval()
        with autocast(self.device, self.config.train.dtype):
            with torch.no_grad():
                hidden = self.mixed.hidden(input_ids[rows])
            loss = self.head.gate_loss(hidden.flatten(0, 1), targets[rows].flatten())
        self.mixed.train()
        loss.backward()
        gradients = [p.grad for p in self.optimizer.param_groups[0]["params"]]
        if self.process_group.size > 1:
            total = self.process_group.sum(torch.cat([g.flatten() for g in gradients])) / self.process_group.size
            for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        self.optimizer.param_groups[0]["lr"] = self.config.prior.lr * lr_share
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def fit_weight(self, step: int) -> None:
        """Fit the one weight on the held-out text with the weights of now, unless that was done at this step.

        Raises:
            DivergedError: the network's loss is not finite there. The one weight is NaN then.
        """
        if len(self.held_out) < 2 or self.fitted_step == step:
            return
        train, losses = self.config.train, []
        batch_size = train.eval_batch_size or train.micro_batch_size
        self.mixed.eval()
        for input_ids, targets in ValidWindows(self.held_out, self.config.model.block_size, batch_size):
            with autocast(self.device, train.dtype):
                loss: Any = self.mixed(input_ids.to(self.device), targets.to(self.device), reduction="none")
            both = torch.stack([loss.head_nll, loss.prior_nll]).double().cpu()
            losses.append(both[:, targets != IGNORE_INDEX].numpy())
        self.mixed.train()
        own, counts = np.concatenate(losses, axis=1)
        if not np.isfinite(own).all():
            self.head.weight.fill_(float("nan"))
            raise DivergedError(
                f"diverged at step {step}: the loss of the text of prior.held_out_tokens is not finite; "
                "a lower optim.lr may help"
            )
        self.head.weight.fill_(fit_mixture_weight(-own, -counts))
        self.fitted_step = step

    def pack(self) -> bytes:
        """Return the state for a checkpoint."""
        tensors = prior_state(self.head) | {"fitted_step": torch.tensor(self.fitted_step)}
        if self.optimizer is not None:
            for place, state in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optim/{place}/{key}": value for key, value in state.items()}
        return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})

    def unpack(self, data: bytes | None) -> None:
        """Load the state of a checkpoint.

        Raises:
            CheckpointError: there is none, or it is that of another mixture.
        """
        try:
            tensors = load(data or b"")
            load_prior_state(self.head, tensors)
            self.fitted_step = int(tensors["fitted_step"])
            if self.optimizer is not None:
                saved = self.optimizer.state_dict()
                saved["state"] = {}
                for name in sorted(tensors):
                    kind, _, rest = name.partition("/")
                    if kind == "optim":
                        place, key = rest.split("/")
                        saved["state"].setdefault(int(place), {})[key] = tensors[name]
                self.optimizer.load_state_dict(saved)
        except (KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"the checkpoint's state of the prior cannot be read: {error}") from error
