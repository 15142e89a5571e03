"""Estimate the bytes that devices send in an optimizer step, and the time of it that computing does not hide.

Letters: W processes; P bytes of all weights (fp32); L P_b bytes of the body's L blocks; R = P - L P_b bytes of the
rest, which FSDP2 gathers as one: the embeddings, the last norm and the head.

Sources: a ring sends (W - 1)/W of a buffer for an all-gather or a reduce-scatter, and twice that for an all-reduce
(Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"). Li et al. 2020 (arXiv
2006.15704) describe DDP.
"""

import dataclasses
from collections import Counter

from grouped_lm.config import Config
from grouped_lm.distributed.vocab_parallel import VocabParallelDenseHead, VocabParallelEmbedding, split_parameters
from grouped_lm.measure.devices import Interconnect
from grouped_lm.models.lm import LanguageModel

BUCKET_BYTES = 25 * 2**20
"""Size of DDP's buckets. No backward pass is left to hide the last one."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Bytes of the weights, with rows padded to a multiple of W."""

    total: int
    """P."""
    blocks: int
    """L P_b."""
    largest_block: int
    """P_b."""
    behind: int
    """Part of the rest after the blocks: the last norm, and the weights that only the head has."""
    rows: tuple[int, ...] = ()
    """Tables of the rest that `train.vocab_parallel` splits: bytes of one process's rows of each."""

    @property
    def rest(self) -> int:
        """R."""
        return self.total - self.blocks

    @property
    def in_buckets(self) -> int:
        """Bytes that DDP averages."""
        return self.total - sum(self.rows)

    @classmethod
    def of(cls, model: LanguageModel, processes: int = 1) -> "Weights":
        """Return the bytes of a model, fake or real, with 4 bytes per weight."""
        blocks: Counter[str] = Counter()
        total = behind = 0
        for name, parameter in model.named_parameters():
            rows = parameter.shape[0] if parameter.ndim else 1
            padded = -(-rows // processes) * processes
            size = 4 * parameter.numel() // max(1, rows) * padded
            total += size
            if name.startswith("body.h."):
                blocks[name.split(".")[2]] += size
            elif name.startswith(("body.ln_f.", "head.")):
                behind += size
        cut = tuple(4 * parameter.numel() for parameter in split_parameters(model))
        return cls(total, sum(blocks.values()), max(blocks.values(), default=0), behind, cut)


def ddp_sent_bytes(weights: Weights, processes: int) -> int:
    """Return the bytes that DDP sends in an optimizer step: 2 (W - 1)/W P, for any number of micro-steps.

    Tables that `train.vocab_parallel` splits are left out; `states_sent_bytes` has their communication.
    """
    return 2 * (processes - 1) * weights.in_buckets // processes


def fsdp2_sent_bytes(weights: Weights, processes: int, micro_steps: int, link: Interconnect) -> int:
    """Return the bytes that FSDP2 sends in an optimizer step: (W - 1)/W (P + L P_b + c P) in each micro-step.

    It gathers all weights for the forward pass, and those of the blocks again for the backward pass. Gradients need a
    reduce-scatter: c is 1, or 2 with gloo, which uses an all-reduce.
    """
    moved = weights.total + weights.blocks + link.reduce_scatter_passes * weights.total
    return micro_steps * (processes - 1) * moved // processes


def states_sent_bytes(config: Config, model: LanguageModel, processes: int, link: Interconnect) -> int:
    """Return the bytes that split tables send in an optimizer step: (W - 1)/W of the following in each micro-step.

    A micro-step has M tokens in all processes. The embedding sends M ids of 8 bytes, M D numbers in a reduce-scatter
    (c times, as in `fsdp2_sent_bytes`), and their gradient. A dense head sends M D numbers, M targets of 8 bytes, 4
    numbers per token in an all-reduce, 3 in the backward pass, and the gradient of the M D numbers. The config has the
    batch of one process.
    """
    n_tokens = processes * config.train.micro_batch_size * config.model.block_size
    states = 4 * n_tokens * config.model.n_embd * (1 + link.reduce_scatter_passes) + 8 * n_tokens
    moved = states if isinstance(model.body.wte, VocabParallelEmbedding) else 0
    if isinstance(model.head, VocabParallelDenseHead):
        moved += states + 4 * n_tokens * (2 * 4 + 3)
    return config.train.grad_accum_steps * (processes - 1) * moved // processes


def ddp_exposed_s(compute_s: float, exchange_s: float, weights: Weights, micro_steps: int) -> float:
    """Return the seconds of DDP's communication that the last backward pass does not hide.

    That pass takes two thirds of its micro-step. The last bucket is sent after its end.
    """
    backward_s = 2 / 3 * compute_s / micro_steps
    last = exchange_s * min(1.0, BUCKET_BYTES / weights.in_buckets)
    return max(last, exchange_s - backward_s)


def fsdp2_exposed_s(compute_s: float, weights: Weights, processes: int, micro_steps: int, link: Interconnect) -> float:
    """Return the seconds of FSDP2's communication that computing does not hide.

    A block is sent while its neighbours compute, a third of a micro-step forward and two thirds backward. The rest is
    needed first and reduced last, so nothing hides it.
    """
    each = (processes - 1) / processes / link.bytes_per_sec
    forward_s, passes = compute_s / micro_steps / 3, link.reduce_scatter_passes
    rest_s = (1 + passes) * weights.rest * each
    forward_left = max(0.0, weights.blocks * each - forward_s)
    backward_left = max(0.0, (1 + passes) * weights.blocks * each - 2 * forward_s)
    return micro_steps * (rest_s + forward_left + backward_left)
