"""Muon for the matrices of the body, AdamW for all other parameters.

Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), as torch.optim.Muon implements it. The learning
rate of a matrix is scaled to AdamW's root mean square (Liu et al. 2025, arXiv 2502.16982, section 2.2), so that one
`optim.lr` serves both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grouped_lm.config import OptimConfig, setting
from grouped_lm.distributed.process_group import is_sharded
from grouped_lm.errors import ConfigError
from grouped_lm.optim.adamw import decay_groups


@dataclass(kw_only=True, slots=True)
class MuonConfig(OptimConfig):
    """Muon for the matrices of the body, AdamW for embeddings, head, norms and biases."""

    name: str = setting("muon", choices=("muon",))
    momentum: float = setting(0.95, 0, 0.999999)
    """Momentum of Muon."""
    ns_steps: int = setting(5, 1, 99, unit="iterations")
    """Newton-Schulz iterations that make an update orthogonal."""
    matrix_lr_ratio: float = setting(1.0, 0, 1e6, open_low=True)
    """Learning rate of the matrices as a share of `lr`."""
    weight_decay: float = setting(0.1, 0, 1e6)
    """Of all matrices. Norms, biases, scales and shifts have none."""
    beta1: float = setting(0.9, 0, 0.999999)
    """AdamW's decay of the average of gradients."""
    beta2: float = setting(0.99, 0, 0.999999)
    """AdamW's decay of the average of squared gradients."""
    eps: float = setting(1e-6, 0, 1, open_low=True)
    """AdamW adds it to the root of the second average."""


class MuonAdamW(torch.optim.Optimizer):
    """Torch's Muon for some matrices, with `lr_factor` times the learning rate, and torch's AdamW for the others."""

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW, lr_factor: float) -> None:
        super().__init__([*adamw.param_groups, *muon.param_groups], {})
        self._muon, self._adamw = muon, adamw
        self.param_groups[-1]["lr_factor"] = lr_factor

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters, or none where `found_inf` is 1."""
        skip = getattr(self, "found_inf", None)
        *other_groups, muon_group = self.param_groups
        self._adamw.state = self._muon.state = self.state  # set each time: load_state_dict replaces state and groups
        self._adamw.param_groups, self._adamw.found_inf = other_groups, skip  # type: ignore[attr-defined]
        loss = self._adamw.step(closure)
        for matrix in muon_group["params"]:
            if matrix.grad is not None:
                self._muon.param_groups = [muon_group | {"params": [matrix]}]
                self._step_matrix(matrix, skip)
        return loss

    def _step_matrix(self, matrix: Tensor, skip: Tensor | None) -> None:
        """Let Muon update one matrix. `skip` stays on the device, so that the host does not wait for it."""
        if skip is None:
            self._muon.step()
            return
        grad, before = matrix.grad, matrix.clone()
        assert grad is not None
        buffer = self.state[matrix].get("momentum_buffer", torch.zeros_like(matrix))
        matrix.grad = torch.where(skip > 0, buffer, grad)  # a buffer that is averaged with itself does not change
        self._muon.step()
        matrix.copy_(torch.where(skip > 0, before, matrix))
        matrix.grad = grad


def build_muon(config: MuonConfig, model: nn.Module) -> MuonAdamW:
    """Build the optimizer of a `LanguageModel`: Muon updates the matrices of its blocks."""
    blocks = model.get_submodule("body.h")
    matrices = [parameter for parameter in blocks.parameters() if parameter.ndim == 2]
    if any(map(is_sharded, matrices)):
        raise ConfigError(
            "optim=muon needs whole matrices, and train.strategy=fsdp2 cuts them: take ddp, or optim=adamw"
        )
    options: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum}
    muon = torch.optim.Muon(matrices, **options, ns_steps=config.ns_steps, adjust_lr_fn="match_rms_adamw")
    groups, betas = decay_groups(model, config.weight_decay, matrices), (config.beta1, config.beta2)
    adamw = torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)
    return MuonAdamW(muon, adamw, config.matrix_lr_ratio)
