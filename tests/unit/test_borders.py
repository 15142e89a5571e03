"""The rooms and their doors: imports go downwards only, and some libraries live in one room."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEVELS = [
    {"errors"},
    {"config", "checkpoint", "clustering", "signals", "watchdog", "secret_values", "traffic", "world"},
    {
        "identity",
        "runtime",
        "grouping",
        "measure",
        "ranking",
        "slots",
        "live_bytes",
        "compare",
        "diagnose",
        "synthetic",
        "merge_order",
        "markdown",
    },
    {"heads", "plot_data", "devices"},
    {
        "compression",
        "data",
        "optim",
        "tracking",
        "train_state",
        "plot_parts",
        "step_figures",
        "interconnects",
        "theory",
    },
    {"models"},
    {"vocab_parallel"},
    {"run_folder", "display", "plots", "scoring", "parallel", "plan_exchange"},
    {"resume", "rows", "figures", "continuations", "plots_bench", "launch"},
    {"story_tasks"},
    {"evaluate", "generate", "report", "doctor", "sweep"},
    {"harness", "ladder"},
    {"sweep_display", "fake_step", "assess", "hf", "judge", "plots_ladder"},
    {"plan"},
    {"room", "plan_devices", "assess_tables"},
    {"plan_table"},
    {"train", "preflight"},
    {"worker", "bench"},
    {"reproduction"},
    {"dashboard"},
]
ONE_ROOM = {
    "matplotlib": {"grouped_lm/report/figures.py", "grouped_lm/report/style.py"},
    "triton": {f"grouped_lm/heads/kernels/{name}.py" for name in ("own_rows", "slot_loss", "tiles")},
    "wandb": {"grouped_lm/runs/tracking.py"},
    "typer": {"cli"},
    "hydra": {"cli"},
    "omegaconf": {"cli"},
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            if node.module == "grouped_lm":
                found |= {f"grouped_lm.{alias.name}" for alias in node.names}
    return found


def room(module: str) -> str:
    return module.split(".")[1]


MODULES = sorted((ROOT / "grouped_lm").rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards_only(path):
    own = path.relative_to(ROOT / "grouped_lm").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    level = {name: index for index, names in enumerate(LEVELS) for name in names}
    for module in imports_of(path):
        if module.startswith("grouped_lm.") and room(module) != own:
            assert level[room(module)] < level[own], f"{path.name} imports {module}"


@pytest.mark.parametrize("library", ONE_ROOM)
def test_a_library_lives_in_one_room(library):
    rooms = {
        str(path.relative_to(ROOT)) if path.parts[-2] != "cli" else "cli"
        for path in [*MODULES, *(ROOT / "cli").glob("*.py")]
        if any(module.split(".")[0] == library for module in imports_of(path))
    }
    assert rooms == ONE_ROOM[library]


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
        "allow_pickle=True",
        "trust_remote_code=True",
    )
    for path in [*MODULES, *(ROOT / "cli").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not [word for word in banned if word in text], path
        libraries = {module.split(".")[0] for module in imports_of(path)}
        assert not libraries & {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}, path
        calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        assert not [c for c in calls if c.func.id in ("eval", "exec")], path  # type: ignore[attr-defined]


def test_a_wheel_brings_one_top_level_package_and_its_configs(tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in tracked.split():
        if name.startswith(("grouped_lm/", "cli/", "conf/", "pyproject", "README")) and (ROOT / name).exists():
            (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", "./src"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"grouped_lm"}
    shipped = {name.removeprefix("grouped_lm/") for name in names if name.endswith(".yaml")}
    assert shipped == {str(p.relative_to(ROOT)) for p in (ROOT / "conf").rglob("*.yaml")}
    assert {"grouped_lm/py.typed", "grouped_lm/cli/main.py", "grouped_lm/conf/__init__.py"} <= set(names)
