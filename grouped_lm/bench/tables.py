"""The rows of a suite as tables; what is the same in all rows of a table is in its title."""

from collections.abc import Sequence

from grouped_lm.system.tables import Row, Table, columns

COLUMNS = {
    "heads": columns("""
        head; option; forward ms = forward_ms {:,.2f}; ms {:,.2f}; quarter = ms_q1 {:,.2f}; 3 quarters = ms_q3 {:,.2f}
        x dense = speedup {:,.1f}; peak = peak_bytes bytes; x less = memory_ratio {:,.1f}; floor = floor_bytes bytes
        peak / floor = peak_over_floor {:.2f}; GEMM share = gemm_share {:.0%}; own params = params_own {:,}
        loss error = nll_error {:.1e}; gradient error = grad_error {:.1e}; samples
    """),
    "steps": columns("""
        head; option; ms {:,.2f}; quarter = ms_q1 {:,.2f}; 3 quarters = ms_q3 {:,.2f}
        tokens/s = tokens_per_sec {:,.0f}; of the cap = share_of_cap {:.1%}; x dense = over_dense {:,.2f}
        x chunked = over_best_chunked {:,.2f}; x adaptive = over_best_adaptive {:,.2f}
        FLOPs fewer = flops_fewer_than_dense {:.2f}; MFU = mfu {:.0%}; samples
    """),
    "memory": columns("""
        B = micro_batch_size {:,}; head; mode; measured = measured_bytes bytes; predicted = predicted_bytes bytes
        error = prediction_error {:+.2%}; weights = weights_bytes bytes; gradients = gradients_bytes bytes
        optimizer = optimizer_bytes bytes; body = body_bytes bytes; head = head_bytes bytes
        temporary = temporary_bytes bytes; embedding = embedding_bytes bytes; peak in = peak_module
        dense = dense_bytes bytes; grouped = grouped_bytes bytes; x less = memory_ratio {:.2f}
        B of the claim = batch_at_claim {:,}; x at most = ratio_limit {:.2f}; FLOPs fewer = flops_ratio {:.2f}
        at most = flops_cap {:.2f}
    """),
    "decode": columns("""
        head; way; head ms = head_ms {:,.3f}; quarter = head_ms_q1 {:,.3f}; 3 quarters = head_ms_q3 {:,.3f}
        head, x dense = head_speedup {:,.1f}; token ms = ms {:,.2f}; token, x dense = speedup {:,.2f}; samples
    """),
    "vocab": columns("""
        head; measured = measured_bytes bytes; predicted = predicted_bytes bytes
        body's weights x 16 = state_bytes bytes; ms {:,.1f}; tokens/s = tokens_per_sec {:,.0f}
        of the cap = share_of_cap {:.1%}; x dense = over_dense {:,.2f}; entropy = entropy_nats {:.3f}
        loss = loss_nats {:.3f}; excess = excess_nats {:+.4f}; +- = excess_stderr {:.4f}; lr {:g}
    """),
}
"""Suite -> what its tables show."""
SHAPE = (
    *("device", "dtype", "part", "model", "attention", "language", "n_tokens", "n_embd", "vocab_size", "block_size"),
    "batch_size",
)
"""Rows that differ in one of these are in different tables."""


def suite_tables(suite: str, rows: Sequence[Row]) -> list[Table]:
    """Return one table for each shape."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = ", ".join(f"{key} {row[key]}" for key in SHAPE if row.get(key) is not None)
        groups.setdefault(title, []).append(row)
    return [Table(title=title, rows=group, columns=COLUMNS[suite], missing="") for title, group in groups.items()]
