"""Who takes part. A head of `grouped_lm.heads` does by being registered there; an entry of VARIANTS adds a setting.

Every competitor has a declared grid of options; the quickest is chosen where it is measured, and what was tried
stands in its row.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_lm.config import IGNORE_INDEX, GroupingConfig
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import parse_grouping
from grouped_lm.heads import HEADS, AdaptiveHead, Head, HeadContext, HeadLoss, parse_head_config
from grouped_lm.heads.base import flatten
from grouped_lm.heads.dense import DenseHead
from grouped_lm.heads.losses import kernels
from grouped_lm.heads.losses.chunked import working_dtype

Option = dict[str, Any]
Tokens = Callable[[], np.ndarray] | None
"""Gives the training text, (T,) ids."""
BASELINE = "dense"
"""What ratios are taken against: the plain full softmax, tied."""


class AutoChunkedHead(DenseHead):
    """torch's `F.linear_cross_entropy` with the chunk that it chooses itself."""

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """See `Head.loss`."""
        states, flat = flatten(hidden, targets)
        dtype, options = working_dtype(states), nn.LinearCrossEntropyOptions()
        given = states.to(dtype), self.weight.to(dtype), flat
        return HeadLoss(nll=F.linear_cross_entropy(*given, ignore_index=IGNORE_INDEX, options=options))


class CutCrossEntropyHead(DenseHead):
    """Apple's cut cross entropy (arXiv 2411.09009): its kernels on a GPU, else what the package has for a CPU."""

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """See `Head.loss`."""
        from cut_cross_entropy import linear_cross_entropy

        states, flat = flatten(hidden, targets)
        dtype, way = working_dtype(states), "cce" if states.is_cuda else "torch_compile"
        return HeadLoss(nll=linear_cross_entropy(states.to(dtype), self.weight.to(dtype), flat, impl=way))


class LigerHead(DenseHead):
    """Liger's fused linear cross entropy (arXiv 2410.10989), sums over chunks in fp32."""

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """See `Head.loss`."""
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        states, flat = flatten(hidden, targets)
        dtype = working_dtype(states)
        loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, accum_dtype=torch.float32)
        return HeadLoss(nll=loss(self.weight.to(dtype), states.to(dtype), flat))


class TorchAdaptiveHead(AdaptiveHead):
    """Adaptive softmax as torch's module computes it, all logits kept."""

    in_chunks: ClassVar[bool] = False


