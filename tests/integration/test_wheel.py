"""What a wheel contains."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
    kinds = (".yaml", ".mplstyle", ".j2", ".json", ".txt", ".md", ".safetensors")
    shipped = {name.removeprefix("grouped_lm/") for name in names if name.endswith(kinds) and ".dist-info" not in name}
    places = {ROOT / "grouped_lm": ROOT / "grouped_lm", ROOT / "cli": ROOT, ROOT / "conf": ROOT}
    files = {str(p.relative_to(top)) for part, top in places.items() for p in part.rglob("*") if p.name.endswith(kinds)}
    assert shipped == files
    modules = {name.removeprefix("grouped_lm/") for name in names if name.endswith(".py")}
    assert {str(p.relative_to(ROOT)) for p in (ROOT / "cli").rglob("*.py")} <= modules
    assert {str(p.relative_to(ROOT / "grouped_lm")) for p in (ROOT / "grouped_lm").rglob("*.py")} <= modules
    assert {"grouped_lm/py.typed", "grouped_lm/conf/__init__.py"} <= set(names)
