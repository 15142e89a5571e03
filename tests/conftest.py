"""A small text, a cache of its own, one thread, and `gvc` called as a user calls it, in this process."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # two test workers on two cores; and the same bits everywhere
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: kernels run without a GPU
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_SILENT", "true")

STORY = "Once there was a {0}. The {0} had a {1} and liked to {2}. One day the {1} was lost.\nThen it was found."
THINGS = ["cat", "dog", "frog", "bird", "boy", "girl", "hen", "fox", "bear", "ant", "cow"]
TOYS = ["ball", "kite", "drum", "boat", "hat", "doll", "cup"]
DEEDS = ["run", "sing", "jump", "dig", "swim"]


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> dict[str, str]:
    """Paths of a training and a validation text of a few kilobytes."""
    folder = tmp_path_factory.mktemp("texts")
    stories = [STORY.format(a, b, c) for a in THINGS for b in TOYS for c in DEEDS]
    paths = {}
    for name, part in (("train", stories[: len(stories) * 4 // 5]), ("valid", stories[len(stories) * 4 // 5 :])):
        path = folder / f"{name}.txt"
        path.write_text("\n<|endoftext|>\n".join(part) + "\n<|endoftext|>\n", encoding="utf-8")
        paths[name] = str(path)
    return paths


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    """A cache of prepared data that the tests of one session share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def workdir(tmp_path, monkeypatch, cache_dir) -> Path:
    """An empty current folder, with the session's cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GVC_CACHE_DIR", str(cache_dir))
    monkeypatch.delenv("GVC_DEBUG", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def tiny(texts) -> list[str]:
    """Overrides of a run that takes a second."""
    return [
        "model=debug",
        "tokenizer=bytes",
        "data=text",
        f"data.train={texts['train']}",
        f"data.valid={texts['valid']}",
        "train.max_steps=8",
        "train.micro_batch_size=2",
        "train.log_every_steps=2",
        "train.device=cpu",
        "train.threads=1",
        "tracking=none",
    ]


@dataclass
class Outcome:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def run_dir(self) -> Path:
        """The run folder: the last line on stdout."""
        return Path(self.out.splitlines()[-1])


@pytest.fixture
def gvc(capfd, workdir):
    """Call `gvc WORDS...` in an empty folder."""
    from grouped_lm.cli.main import main

    def call(*words: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        captured = capfd.readouterr()
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    return call
