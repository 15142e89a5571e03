"""What a run leaves in its folder, for comparisons to the bit."""

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def curve(folder: Path) -> list[dict[str, Any]]:
    """Every row of the record, without what a clock or an allocator says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("throughput", "time", "memory"))} for row in rows]


def newest_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"))


def saved_tensors(folder: Path) -> dict[str, bytes]:
    """Weights, moments and random state of the last checkpoint, as bytes."""
    tensors = load_file(newest_checkpoint(folder) / "state.safetensors")
    return {name: value.tobytes() for name, value in tensors.items()}


def left_by(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    return curve(folder), saved_tensors(folder)
