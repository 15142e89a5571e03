"""Compile every kernel ahead of time for a GPU, without one: `python compile_kernels.py CAPABILITY WIDTH TYPE`.

Prints JSON: kernel -> registers, spilled bytes and shared bytes of a program, and how it multiplies matrices. TYPE is
that of the products: bf16, fp16 or fp32.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from grouped_lm.heads.losses.kernels import first, inside, route, shared, two_steps
from grouped_lm.heads.losses.kernels.tiles import KINDS, first_tile, padded, slot_step

LONGS = {"targets", "slots"}
INTEGERS = {
    "token_class", "token_slot", "classes", "counts", "borders", "tiles", "place", "ids", "starts", "work", "groups"
}  # fmt: skip
OF_PRODUCTS = {"columns", "errors", "table", "d_products"}
NUMBERS = {"n_rows", "n_single", "n_group", "n_block", "n_column", "n_slot", "width", "vocab_size", "span", "numbers"}
INSTRUCTIONS = (("tcgen05.mma", "tcgen05"), ("wgmma.mma", "wgmma"), ("mma.sync", "mma"))


def type_of(name: str, kernel: str, half: str) -> str:
    if name in NUMBERS:
        return "i32"
    if name in INTEGERS or (name == "slots" and kernel in ("count_rows", "inside_rows", "table_rows")):
        return "*i32"
    if name in LONGS:
        return "*i64"
    exact = kernel == "slot_rows" and name == "errors"
    return f"*{half}" if name in OF_PRODUCTS and not exact else "*i1" if name == "hits" else "*fp32"


def compiled(kernel, constants: dict, half: str, capability: int, warps: int = 4, stages: int = 3) -> dict:
    name, arguments = kernel.fn.__name__, kernel.arg_names
    types = {a: "constexpr" if a in constants else type_of(a, name, half) for a in arguments}
    aligned = {(i,): [["tt.divisibility", 16]] for i, a in enumerate(arguments) if types[a][0] == "*" or a == "width"}
    source = ASTSource(kernel, types, {(arguments.index(a),): v for a, v in constants.items()}, aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    found = {"shared": made.metadata.shared} | assembled(made.asm["ptx"], capability)
    found["products"] = next((short for text, short in INSTRUCTIONS if text in made.asm["ptx"]), "fma")
    return found


def assembled(ptx: str, capability: int) -> dict:
    folder = Path(nvidia.__file__).parent / "bin"
    blackwell = folder / "ptxas-blackwell"
    assembler = blackwell if capability >= 90 and blackwell.exists() else folder / "ptxas"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "kernel.ptx")
        path.write_text(ptx)
        arch = f"sm_{capability}" + ("a" if capability >= 90 else "")
        command = [assembler, "-v", f"-arch={arch}", path, "-o", path.with_suffix(".cubin")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    return {"registers": int(registers[1]), "spilled": int(spilled[1])}


def kernels_of(capability: int, width: int, dtype: torch.dtype) -> list:
    """Each kernel with its constants, warps and stages, as a training step of the default and of `grouped` has them."""
    kind = {"KIND": KINDS[dtype], "PRECISION": "ieee", "WIDEN": False}
    step, bins = slot_step(width, divmod(capability, 10)), {"BINS": 512}
    warps = step.pop("num_warps")
    block = bins | {"ROWS": route.BLOCK_ROWS}
    scan = bins | {"AT_ONCE": 64, "BLOCKS": route.SCAN_NUMBERS // 64, "TILE": 16}
    flags = {"FIXED": True, "WEIGHTED": False, "KEEP": True}
    parts = step | kind
    found = [
        (route.count_rows, block | {"LOOK_UP": True}, 4, 3),
        (route.scan_counts, scan, 4, 3),
        (route.place_rows, block, 4, 3),
        (first.class_columns, {"WIDTH": min(128, padded(width)), "MEMBERS": 16}, 4, 3),
        (inside.inside_rows, parts | bins | {"HITS": False, "KEEP": True, "WEIGHTED": False}, warps, 2),
        (inside.table_rows, parts | {"WEIGHTED": False, "SCALED": True, "SPLITS": 8}, warps, 2),
        (two_steps.sum_losses, {"MEAN": True, "ROWS": two_steps.SUM_ROWS}, 8, 3),
        (two_steps.scale_states, {"BLOCK": 1024}, 4, 3),
        (two_steps.sum_splits, {"SCALED": True, "SPLITS": 8, "WIDTH": 256}, 4, 3),
        (shared.group_sums, {"PRODUCTS": True, "ROWS": 16, "NUMBERS": 128}, 4, 3),
    ]
    slots = shared.slot_tile(224)
    slot_warps = slots.pop("num_warps")
    found.append((shared.slot_rows, slots | kind | {"KEEP": True}, slot_warps, 2))
    tile = first_tile(width, dtype, divmod(capability, 10))
    if tile is None:
        return [*found, (first.first_errors, flags | {"COLUMNS": 512}, 4, 3)]
    rows = {"ROWS": tile.rows, "COLUMNS": tile.columns, "PADDED": padded(width), "WIDTH": step["WIDTH"]} | kind
    columns = {"ROWS": 32, "COLUMNS": 64, "WIDTH": step["WIDTH"], "WEIGHTED": False} | kind
    return [*found, (first.first_rows, rows | flags, tile.warps, 2), (first.first_columns, columns, 4, 2)]


def main(capability: str, width: str, half: str, *only: str) -> dict:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[half]
    table = {}
    for kernel, constants, warps, stages in kernels_of(int(capability), int(width), dtype):
        if not only or kernel.fn.__name__ in only:
            table[kernel.fn.__name__] = compiled(kernel, constants, half, int(capability), warps, stages)
    return table


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
