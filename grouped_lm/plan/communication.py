"""What several devices send each other in an optimizer step, and how much of that time nothing hides.

Letters: W processes, P bytes of all weights (fp32), L P_b of them in the body's L blocks, R = P - L P_b in the rest:
the embeddings, the last norm and the head, which FSDP2 gathers as one.

Sources: ring algorithms send (W - 1)/W of a buffer to gather it, or to reduce and scatter it, and twice that to
all-reduce it (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"); what
DDP sends and when, Li et al. 2020 (arXiv 2006.15704).
"""

import dataclasses

from grouped_lm.config import Config
from grouped_lm.distributed.vocab_parallel import VocabParallelDenseHead, VocabParallelEmbedding, split_parameters
from grouped_lm.measure.interconnects import Interconnect
from grouped_lm.models.lm import LanguageModel

BUCKET_BYTES = 25 * 2**20
"""DDP's buckets: the last one has no backward pass left to hide behind."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Bytes of the weights as W processes cut them: rows are padded to a multiple of W."""

    total: int
    """P."""
    blocks: int
    """L P_b."""
    largest_block: int
    """P_b."""
    behind: int
    """Of the rest, what stands behind the blocks: the last norm, and what the head does not share with the body."""
    rows: tuple[int, ...] = ()
    """Of the rest, each table of which a process has only its own rows, see `vocab_parallel`: as many as the first."""

    @property
    def rest(self) -> int:
        """R."""
        return self.total - self.blocks

    @property
    def in_buckets(self) -> int:
        """What DDP sums."""
        return self.total - sum(self.rows)

    @classmethod
    def of(cls, model: LanguageModel, processes: int = 1) -> "Weights":
        """Return the bytes of a model, fake or real, 4 to a weight."""
        blocks: dict[str, int] = {}
        total = behind = 0
        for name, parameter in model.named_parameters():
            rows = parameter.shape[0] if parameter.ndim else 1
            padded = -(-rows // processes) * processes
            size = 4 * parameter.numel() // max(1, rows) * padded
            total += size
            if name.startswith("body.h."):
                block = name.split(".")[2]
                blocks[block] = blocks.get(block, 0) + size
            elif name.startswith(("body.ln_f.", "head.")):
                behind += size
        cut = tuple(4 * parameter.numel() for parameter in split_parameters(model))
        return cls(total, sum(blocks.values()), max(blocks.values(), default=0), behind, cut)


def ddp_sent_bytes(weights: Weights, processes: int) -> int:
    """Return what DDP sends in an optimizer step: 2 (W - 1)/W P, once, however many micro-steps it has.

    Tables in rows are left out, see `states_sent_bytes`.
    """
    return 2 * (processes - 1) * weights.in_buckets // processes


def fsdp2_sent_bytes(weights: Weights, processes: int, micro_steps: int, link: Interconnect) -> int:
    """Return what FSDP2 sends in an optimizer step: (W - 1)/W (P + L P_b + c P) in each micro-step.

    The weights are gathered for the forward pass, those of the blocks once more for the backward pass, and gradients
    are reduced and scattered: c is 1, or 2 where that is an all-reduce (gloo).
    """
    moved = weights.total + weights.blocks + link.reduce_scatter_passes * weights.total
    return micro_steps * (processes - 1) * moved // processes


def states_sent_bytes(config: Config, model: LanguageModel, processes: int, link: Interconnect) -> int:
    """Return what tables in rows send in an optimizer step: (W - 1)/W of these, in each micro-step of M tokens of all.

    The embedding: M ids of 8 bytes, M D numbers that are summed and scattered (c times, see `fsdp2_sent_bytes`), and
    their gradient. A dense head: M D numbers and M targets of 8 bytes, 4 numbers of each state that are all-reduced, 3
    gathered in the backward pass, and the gradient of the M D, summed and scattered.

    Args:
        config: with the batch of one process.
        model: whose tables are cut, or not.
        processes: W.
        link: says c.
    """
    n_tokens = processes * config.train.micro_batch_size * config.model.block_size
    states = 4 * n_tokens * config.model.n_embd * (1 + link.reduce_scatter_passes) + 8 * n_tokens
    moved = states if isinstance(model.body.wte, VocabParallelEmbedding) else 0
    if isinstance(model.head, VocabParallelDenseHead):
        moved += states + 4 * n_tokens * (2 * 4 + 3)
    return config.train.grad_accum_steps * (processes - 1) * moved // processes


def ddp_exposed_s(compute_s: float, exchange_s: float, weights: Weights, micro_steps: int) -> float:
    """Return the seconds of DDP's exchange that the last backward pass does not hide.

    That pass is two thirds of its micro-step, and the last bucket has to wait for its end.
    """
    backward_s = 2 / 3 * compute_s / micro_steps
    last = exchange_s * min(1.0, BUCKET_BYTES / weights.in_buckets)
    return max(last, exchange_s - backward_s)


def fsdp2_exposed_s(compute_s: float, weights: Weights, processes: int, micro_steps: int, link: Interconnect) -> float:
    """Return the seconds of FSDP2's exchange that the computation does not hide.

    Blocks are gathered and reduced while their neighbours work, a third of a micro-step forward and two thirds
    backward. For the rest, first to be needed and last to be reduced, everything waits.
    """
    each = (processes - 1) / processes / link.bytes_per_sec
    forward_s, passes = compute_s / micro_steps / 3, link.reduce_scatter_passes
    rest_s = (1 + passes) * weights.rest * each
    forward_left = max(0.0, weights.blocks * each - forward_s)
    backward_left = max(0.0, (1 + passes) * weights.blocks * each - 2 * forward_s)
    return micro_steps * (rest_s + forward_left + backward_left)
