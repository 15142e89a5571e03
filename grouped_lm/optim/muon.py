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

from grouped_lm.config import OptimConfig, check_choice, check_range
from grouped_lm.distributed.process_group import is_sharded
from grouped_lm.errors import ConfigError
from grouped_lm.optim.adamw import decay_groups


@dataclass(kw_only=True, slots=True)
class MuonConfig(OptimConfig):
    """Muon for the matrices of the body, AdamW for embeddings, head, norms and biases."""

    name: str = "muon"
    momentum: float = 0.95
    """Of Muon, in [0, 0.999999]."""
    ns_steps: int = 5
    """Newton-Schulz iterations that make an update orthogonal, in [1, 99]."""
    matrix_lr_ratio: float = 1.0
    """Learning rate of the matrices as a share of `lr`, > 0."""
    weight_decay: float = 0.1
    """Of all matrices. Norms, biases, scales and shifts have none."""
    beta1: float = 0.9
    """Of AdamW, as are the next two."""
    beta2: float = 0.95
    eps: float = 1e-8

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)
        check_choice("optim.name", self.name, ("muon",))
        check_range("optim.momentum", self.momentum, 0, 0.999999)
        check_range("optim.ns_steps", self.ns_steps, 1, 99)
        check_range("optim.matrix_lr_ratio", self.matrix_lr_ratio, 0, 1e6, open_low=True)
        check_range("optim.weight_decay", self.weight_decay, 0, 1e6)
        check_range("optim.beta1", self.beta1, 0, 0.999999)
        check_range("optim.beta2", self.beta2, 0, 0.999999)
        check_range("optim.eps", self.eps, 0, 1, open_low=True)


class MuonAdamW(torch.optim.AdamW):
    """One optimizer that updates given matrices with torch's Muon, and all other parameters with fused AdamW.

    Args:
        matrices: (rows, columns) parameters for Muon.
        groups: parameter groups of the others, as torch's AdamW takes them.
        muon: options of torch.optim.Muon.
        lr_factor: learning rate of the matrices as a share of the others'.
        options: as torch's AdamW takes them.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        groups: list[dict[str, Any]],
        muon: dict[str, Any],
        lr_factor: float,
        **options: Any,
    ) -> None:
        super().__init__([*groups, {"params": matrices, "lr_factor": lr_factor}], **options)
        self._muon = torch.optim.Muon(matrices, **muon)

    @property
    def _matrix_group(self) -> dict[str, Any]:
        return self.param_groups[-1]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters, or none where `found_inf` is 1."""
        grads = [matrix.grad for matrix in self._matrix_group["params"]]
        for matrix, grad in zip(self._matrix_group["params"], grads, strict=True):
            if grad is not None:
                self._step_matrix(matrix, grad)
            matrix.grad = None  # the fused AdamW then skips this parameter
        loss = super().step(closure)
        for matrix, grad in zip(self._matrix_group["params"], grads, strict=True):
            matrix.grad = grad
        return loss

    def _step_matrix(self, matrix: nn.Parameter, grad: Tensor) -> None:
        """Let Muon update one matrix. Whether to skip the step stays on the device, so that the host need not wait."""
        self._muon.state = self.state  # one state for both, also after load_state_dict
        (muon_group,) = self._muon.param_groups
        muon_group |= {"params": [matrix], "lr": self._matrix_group["lr"]}
        skip = getattr(self, "found_inf", None)
        if skip is None:
            self._muon.step()
            return
        before = matrix.clone()
        buffer = self.state[matrix].get("momentum_buffer")
        if buffer is None:
            buffer = torch.zeros_like(matrix)
        matrix.grad = torch.where(skip > 0, buffer, grad)  # buffer.lerp_(buffer, ...) changes nothing
        self._muon.step()
        matrix.copy_(torch.where(skip > 0, before, matrix))


def build_muon(config: MuonConfig, model: nn.Module) -> MuonAdamW:
    """Build the optimizer of a `LanguageModel`: Muon updates the matrices of its blocks.

    Raises:
        ConfigError: the matrices are in shards. Muon needs whole ones.
    """
    blocks: Any = model.get_submodule("body.h")
    matrices = [parameter for parameter in blocks.parameters() if parameter.ndim == 2]
    if any(map(is_sharded, matrices)):
        raise ConfigError(
            "optim=muon needs whole matrices, and train.strategy=fsdp2 cuts them: take ddp, or optim=adamw"
        )
    muon = {"momentum": config.momentum, "ns_steps": config.ns_steps, "weight_decay": config.weight_decay}
    return MuonAdamW(
        matrices,
        decay_groups(model, config.weight_decay, matrices),
        muon | {"adjust_lr_fn": "match_rms_adamw"},
        config.matrix_lr_ratio,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
