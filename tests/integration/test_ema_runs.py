"""`optim.ema` in a run: it is resumed to the bit, and evaluation uses the average that validation used."""

import json
from pathlib import Path

import pytest

from grouped_lm.evaluate.documents import document_losses


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_resumed_run_has_the_same_average(gvc, tiny, texts, optim):
    words = ["train", *tiny, f"optim={optim}", "optim.ema=0.9", "train.max_steps=6", "tracking=none"]
    words += ["train.eval_every_steps=2", "train.checkpoint_every_steps=3"]
    losses = []
    for name in ("whole", "again"):
        assert gvc(*words, f"hydra.run.dir={name}").code == 0
        if name == "again":  # as if it had been stopped after step 3
            Path(name, "result.json").unlink()
            (last,) = Path(name, "checkpoints").glob("*6")
            last.rename(Path(name) / "gone")
            assert gvc(*words, f"hydra.run.dir={name}").code == 0
        rows = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses.append([row["val/loss"] for row in rows if "val/loss" in row])
    assert losses[0] == losses[1]
    assert document_losses(Path("whole"), Path(texts["valid"]), 6).loss == pytest.approx(losses[0][-1], rel=1e-6)
    assert gvc(*[w for w in words if "ema" not in w], "hydra.run.dir=plain").code == 0
    plain = json.loads(Path("plain/result.json").read_text(encoding="utf-8"))
    assert plain["val/loss"] != losses[0][-1]