@dataclass(frozen=True)
class Competitor:
    """One way to get from states to a loss.

    name: as rows and `competitors=[...]` have it; those of one head begin alike.
    head: overrides of the head's own config, `name` among them.
    options: overrides tried on top; one, the empty one, is no tuning.
    grouping: which tokens share a group, where the head has groups.
    kind: a class of head that stands in for the head's own.
    compiled: run under `torch.compile`.
    graphs: record its passes as CUDA graphs.
    kernels: choose kernels of ours where there are some.
    gpu_only: takes part on a GPU alone.
    gpu_options: overrides tried there instead.
    package: has to be installed.
    needs_torch: of this torch's `torch.nn.functional`; older ones lack it.
    """

    name: str
    head: Option
    options: tuple[Option, ...] = ({},)
    grouping: str = "merge_rank"
    kind: type[Head] | None = None
    compiled: bool = False
    graphs: bool = False
    kernels: bool = True
    gpu_only: bool = False
    gpu_options: tuple[Option, ...] | None = None
    package: str | None = None
    needs_torch: str | None = None

    @property
    def as_configured(self) -> bool:
        """Whether its config says all of it: nothing to tune, nothing compiled, our own class and kernels."""
        return self.options == ({},) and not self.compiled and self.kind is None and self.kernels

    def grouped_by(self, has_text: bool) -> GroupingConfig:
        """Return which tokens share a group; where there is no text, groups by company are groups by frequency."""
        by_company = self.grouping in ("brown", "kmeans")
        return parse_grouping("frequency" if by_company and not has_text else self.grouping)

    def options_on(self, device: str) -> tuple[Option, ...]:
        """Return the options that are tried on `cpu` or `cuda`."""
        return self.gpu_options if device == "cuda" and self.gpu_options is not None else self.options

    def running(self) -> AbstractContextManager[None]:
        """Return the context of its passes, forward and backward."""
        return nullcontext() if self.kernels else kernels.without()

    def forward(self, module: nn.Module) -> Any:
        """Return what is called in place of `module`."""
        return torch.compile(module, mode="reduce-overhead" if self.graphs else None) if self.compiled else module

    @property
    def missing(self) -> bool:
        """Whether its package is not installed, or torch too old."""
        if self.needs_torch is not None and not hasattr(F, self.needs_torch):
            return True
        return self.package is not None and find_spec(self.package) is None

    @property
    def why_missing(self) -> str:
        """What one that is `missing` lacks."""
        if self.package is None:
            return f"torch {torch.__version__} has no {self.needs_torch}"
        extra = "gpu" if self.gpu_only else "bench"
        return f"{self.package.replace('_', '-')} is not installed (pip install 'grouped-lm[{extra}]')"

    def config(self, option: Option | None = None) -> Any:
        """Return the head's config with an option on top."""
        return parse_head_config(self.head | (option or {}))

    def build(
        self, option: Option, n_embd: int, vocab_size: int, counts: Tensor, wte: nn.Parameter, tokens: Tokens = None
    ) -> Head:
        """Build the head on the device of `wte`, freshly initialised; see `build_head` for the arguments."""
        context = HeadContext(n_embd, vocab_size, self.grouped_by(tokens is not None), counts, wte, tokens)
        kind = self.kind or HEADS[self.head["name"]][1]
        return kind.build(self.config(option), context).to(wte.device)


def _tuned(key: str, values: tuple[Any, ...]) -> tuple[Option, ...]:
    return tuple({key: value} for value in values)


CHUNK_ROWS = (64, 128, 256, 512, 1024)
GPU_CHUNK_ROWS = (512, 1024, 2048, 4096, 8192)
PLAIN_SHORTLIST = {
    "name": "shortlist",
    "shortlist_size": 1024,
    "directions": 1,
    "shared_rows": 0,
    "reserve": False,
    "start": "zero",
}
"""The competitor `shortlist` of the committed results; the default head is `shortlist, mean rows`."""
OWN_SHORTLIST = PLAIN_SHORTLIST | {"shortlist_size": 2048, "own_shortlist": True, "start": "counts", "directions": 4}
CUTOFFS = ([1000, 5000], [2000, 10_000], [4000, 20_000], [2000], [8000])
"""Of adaptive softmax, chosen by time alone. No more than two clusters: a third has a rank of 1 or 2 at widths 64 and
128, which is quick and predicts nothing."""
VARIANTS = (
    Competitor("dense, untied", {"name": "dense", "tied": False}),
    Competitor("dense, compiled", {"name": "dense"}, compiled=True),
    Competitor(
        "dense, chunked, torch's default",
        {"name": "dense"},
        kind=AutoChunkedHead,
        needs_torch="linear_cross_entropy",
    ),
    Competitor("dense, compiled, CUDA graphs", {"name": "dense"}, compiled=True, graphs=True, gpu_only=True),
    Competitor(
        "dense, chunked, tuned",
        {"name": "dense"},
        options=_tuned("chunk_rows", CHUNK_ROWS),
        gpu_options=_tuned("chunk_rows", GPU_CHUNK_ROWS),
    ),
    Competitor("dense, CCE", {"name": "dense"}, kind=CutCrossEntropyHead, package="cut_cross_entropy"),
    Competitor("dense, Liger", {"name": "dense"}, kind=LigerHead, package="liger_kernel", gpu_only=True),
    Competitor("grouped, no kernel", {"name": "grouped"}, kernels=False, gpu_only=True),
    Competitor("grouped, compiled", {"name": "grouped"}, compiled=True, gpu_only=True),
    Competitor("grouped, compiled, CUDA graphs", {"name": "grouped"}, compiled=True, graphs=True, gpu_only=True),
    Competitor("adaptive, tuned", {"name": "adaptive"}, options=_tuned("cutoffs", CUTOFFS)),
    Competitor("adaptive, torch's own", {"name": "adaptive"}, kind=TorchAdaptiveHead),
    Competitor(
        "adaptive, torch's own, tuned", {"name": "adaptive"}, options=_tuned("cutoffs", CUTOFFS), kind=TorchAdaptiveHead
    ),
    Competitor("class_full, by count", {"name": "class_full"}, grouping="frequency"),
    Competitor("class_full, untied", {"name": "class_full", "tied": False}),
    Competitor("shortlist, mean rows", {"name": "shortlist"}, grouping="brown"),
    Competitor(
        "shortlist, mean rows, no kernel", {"name": "shortlist"}, grouping="brown", kernels=False, gpu_only=True
    ),
    Competitor("shortlist, mean rows, compiled", {"name": "shortlist"}, grouping="brown", compiled=True, gpu_only=True),
    Competitor(
        "shortlist, mean rows, compiled, CUDA graphs",
        {"name": "shortlist"},
        grouping="brown",
        compiled=True,
        graphs=True,
        gpu_only=True,
    ),
    Competitor("shortlist, untied", PLAIN_SHORTLIST | {"tied": False}),
    Competitor("shortlist, 4 directions", PLAIN_SHORTLIST | {"directions": 4}),
    Competitor("shortlist, 16 directions", PLAIN_SHORTLIST | {"directions": 16}),
    Competitor("shortlist, own 2,048, 4 directions", OWN_SHORTLIST),
)
"""Settings of heads beside their defaults. A new one is an entry here."""


