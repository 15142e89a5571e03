"""The scripts behind figures of the log run with the code of today."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "runs" / "log" / "scripts"


def run_script(name: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / name), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_scripts_of_the_log_run(gvc, tiny, texts):
    words = ["train", *tiny, "prior=kneser_ney", "tracking=none", "optim.lr=1e-3"]
    for name in ("shortlist", "dense-bias"):
        assert gvc(*words, f"variant={name}", f"hydra.run.dir=runs/{name}").code == 0
    gates = run_script("gates.py", "runs/shortlist", texts["train"], texts["valid"], "--tokens", 600)
    assert len(gates.splitlines()) == 9
    assert "gate of the run" in gates
    parts = run_script("loss_parts.py", "runs/shortlist", "runs/dense-bias", texts["valid"], "--windows", 2)
    assert "inside groups" in parts
