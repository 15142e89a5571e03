"""What `gvc bench` measures: variants of `conf/variant`, and ways to run them.

An implementation may declare options. The fastest one is measured, and the row says what was tried.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from grouped_lm.bench.timing import Sampler, quickest
from grouped_lm.bench.variants import Variant, load_variant
from grouped_lm.config import IGNORE_INDEX, GroupingConfig, check_choice
from grouped_lm.errors import ConfigError
from grouped_lm.grouping import parse_grouping
from grouped_lm.heads import HEADS, AdaptiveHead, Head, HeadContext, HeadLoss, build_in_context
from grouped_lm.heads.dense import DenseHead
from grouped_lm.heads.losses import kernels
from grouped_lm.heads.losses.functional import working_dtype
from grouped_lm.models.lm import LanguageModel

Option = dict[str, Any]
Tokens = Callable[[], np.ndarray] | None
"""Returns the training text, (T,) ids."""
BASELINE = "dense"
"""The plain full softmax, tied. Ratios are taken over it."""


class PeerHead(DenseHead):
    """A dense head whose mean loss another library computes."""

    def loss(self, hidden: Tensor, targets: Tensor, reduction: str = "mean", accuracy: bool = False) -> HeadLoss:
        """Return the mean loss in nats; it keeps no parts."""
        states, flat = self.flatten(hidden, targets)
        dtype = working_dtype(states)
        return HeadLoss(nll=self.mean_nll(states.to(dtype), self.weight.to(dtype), flat))

    def mean_nll(self, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats of (N, D) states, (V, D) weights and (N,) targets."""
        raise NotImplementedError


