"""A pytest plugin that takes one line out of the product, in memory alone: MUTANT=name pytest -p mutants ...

Each mutant is a module, a text that stands in it, and what stands there instead.
"""

import importlib
import os

MUTANTS: dict[str, tuple[str, str, str, str]] = {
    "fsync": ("runs.checkpoint", "        os.fsync(descriptor)\n", "        pass\n", "test_save.py -k flushed"),
    "rename": (
        "runs.checkpoint",
        "os.rename(temporary, target)",
        "shutil.copytree(temporary, target)",
        "test_save.py -k flushed",
    ),
    "hash check": ("runs.checkpoint", 'digest.hexdigest() == entry["sha256"]', "True", "test_save.py -k some_damage"),
    "RNG restore": (
        "runs.train_state",
        "torch.set_rng_state(states[cpu])",
        "states[cpu]",
        "test_resume.py -k two_cells",
    ),
    "lock": (
        "runs.folder",
        'return hold_lock(self.path / ".lock", busy, LOCK_S)',
        "return __import__('contextlib').nullcontext()",
        "test_stop.py -k dead_holder",
    ),
    "padding-slot mask": (
        "heads.two_level",
        "table.masked_fill(self.padding, -torch.inf)",
        "table",
        "../unit/heads/test_heads.py -k exact_distribution",
    ),
    "two good ones kept": ("runs.checkpoint", "good += 1\n", "good += 2\n", "test_save.py -k last_two"),
    "check before the update": (
        "train.session",
        "if metrics.finite or metrics.overflowed:",
        "if True:",
        "test_stop.py -k nan",
    ),
}


def pytest_configure() -> None:
    name = os.environ.get("MUTANT")
    if not name:
        return
    room, old, new, _ = MUTANTS[name]
    module = importlib.import_module(f"grouped_lm.{room}")
    with open(module.__file__, encoding="utf-8") as file:  # noqa: PTH123
        source = file.read()
    assert old in source, f"{name}: the line to take out is not there"
    known = {key: value for key, value in vars(module).items() if isinstance(value, type)}
    exec(compile(source.replace(old, new), module.__file__, "exec"), vars(module))
    for key, before in known.items():  # who inherited before we came inherits the change
        after = vars(module)[key]
        for method in (name for name, value in vars(after).items() if callable(value) and after is not before):
            setattr(before, method, vars(after)[method])
