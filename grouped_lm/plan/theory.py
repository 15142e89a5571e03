"""Memory of the paper's head, counted tensor by tensor; plots show it beside the measurements.

Letters: N tokens of a forward pass (micro_batch_size * block_size), D width, V vocabulary, G groups, S slots per group.
"""

import math

from grouped_lm.heads.losses.chunked import DEFAULT_CHUNK_ROWS

FLOAT_BYTES, INT_BYTES = 4, 8


def estimate_grouped_head_bytes(n_tokens: int, n_embd: int, vocab_size: int, group_size: int) -> int:
    """Return the peak bytes of one forward and backward pass of `head=grouped` alone, fp32, on a CPU.

    These live all the time: hidden states N D and their gradient; weights (G + S) D + G and their gradients; scale,
    shift and masked shift 3 G S, and the gradients of the first two 2 G S; two tables of token ids 2 V (int32);
    targets, groups and slots of the tokens 5 N (int64); the mask of padding slots, G S bytes. The larger one of these
    two for a chunk of C rows is added:

    - group softmax: logits and probabilities 2 C G;
    - token softmax: products, scale, logits and probabilities 4 C S.

    So the group size matters in C (2 G or 4 S) and (G + S) D alone, and the minimum is between sqrt(V / 2) and sqrt V.
    The paper keeps the logits of all rows: there N (G + S) dominates, and sqrt V is best. Tests find the estimate
    within 2 % of `measure_head_peak_gib`.
    """
    n, d, s = n_tokens, n_embd, group_size
    g, c = math.ceil(vocab_size / s), min(n, DEFAULT_CHUNK_ROWS)
    weights = (g + s) * d + g
    floats = 2 * (n * d + weights) + 5 * g * s + 2 * vocab_size + c * max(2 * g, 4 * s)
    return FLOAT_BYTES * floats + INT_BYTES * 5 * n + g * s


def best_group_size(n_tokens: int, n_embd: int, vocab_size: int) -> int:
    """Return the smallest S with the minimum of `estimate_grouped_head_bytes`."""
    root = math.isqrt(vocab_size)
    # far outside both ends, G or S alone is more
    sizes = range(max(1, root // 16), min(vocab_size, 16 * root + 16) + 1)
    return min(sizes, key=lambda size: estimate_grouped_head_bytes(n_tokens, n_embd, vocab_size, size))
