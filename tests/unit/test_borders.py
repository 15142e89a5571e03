"""Rules about the source text: where libraries are used, no pickles, few files at the top, short functions.

The layers of imports are in `.importlinter`; `make check` runs them.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OWNERS = {
    "matplotlib": {"grouped_lm/report"},
    "triton": {"grouped_lm/heads/losses/kernels"},
    "wandb": {"grouped_lm/runs"},
    "typer": {"cli"},
    "hydra": {"cli/compose"},
    "omegaconf": {"cli/compose"},
}
"""The folders that may import a library."""
MODULES = sorted(path for part in ("grouped_lm", "cli") for path in (ROOT / part).rglob("*.py"))
UNIT_TESTS = sorted((ROOT / "tests" / "unit").rglob("*.py"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in [*MODULES, *UNIT_TESTS]}
TREES = {path: ast.parse(text) for path, text in TEXTS.items()}
MOST_LINES, LONG = 90, 60


def imports_of(path: Path) -> set[str]:
    """Return every absolute module that a file imports, at any place in it."""
    modules = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_used_in_one_place(library):
    users = {
        str(path.parent.relative_to(ROOT))
        for path in MODULES
        if any(module.split(".")[0] == library for module in imports_of(path))
    }
    assert users == OWNERS[library]


def test_nothing_loads_pickles_or_runs_text():
    banned = (
        "torch.load(",
        "torch.save(",
        "import pickle",
        "pickle.load",
        "yaml.load(",
        "unsafe_load",
        "np.load(",
        "torch.jit.load",
        "distributed.checkpoint",
    )
    for path in MODULES:
        assert not [word for word in banned if word in TEXTS[path]], path
        libraries = {module.split(".")[0] for module in imports_of(path)}
        assert not libraries & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}, path
        calls = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id in ("eval", "exec")], path
        keywords = {keyword.arg for call in calls for keyword in call.keywords}
        assert not keywords & {"allow_pickle", "trust_remote_code"}, path


def test_the_library_has_few_files_at_its_top():
    assert len(list((ROOT / "grouped_lm").glob("*.py"))) <= 6


def test_the_training_loop_fits_on_one_screen():
    path = ROOT / "grouped_lm" / "train" / "loop.py"
    imported = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.ImportFrom)]
    names = [name for node in imported if str(node.module).startswith("grouped_lm") for name in node.names]
    assert len(TEXTS[path].splitlines()) <= 60
    assert len(names) <= 12


def test_functions_are_short_or_say_why_not():
    """Fail for a function of over 90 lines, and for one of over 60 without a `# Long because ...` in it."""
    unexplained = []
    for path in MODULES:
        lines = TEXTS[path].splitlines()
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = lines[node.lineno - 1 : node.end_lineno]
                explained = any(line.strip().startswith("# Long because") for line in body)
                if len(body) > MOST_LINES or (len(body) > LONG and not explained):
                    unexplained.append(f"{path.relative_to(ROOT)}: {node.name} has {len(body)} lines")
    assert unexplained == []


def test_unit_tests_call_no_command_and_train_nothing():
    for path in UNIT_TESTS:
        modules = imports_of(path)
        assert not [m for m in modules if m.startswith(("grouped_lm.train", "grouped_lm.cli", "grouped_lm.jobs"))], path
        functions = [n for n in ast.walk(TREES[path]) if isinstance(n, ast.FunctionDef)]
        assert not [f.name for f in functions if "gvc" in {arg.arg for arg in f.args.args}], path