def all_competitors() -> list[Competitor]:
    """Return every registered head with its defaults, and the variants behind the head that they are of."""
    found = []
    for name in HEADS:
        found.append(Competitor(name, PLAIN_SHORTLIST if name == "shortlist" else {"name": name}))
        found += [variant for variant in VARIANTS if variant.head["name"] == name]
    return found


def find_competitor(path: str, name: str) -> Competitor:
    """Return the competitor of exactly that name, one that is as configured.

    Raises:
        ConfigError: there is none, or its config alone makes another one; `path` is the setting that names it.
    """
    known = {c.name: c for c in all_competitors()}
    allowed = [c.name for c in known.values() if c.as_configured]
    if name not in allowed:
        why = ": tuned, compiled and others' heads are in the suites heads and steps" if name in known else ""
        raise ConfigError(f"{path} must be of {', '.join(allowed)}, got {name!r}{why}")
    return known[name]


def choose(names: list[str], say: Callable[[str], None], device: str = "cpu") -> list[Competitor]:
    """Return the dense head and those whose names begin with one of `names`; all where there is none.

    Args:
        names: beginnings of names.
        say: told of each that is left out because its package is not installed.
        device: `cpu`, or `cuda`, where some more take part.

    Raises:
        ConfigError: a name that fits nobody.
    """
    everybody = [c for c in all_competitors() if device == "cuda" or not c.gpu_only]
    for name in names:
        if not any(c.name.startswith(name) for c in everybody):
            raise ConfigError(f"no competitor begins with {name!r}; there are {', '.join(c.name for c in everybody)}")
    wanted = [c for c in everybody if c.name == BASELINE or not names or any(c.name.startswith(name) for name in names)]
    for competitor in wanted:
        if competitor.missing:
            say(f"{competitor.name} is left out: {competitor.why_missing}")
    return [c for c in wanted if not c.missing]


def forget_compiled(competitors: Iterable[Competitor]) -> None:
    """Forget what was compiled for an earlier cell: its shapes would make this one's code general, and slower."""
    if any(c.compiled or c.package for c in competitors):
        torch._dynamo.reset()


def describe_option(option: Option) -> str:
    """Return an option as `chunk_rows=256`, "" for none."""
    return " ".join(f"{key}={value}".replace(" ", "") for key, value in option.items())


def describe_tuning(tried: dict[str, float]) -> str:
    """Return what was tried and the milliseconds of each."""
    return "; ".join(f"{name}: {ms:.4g} ms" for name, ms in tried.items())
