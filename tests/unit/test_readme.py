"""The README's example of the library runs as it stands, and takes the head that `gvc train` takes."""

import re
from pathlib import Path

import torch

from grouped_lm.heads import ShortlistHead


def test_the_example_of_the_library_runs():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert isinstance(names["head"], ShortlistHead)
    assert names["head"].reserved.numel()
    assert torch.isfinite(names["hidden"].grad).all()
    assert names["wte"].weight.grad is not None
