"""What the paper's head should need, counted tensor by tensor: the curve that measurements are held against.

Letters: N tokens, D width, V vocabulary, G groups, S slots per group.
"""

import math

FLOAT_BYTES, INT_BYTES = 4, 8


def estimate_grouped_head_bytes(n_tokens: int, n_embd: int, vocab_size: int, group_size: int) -> int:
    """Return the peak bytes of one forward and backward pass of `head=grouped` alone, fp32, reduction "mean".

    Held throughout: states N D; weights (G + S) D + G; scale, shift and the phantom mask 3 G S; the two tables of
    token ids 2 V and the targets 2 N as int64. On top of it the greatest of three moments of the backward pass:

    - group softmax: its output, its gradient and the gradient of its logits 3 N G, while the token path still keeps
      scale, slots and the gradient of its logits 3 N S;
    - scale times slots: the same 3 N S and two gradients more, beside the group logits' gradient: N (G + 5 S), and
      the gradient of shift G S;
    - the last projection: both gradients of the states 2 N D beside N G, and the gradients of all weights.

    For many tokens that is N max(3 G + 3 S, G + 5 S), least at S = G = sqrt V. Held against
    `measure_head_peak_gib` in tests: within 5 %, the rest being integers per token.

    Args:
        n_tokens: N of one forward pass (micro_batch_size * block_size).
        n_embd: D.
        vocab_size: V.
        group_size: S in [1, V].
    """
    n, d, s = n_tokens, n_embd, group_size
    g = math.ceil(vocab_size / s)
    held = n * d + (g + s) * d + g + 3 * g * s
    group_softmax = 3 * n * (g + s)
    scaling = n * (g + 5 * s) + g * s
    projection = n * g + 2 * n * d + (g + s) * d + 2 * g * s
    floats = held + max(group_softmax, scaling, projection)
    return FLOAT_BYTES * floats + INT_BYTES * (2 * (vocab_size + n) + g * s)


def best_group_size(n_tokens: int, n_embd: int, vocab_size: int) -> int:
    """Return the S of least `estimate_grouped_head_bytes`, the smallest of equals.

    Args:
        n_tokens: N.
        n_embd: D.
        vocab_size: V.
    """
    root = math.isqrt(vocab_size)
    sizes = range(
        max(1, root // 16), min(vocab_size, 16 * root + 16) + 1
    )  # far outside both ends, G or S alone is more
    return min(sizes, key=lambda size: estimate_grouped_head_bytes(n_tokens, n_embd, vocab_size, size))
