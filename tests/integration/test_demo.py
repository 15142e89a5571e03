"""`gvc demo` trains three heads on equal tokens, and says in one sentence what was measured."""

import json
import re
from pathlib import Path

SMALL = [
    "model=debug",
    "tokenizer=bytes",
    "train.max_steps=8",
    "optim.warmup_steps=1",
    "data.num_train_stories=40",
    "data.num_valid_stories=5",
]


def test_the_demo_chooses_its_heads(gvc, workdir):
    for word in ("head=dense", "variant=trim-bias", "experiment=main_job"):
        outcome = gvc("demo", *SMALL, word)
        assert outcome.code == 2
        assert f"{word}: gvc demo compares three heads" in outcome.err
    for word, what in (("hydra.run.dir=x", "makes a folder in runs/"), ("data=text", "generates its text")):
        outcome = gvc("demo", *SMALL, word)
        assert outcome.code == 2
        assert f"{word}: gvc demo {what} itself: leave it out" in outcome.err
    assert not Path("runs").exists()


def test_the_demo_compares_three_heads_and_names_the_next_command(gvc):
    outcome = gvc("demo", *SMALL, "train.threads=1")
    assert outcome.code == 0, outcome.err
    results = {path.parent.name: json.loads(path.read_text()) for path in Path("runs").glob("demo-*/*/result.json")}
    assert set(results) == {"dense", "grouped", "shortlist"}
    assert len({result["trainer/tokens"] for result in results.values()}) == 1
    assert all(name in outcome.out for name in ("A story of dense:", "A story of the paper's head:"))
    sentence, _, _, command = outcome.out.rstrip().splitlines()[-4:]
    found = re.search(r"is ([\d.]+) with the default head, ([\d.]+) with dense and ([\d.]+) with the paper's", sentence)
    assert found is not None, sentence
    expected = [results[name]["val/perplexity"] for name in ("shortlist", "dense", "grouped")]
    assert [float(value) for value in found.groups()] == [round(value, 1) for value in expected]
    assert command == "  gvc train data=text data.train=train.txt data.valid=valid.txt"