class AutoChunkedHead(PeerHead):
    """torch's `F.linear_cross_entropy` with the chunk that it chooses itself."""

    def mean_nll(self, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats."""
        options = nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(states, weight, targets, ignore_index=IGNORE_INDEX, options=options)


class CutCrossEntropyHead(PeerHead):
    """Apple's cut cross entropy (arXiv 2411.09009): its kernels on a GPU, its compiled version on a CPU."""

    def mean_nll(self, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats."""
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(states, weight, targets, impl="cce" if states.is_cuda else "torch_compile")


class LigerHead(PeerHead):
    """Liger's fused linear cross entropy (arXiv 2410.10989), sums over chunks in fp32."""

    def mean_nll(self, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats."""
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, accum_dtype=torch.float32)
        return loss(weight, states, targets)


class PaddedPeerHead(PeerHead):
    """A peer that takes a vocabulary of a multiple of `multiple` alone, and no bias that could mask the padding.

    States get 8 more numbers, 1 and zeros, and weights 8 more columns. The first of those is -30,000 for padding
    tokens, whose probability is then exactly 0.
    """

    multiple: ClassVar[int]
    more: ClassVar[int] = 8

    def mean_nll(self, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats."""
        missing = -weight.shape[0] % self.multiple
        if missing:
            mask = weight.new_zeros(weight.shape[0] + missing, self.more)
            mask[weight.shape[0] :, 0] = -30_000
            weight = torch.cat([F.pad(weight, (0, 0, 0, missing)), mask], 1)
            states = F.pad(F.pad(states, (0, 1), value=1.0), (0, self.more - 1))
        return self.padded_nll(states, weight, targets)

    def padded_nll(self, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats of a V that is a multiple of `multiple`."""
        raise NotImplementedError

    @classmethod
    def padding(cls, vocab_size: int) -> str:
        """Return what was padded, for the rows; "" for nothing."""
        missing = -vocab_size % cls.multiple
        return f"V + {missing}, D + {cls.more}" if missing else ""


class QuackHead(PaddedPeerHead):
    """QuACK's chunked linear cross entropy, in CuTe DSL; its fastest pipeline needs V % 128 = 0."""

    multiple = 128

    def padded_nll(self, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats."""
        from quack.linear_cross_entropy import chunked_linear_cross_entropy

        return chunked_linear_cross_entropy(states, weight, targets, ignore_index=IGNORE_INDEX)


class LigerHopperHead(PaddedPeerHead):
    """Liger's fused linear cross entropy for Hopper, in CuTe DSL; it needs V % 256 = 0 and N % 128 = 0."""

    multiple = 256

    def padded_nll(self, states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats."""
        from liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90 import liger_fused_linear_cross_entropy_sm90

        return liger_fused_linear_cross_entropy_sm90(states, weight, targets, IGNORE_INDEX, "mean")


class TorchAdaptiveHead(AdaptiveHead):
    """Adaptive softmax as torch's module computes it, all logits kept."""

    in_chunks: ClassVar[bool] = False


class CapturedHead:
    """A head whose forward and backward pass are CUDA graphs, captured at the first call; later shapes are the same."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.graph: Any = None

    def __call__(self, hidden: Tensor, targets: Tensor) -> HeadLoss:
        """Return the loss; the graph is captured under the autocast of the first call."""
        if not torch.is_grad_enabled():
            return self.head(hidden, targets)
        if self.graph is None:
            sample = hidden.detach().clone().requires_grad_(), targets.clone()
            dtype, on = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
            with torch.autocast("cuda", dtype, enabled=on, cache_enabled=False):
                self.graph = torch.cuda.make_graphed_callables(_Nll(self.head), sample, allow_unused_input=True)
        return HeadLoss(nll=self.graph(hidden, targets))


class _Nll(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss alone, since graphs return tensors."""
        return self.head(hidden, targets).nll


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to run a variant: how the loss is computed, on top of the variant's settings.

    Attributes:
        variant: The head's settings.
        how: What is special, as the end of the name in the rows; "" for a variant run as its config says.
        grouping: Replaces the variant's grouping.
        settings: Head settings that change how the loss is computed, and not its value.
        options: Head settings that are tried on top. The fastest one is measured.
        gpu_options: The options on a GPU, where these differ.
        head_class: A class that replaces the head's own, such as one with another library's kernel.
        compiled: Run under `torch.compile`.
        graphs: Record the compiled passes as CUDA graphs.
        captured: Capture the passes of the eager head as CUDA graphs.
        kernels: Use this package's Triton kernels.
        gpu_only: Measured on a GPU alone.
        package: A package that must be installed.
        capabilities: Compute capabilities of the GPUs that it runs on, such as 9.0; None means all.
        bf16_only: Whether it takes matrix products in bf16 alone.
        tokens_multiple: N must be a multiple of this number.
        needs_torch: A function of `torch.nn.functional` that older versions of torch lack.
    """

    variant: Variant
    how: str = ""
    grouping: str | None = None
    settings: Option = field(default_factory=dict)
    options: tuple[Option, ...] = ({},)
    gpu_options: tuple[Option, ...] | None = None
    head_class: type[Head] | None = None
    compiled: bool = False
    graphs: bool = False
    captured: bool = False
    kernels: bool = True
    gpu_only: bool = False
    package: str | None = None
    capabilities: tuple[float, ...] | None = None
    bf16_only: bool = False
    tokens_multiple: int = 1
    needs_torch: str | None = None

    @property
    def name(self) -> str:
        """The name in rows and plots."""
        return f"{self.variant.label}, {self.how}" if self.how else self.variant.label

    @property
    def is_plain(self) -> bool:
        """Whether a run with the same config computes the same: no tuning, compiling, or foreign code."""
        return (
            self.options == ({},)
            and not self.compiled
            and self.head_class is None
            and self.kernels
            and not self.captured
        )

    def grouping_config(self, has_text: bool) -> GroupingConfig:
        """Return the grouping. Brown and k-means need a text; without one, tokens are grouped by frequency."""
        name = self.grouping or self.variant.grouping
        return parse_grouping("frequency" if name in ("brown", "kmeans") and not has_text else name)

    def options_on(self, device: str) -> tuple[Option, ...]:
        """Return the options that are tried on `cpu` or `cuda`."""
        return self.gpu_options if device == "cuda" and self.gpu_options is not None else self.options

    def running(self) -> AbstractContextManager[None]:
        """Return the context of the forward and backward passes."""
        return nullcontext() if self.kernels else kernels.mode("off")

    def forward(self, module: nn.Module) -> Any:
        """Return the function that is called in place of `module`."""
        if self.captured:
            return CapturedHead(module)
        return torch.compile(module, mode="reduce-overhead" if self.graphs else None) if self.compiled else module

    def why_left_out(self, device: str = "cpu", dtype: str = "float32") -> str | None:
        """Return what is missing here: a package, a function of torch, or a kind of GPU; None if it can run."""
        if self.capabilities is not None and device == "cuda":
            has = float("{}.{}".format(*torch.cuda.get_device_capability()))
            if has not in self.capabilities:
                return f"it needs compute capability {' or '.join(map(str, self.capabilities))}, this GPU has {has}"
        if self.bf16_only and dtype != "bfloat16":
            return f"it needs dtype=bfloat16, got {dtype}"
        if self.needs_torch is not None and not hasattr(F, self.needs_torch):
            return f"torch {torch.__version__} has no {self.needs_torch}"
        if self.package is None or find_spec(self.package) is not None:
            return None
        extra = "gpu" if self.gpu_only else "bench"
        return f"{self.package.replace('_', '-')} is not installed (pip install 'grouped-lm[{extra}]')"

    def padding(self, vocab_size: int) -> str:
        """Return what a peer's V and D are padded by, "" for nothing."""
        peer = self.head_class
        return peer.padding(vocab_size) if peer is not None and issubclass(peer, PaddedPeerHead) else ""

    def config(self, option: Option | None = None) -> Any:
        """Return the head's config with an option on top."""
        return self.variant.head_config(**self.settings | (option or {}))

    def build(self, option: Option, counts: Tensor, wte: nn.Parameter, tokens: Tokens = None) -> Head:
        """Return a new head on the device of `wte` (V, D). The arguments are those of `HeadContext`."""
        vocab_size, n_embd = wte.shape
        context = HeadContext(n_embd, vocab_size, self.grouping_config(tokens is not None), counts, wte, tokens)
        return build_in_context(self.config(option), context, self.head_class).to(wte.device)

    def model(self, option: Option, counts: Tensor, body: nn.Module, tokens: Tokens = None) -> LanguageModel:
        """Return the body with a new head."""
        wte: Any = body.wte.weight  # type: ignore[union-attr]
        return LanguageModel(body, self.build(option, counts, wte, tokens))


FOREIGN_HEADS = {
    c.__name__: c
    for c in (AutoChunkedHead, CutCrossEntropyHead, LigerHead, LigerHopperHead, QuackHead, TorchAdaptiveHead)
}


def _parse(entry: dict[str, Any]) -> Implementation:
    """Return an entry of implementations.yaml, whose options hold the values of one setting."""
    values = entry | {"variant": load_variant(entry["variant"])}
    if "head_class" in entry:
        values["head_class"] = FOREIGN_HEADS[entry["head_class"]]
    if "capabilities" in entry:
        values["capabilities"] = tuple(entry["capabilities"])
    for name in ("options", "gpu_options"):
        if name in entry:
            values[name] = tuple({key: value} for key, tried in entry[name].items() for value in tried)
    return Implementation(**values)


IMPLEMENTATIONS = tuple(
    map(_parse, yaml.safe_load(files("grouped_lm.bench").joinpath("implementations.yaml").read_text(encoding="utf-8")))
)
"""What `gvc bench` measures: the entries of implementations.yaml."""


def all_implementations() -> list[Implementation]:
    """Return `IMPLEMENTATIONS`, and every registered head that has no variant with its default settings."""
    measured = {implementation.variant.head["name"] for implementation in IMPLEMENTATIONS}
    others = [Variant(name=n, label=n, description="", head={"name": n}) for n in HEADS if n not in measured]
    return [*IMPLEMENTATIONS, *(Implementation(variant=variant) for variant in others)]


def plain_implementation(path: str, variant: str) -> Implementation:
    """Return a variant as a run computes it. An error names `path`, the config key with the variant's name."""
    known = {i.variant.name: i for i in all_implementations() if i.is_plain and not i.how}
    check_choice(path, variant, tuple(known))
    return known[variant]


def choose(
    names: list[str], say: Callable[[str], None], device: str = "cpu", dtype: str = "float32"
) -> list[Implementation]:
    """Return the plain dense head and the implementations that `names` selects; all if `names` is empty.

    Names are variants or beginnings of the names in rows. Each must select something. `say` is called with one line
    about each implementation that cannot run here.
    """

    def selected(implementation: Implementation, names: list[str]) -> bool:
        return any(implementation.variant.name == n or implementation.name.startswith(n) for n in names)

    known = [i for i in all_implementations() if device == "cuda" or not i.gpu_only]
    for name in names:
        if not any(selected(i, [name]) for i in known):
            rows = ", ".join(i.name for i in known)
            raise ConfigError(f"competitors must be variants or begin like one of {rows}, got {name!r}")
    chosen = [i for i in known if i.name == BASELINE or not names or selected(i, names)]
    reasons = {i.name: i.why_left_out(device, dtype) for i in chosen}
    for name, reason in reasons.items():
        if reason:
            say(f"{name} is left out: {reason}")
    return [i for i in chosen if not reasons[i.name]]


def tune(
    options: Sequence[Option], sampler_of: Callable[[Option], Sampler], samples: int
) -> tuple[Option, dict[str, str]]:
    """Return the option that is fastest in `samples` samples of each, and the columns that say what was tried."""
    by_name = {describe_option(option): option for option in options}
    best, tried = next(iter(by_name)), ""
    if len(options) > 1:
        best, times = quickest({name: sampler_of(option) for name, option in by_name.items()}, samples)
        tried = describe_tuning(times, "ms")
    return by_name[best], {"option": best, "tried": tried}


def forget_compiled(implementations: Iterable[Implementation]) -> None:
    """Forget the code compiled for an earlier cell: other shapes would make this cell's code general and slower."""
    if any(c.compiled or c.package for c in implementations):
        torch._dynamo.reset()


def describe_option(option: Option) -> str:
    """Return an option as `chunk_rows=256`, "" for none."""
    return " ".join(f"{key}={value}".replace(" ", "") for key, value in option.items())


def describe_tuning(tried: dict[str, float], unit: str) -> str:
    """Return each option that was tried with its figure."""
    return "; ".join(f"{name}: {figure:.4g} {unit}" for name, figure in tried.items())
