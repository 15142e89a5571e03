"""Cases of runs: a text that changed, stop and resume, another run's weights, the largest batch, short validations."""

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import yaml

import grouped_lm
from grouped_lm.runs.checkpoint import write_checkpoint


@pytest.fixture
def own_text(texts, workdir):
    """Overrides for copies of the text that a test may change."""
    for split in ("train", "valid"):
        shutil.copy(texts[split], f"{split}.txt")
    return ["data.train=train.txt", "data.valid=valid.txt"]


def fails_in_one_line(outcome, code, *parts):
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("gvc: error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


def test_case_C5_a_finished_run_whose_text_changed_is_refused(gvc, tiny, own_text):
    words = ["train", *tiny, *own_text, "head=dense", "train.max_steps=1", "hydra.run.dir=run"]
    assert gvc(*words).code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*.json")}
    for split in ("train", "valid"):
        text = Path(f"{split}.txt")
        original, size = text.read_text(), text.stat().st_size
        text.write_text(original.replace("Once", "Never"))
        changed = f"data.{split} {text.absolute()} ({size:,} -> {text.stat().st_size:,} bytes, sha256 "
        fails_in_one_line(gvc(*words), 6, "run was trained with other files", changed, "give another hydra.run.dir")
        fails_in_one_line(gvc(*words, "train.max_steps=2"), 6, "train.max_steps: 1 -> 2")
        text.write_text(original)
    assert {path: path.read_bytes() for path in Path("run").rglob("*.json")} == before
    assert gvc(*words).code == 0
    Path("run/inputs.json").write_text('{"data.train": {"files": [3]}}')
    fails_in_one_line(gvc(*words), 3, "run/inputs.json is damaged")


def test_case_C5_a_tokenizer_that_changes_the_text_is_refused(gvc, tiny, own_text):
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=299, special_tokens=["[UNK]"], show_progress=False)
    model.train_from_iterator([Path("train.txt").read_text(encoding="utf-8")], trainer)
    model.save("other.json")
    words = ["tokenizer=bpe", "tokenizer.vocab_size=300", "tokenizer.file=other.json"]
    fails_in_one_line(gvc("train", *tiny, *own_text, *words), 3, "other.json is no byte-level BPE")


def test_case_C5_files_of_a_folder_and_the_tokenizer_file(gvc, tiny, own_text):
    Path("more").mkdir()
    shutil.move("train.txt", "more/a.txt")
    assert gvc("train", *tiny, *own_text, "data.train=more", "tokenizer=bpe", "tokenizer.vocab_size=300",
               "train.max_steps=1", "hydra.run.dir=first").code == 0  # fmt: skip
    shutil.copy("first/tokenizer.json", "own.json")
    words = ["train", *tiny, *own_text, "data.train=more", "tokenizer=bpe", "tokenizer.vocab_size=300"]
    words += ["tokenizer.file=own.json", "train.max_steps=1", "hydra.run.dir=run"]
    assert gvc(*words).code == 0
    shutil.copy("valid.txt", "more/b.txt")
    fails_in_one_line(gvc(*words), 6, f"data.train {Path('more/b.txt').absolute()} (is new)")
    shutil.move("more/b.txt", "more/0.txt")
    shutil.move("more/a.txt", "b.txt")
    fails_in_one_line(gvc(*words), 6, f"data.train {Path('more/0.txt').absolute()} (")
    Path("more/0.txt").unlink()
    shutil.move("b.txt", "more/renamed.txt")
    assert gvc(*words).code == 0  # the same text under another name
    Path("own.json").write_text(Path("own.json").read_text() + "\n")
    fails_in_one_line(gvc(*words), 6, f"tokenizer.file {Path('own.json').absolute()} (")


def test_case_C5_an_unfinished_run_and_a_sweep(gvc, tiny, own_text):
    Path("own/sweep").mkdir(parents=True)
    Path("own/sweep/one.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0\n"
    )
    words = ["sweep", "one", "--config-dir", "own", *tiny, *own_text, "head=dense", "train.max_steps=1"]
    assert gvc(*words).code == 0
    results = {path: path.read_bytes() for path in Path("runs/one").glob("*/result.json")}
    assert len(results) == 1
    Path("valid.txt").write_text(Path("train.txt").read_text())
    for more in ([], ["--dry-run"]):
        fails_in_one_line(gvc(*words, *more), 6, "runs/one/seed=0 was trained with", "data.valid")
    assert all(path.read_bytes() == content for path, content in results.items())
    job = json.loads(Path("runs/one/seed=0/result.json").read_text())
    Path("runs/one/seed=0/result.json").write_text(json.dumps(job | {"state": "interrupted"}))
    run = ["train", *tiny, *own_text, "head=dense", "train.max_steps=1", "seed=0", "hydra.run.dir='runs/one/seed=0'"]
    fails_in_one_line(gvc(*run), 6, "runs/one/seed=0 was trained with", "data.valid")


@contextlib.contextmanager
def stopped_in_step(step, number):
    """Send this process a signal while it reads the batch of a step."""
    from grouped_lm.data.loader import TrainBatches

    original = TrainBatches.batch

    def batch(self, index):
        if index == step:
            os.kill(os.getpid(), number)
        return original(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainBatches, "batch", batch)
        yield


def weights(run, step):
    return (Path(run) / "checkpoints" / f"step-{step:08d}" / "state.safetensors").read_bytes()


def test_case_U1_a_stop_prints_the_command_that_goes_on(gvc, tiny):
    words = ["train", *tiny, "head=dense", "model.dropout=0.1"]
    assert gvc(*words, "hydra.run.dir=whole").code == 0
    for number, code, step in ((signal.SIGINT, 130, 3), (signal.SIGTERM, 75, 5)):
        with stopped_in_step(step, number):
            stopped = gvc(*words, "hydra.run.dir='my run'") if step == 3 else gvc("resume", "my run")
        assert stopped.code == code
        command = f"stopped at step {step + 1} and saved; to continue:\ngvc resume "
        folder = shlex.split(stopped.err.split(command)[1].splitlines()[0])[0]
        assert Path(folder).samefile("my run")
    resumed = gvc("resume", folder, "train.log_every_steps=1", "train.device=cpu", "tracking=none")
    assert resumed.code == 0
    assert resumed.run_dir.samefile("my run")
    assert weights("my run", 8) == weights("whole", 8)
    before = {path: path.read_bytes() for path in Path("my run").rglob("*") if path.is_file()}
    finished = gvc("resume", "my run")
    assert finished.code == 0
    command = "gvc train 'init_from=my run' train.max_steps=16"
    assert finished.err == f"gvc: my run is complete: 8 steps are done. For more steps:\n{command}\n"
    assert before == {path: path.read_bytes() for path in Path("my run").rglob("*") if path.is_file()}


def test_case_U1_resume_refuses_what_would_be_another_run(gvc, tiny, own_text):
    assert gvc("train", *tiny, *own_text, "head=dense", "train.max_steps=1", "hydra.run.dir=run").code == 0
    for words, change in (
        (["train.max_steps=5", "train.device=cpu"], "train.max_steps: 1 -> 5)"),
        (["head=grouped"], "head.name: dense -> grouped)"),
        (["data.train=valid.txt"], "data.train: train.txt -> valid.txt"),
        (["init_from=run"], "init_from: None -> run"),
    ):
        refused = gvc("resume", "run", *words)
        fails_in_one_line(refused, 2, f"({change}", f"gvc train init_from=run {' '.join(words)}\n")
    fails_in_one_line(gvc("resume", "run", "train.max_stpes=5"), 2, "did you mean train.max_steps?")
    fails_in_one_line(gvc("resume", "nowhere"), 3, "nowhere is not a run folder")
    fails_in_one_line(gvc("resume", "run", "hydra.run.dir=other"), 2, "hydra.run.dir=other is for new runs")


def test_a_run_whose_text_was_moved_goes_on_with_the_new_path(gvc, tiny, own_text, workdir):
    words = ["train", *tiny, *own_text, "head=dense", "train.max_steps=4"]
    assert gvc(*words, "hydra.run.dir=whole").code == 0
    with stopped_in_step(2, signal.SIGTERM):
        assert gvc(*words, "hydra.run.dir=cut").code == 75
    Path("texts").mkdir()
    for name in ("train.txt", "valid.txt"):
        Path(name).rename(f"texts/{name}")
    moved = [f"data.{split}={workdir}/texts/{split}.txt" for split in ("train", "valid")]
    swapped = gvc("resume", "cut", "data.train=texts/valid.txt", moved[1])
    fails_in_one_line(swapped, 2, "this is another run (data.train: train.txt -> texts/valid.txt)")
    outcome = gvc("resume", "cut", *moved)
    assert outcome.code == 0, outcome.err
    assert weights("cut", 4) == weights("whole", 4)
    assert json.loads(Path("cut/config.json").read_text())["data"]["train"] == f"{workdir}/texts/train.txt"


def test_case_U11_completion_of_run_folders(workdir):
    from grouped_lm.cli.options import complete_run

    for run in ("runs/one", "runs/sweep/seed=0", "elsewhere/two"):
        Path(run).mkdir(parents=True)
        Path(run, "config.json").write_text("{}")
    Path("runs/empty").mkdir()
    assert complete_run("") == complete_run("runs/") == ["runs/one", "runs/sweep/seed=0"]
    assert complete_run("elsewhere/t") == ["elsewhere/two"]


def validation_loss(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads((outcome.run_dir / "result.json").read_text())["val/loss"]


def test_init_from_starts_with_the_weights_of_another_run(gvc, tiny, own_text):
    text = ["data=text", *own_text]
    common = ["train.micro_batch_size=2", "train.threads=1", "train.device=cpu", "tracking=none", "seed=1"]
    first = gvc("train", *tiny, *own_text, "head=grouped", "grouping=frequency", "train.max_steps=8",
                "hydra.run.dir=first")  # fmt: skip
    trained = validation_loss(first)
    words = ["train", "init_from=first", *common, "optim.lr=1e-12", "train.max_steps=4"]
    same = gvc(*words, "hydra.run.dir=same")  # the model, head, grouping and text of the first
    assert "gvc: model, head, grouping, data, tokenizer as in first (init_from)\n" in same.err
    assert validation_loss(same) == pytest.approx(trained, abs=1e-5)
    assert json.loads(Path("same/result.json").read_text())["init_from"] == "first"
    assert json.loads(Path("same/config.json").read_text())["init_from"] == "first"
    assert json.loads(Path("same/inputs.json").read_text())["init_from"]["step"] == 8
    # other text has other counts; the grouping is that of the weights
    other = gvc(*words, "data.train=valid.txt", "data.valid=train.txt", "hydra.run.dir=other")
    assert validation_loss(other) < trained + 1
    # stopped and resumed, the first one's folder gone
    with stopped_in_step(2, signal.SIGTERM):
        assert gvc(*words, "hydra.run.dir=cut").code == 75
    Path("first").rename("gone")
    assert gvc("resume", "cut").code == 0
    assert weights("cut", 4) == weights("same", 4)
    Path("gone").rename("first")
    assert gvc(*words, "hydra.run.dir=cut").code == 0
    fails_in_one_line(gvc("train", *tiny, *text, "head=grouped", "grouping=frequency", "hydra.run.dir=same"), 6,
                      "init_from: first -> None")  # fmt: skip


def test_init_from_refuses_other_weights(gvc, tiny, own_text):
    tokenizer = ["tokenizer=bpe", "tokenizer.vocab_size=300"]
    assert gvc("train", *tiny, *own_text, *tokenizer, "head=dense", "train.max_steps=1", "hydra.run.dir=run").code == 0
    words = ["train", "tracking=none", "train.device=cpu", "init_from=run"]
    for word, change in (
        ("head=grouped", "head.name: dense -> grouped"),
        ("model.n_layer=3", "model.n_layer: "),
        ("tokenizer.vocab_size=301", "tokenizer.vocab_size: 300 -> 301"),
        ("tokenizer=bytes", "tokenizer.name: bpe -> bytes"),
    ):
        refused = gvc(*words, word)
        assert refused.err.splitlines()[:-1] == refused.err.splitlines()[:1]  # what was taken from the run
        assert refused.code == 2
        assert "init_from=run has other weights than this run needs (" in refused.err
        assert change in refused.err
    Path("train.txt").write_text("zebra quagga okapi " * 400)
    refused = gvc(*words, *tokenizer, "data=text", "data.train=train.txt", "data.valid=train.txt")
    assert refused.code == 2
    assert "another tokenizer than this run: give tokenizer.file=run/tokenizer.json" in refused.err
    assert not Path("runs").exists()
    fails_in_one_line(gvc("train", "init_from=nowhere"), 3, "nowhere is not a run folder")
    assert gvc(*words, "train.max_steps=1").code == 0  # other text, the run's own tokenizer


def test_a_run_from_another_with_a_bpe_goes_on_without_that_one(gvc, tiny, own_text):
    tokenizer = ["tokenizer=bpe", "tokenizer.vocab_size=300"]
    assert gvc("train", *tiny, *own_text, *tokenizer, "head=dense", "train.max_steps=1", "hydra.run.dir=a").code == 0
    words = ["train", "tracking=none", "train.device=cpu", "train.threads=1", "train.micro_batch_size=2", "init_from=a"]
    words += ["train.max_steps=4"]
    assert gvc(*words, "hydra.run.dir=whole").code == 0
    with stopped_in_step(2, signal.SIGTERM):
        assert gvc(*words, "hydra.run.dir=cut").code == 75
    shutil.rmtree("a")
    outcome = gvc("resume", "cut")
    assert outcome.code == 0, outcome.err
    assert weights("cut", 4) == weights("whole", 4)
    config = [json.loads(Path(run, "config.json").read_text()) for run in ("cut", "whole")]
    assert config[0]["tokenizer"] == config[1]["tokenizer"]
    assert config[0]["tokenizer"]["file"] == "a/tokenizer.json"
    inputs = json.loads(Path("cut/inputs.json").read_text())["tokenizer.file"]["files"]
    assert (
        inputs[0]["sha256"] == json.loads(Path("whole/inputs.json").read_text())["tokenizer.file"]["files"][0]["sha256"]
    )
    assert gvc("resume", "cut").code == 0  # complete


def test_init_from_counts_is_refused_with_the_reason(gvc, tiny):
    assert gvc("train", *tiny, "head=kneser_ney", "train.max_steps=1", "hydra.run.dir=run").code == 0
    refused = gvc("train", "init_from=run", "tracking=none", "train.device=cpu", "head=dense", "hydra.run.dir=x")
    assert refused.code == 5
    line = "gvc: error: init_from=run counted n-grams and has no weights to start from: leave init_from out"
    assert refused.err.splitlines()[-1] == line


TRACKING = {"WANDB_PROJECT": "mine", "WANDB_ENTITY": "team", "WANDB_RUN_GROUP": "group", "WANDB_MODE": "disabled"}


def test_case_C2_wandb_variables_count_unless_a_key_is_given(gvc, monkeypatch):
    def tracking(*words):
        shown = gvc("train", *words, "--cfg", "job", "--resolve", "--package", "tracking").out
        return {key: yaml.safe_load(shown)[key] for key in ("project", "entity", "group", "mode")}

    usual = {"project": "gvc", "entity": None, "group": None, "mode": "offline"}
    assert tracking() == usual
    for name in TRACKING:
        monkeypatch.setenv(name, "")
    assert tracking() == usual
    for name, value in TRACKING.items():
        monkeypatch.setenv(name, value)
    assert list(tracking().values()) == ["mine", "team", "group", "disabled"]
    keys = ["tracking.mode=offline", "tracking.project=p", "tracking.entity=null", "tracking.group=g"]
    assert list(tracking("tracking=wandb", *keys).values()) == ["p", None, "g", "offline"]
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert tracking()["mode"] == "offline"
    assert tracking("tracking=none")["mode"] == "disabled"
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    fails_in_one_line(gvc("train"), 2, "tracking.mode must be one of ", "got 'sometimes'")


def test_case_C2_folder_name_and_tags(gvc, tiny, monkeypatch):
    for name, value in {"WANDB_DIR": "made/here", "WANDB_NAME": "a name", "WANDB_TAGS": "one, two"}.items():
        monkeypatch.setenv(name, value)
    words = ["train", *tiny, "tracking=wandb", "head=dense", "train.max_steps=1", "hydra.run.dir=run"]
    assert gvc(*words).code == 0
    (folder,) = Path("made/here/wandb").glob("offline-run-*")
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (start,) = (row["run"] for row in map(json.loads, done.stdout.splitlines()) if row["type"] == "run")
    assert start["display_name"] == "a name"
    assert {"one", "two"} < set(start["tags"])
    assert not Path("run/wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert gvc(*words[:-1], "hydra.run.dir=other").code == 0
    assert gvc("eval", "run", "--samples", "0").code == 0
    assert [*Path("made/here/wandb").glob("offline-run-*")] == [folder]


def test_case_U12_limits_of_the_validation(gvc, tiny, own_text):
    words = ["train", *tiny, *own_text, "head=dense", "train.max_steps=4", "train.eval_every_steps=2"]
    limits = ["data.max_valid_tokens=900", "eval.max_tokens=100"]
    outcome = gvc(*words, *limits, "hydra.run.dir=run")
    assert outcome.code == 0
    total = len(Path("valid.txt").read_text().replace("\n<|endoftext|>\n", "E"))
    assert f"validation: the first 900 of {total:,} tokens (data.max_valid_tokens)\n" in outcome.err
    assert f"validation on the way: the first 100 of {total:,} tokens (eval.max_tokens)\n" in outcome.err
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["val/tokens"] for row in rows if "val/loss" in row] == [100, 900]
    result = json.loads(Path("run/result.json").read_text())
    assert result["val/tokens"] == 900
    # it is the loss of exactly these tokens: 900 bytes of the text, of which some are ends
    start = Path("valid.txt").read_text().replace("\n<|endoftext|>\n", "E")[:900]
    n_bytes = len(start) - start.count("E")
    assert result["val/bits_per_byte"] == pytest.approx(result["val/loss"] * 900 / n_bytes / math.log(2))
    evaluated = json.loads(gvc("eval", "run", "--samples", "0", "--json").out)
    assert evaluated["val/tokens"] == 900  # eval.max_tokens is that of the call
    assert evaluated["val/loss"] == pytest.approx(result["val/loss"], abs=1e-6)
    assert f"the first 900 of {total:,} tokens of the text" in evaluated["reading"]["val"]
    fewer = gvc("eval", "run", "--samples", "0", "eval.max_tokens=100")
    assert f"the first 100 of {total:,} tokens of the text" in " ".join(fewer.out.split())
    fails_in_one_line(gvc(*words, "hydra.run.dir=run"), 6, "data.max_valid_tokens: 900 -> None")
    fails_in_one_line(gvc(*words, "data.max_valid_tokens=0"), 2, "data.max_valid_tokens must be in [1, inf), got 0")
    fails_in_one_line(gvc(*words, "eval.max_tokens=-3"), 2, "eval.max_tokens must be in [1, inf), got -3")
    # free, and no limit: the figures of the whole text
    assert gvc("train", *tiny, *own_text, "head=dense", "train.max_steps=4", "data.max_valid_tokens=1000000",
               "hydra.run.dir=whole").code == 0  # fmt: skip
    assert "val/tokens" not in json.loads(Path("whole/result.json").read_text())


def test_micro_batch_size_auto_keeps_the_batch_and_the_figures(gvc, tiny):
    words = ["train", *tiny, "head=dense", "train.max_steps=4"]
    chosen = gvc(*words, "train.grad_accum_steps=3", "train.micro_batch_size=auto", "hydra.run.dir=auto")
    assert chosen.code == 0
    assert "gvc: auto: train.micro_batch_size=6 train.grad_accum_steps=1; a step needs 0.0" in chosen.err
    assert "were predicted" not in chosen.err  # measured as predicted
    saved = json.loads(Path("auto/config.json").read_text())
    assert [saved["train"][key] for key in ("micro_batch_size", "grad_accum_steps")] == [6, 1]
    assert gvc(*words, "train.micro_batch_size=6", "hydra.run.dir=hand").code == 0
    assert weights("auto", 4) == weights("hand", 4)
    text = next(word for word in tiny if word.startswith("data.valid="))  # a key of this run, not of all
    line = "train.micro_batch_size=auto is for new runs, and this one has its size"
    fails_in_one_line(gvc("eval", "auto", "train.micro_batch_size=auto", text), 2, line)
    fails_in_one_line(gvc("eval", "auto", "train.threads=x", text), 2, "train.threads takes a whole number, got x")
    fails_in_one_line(gvc(*words, "train.micro_batch_size=auto", "hydra.run.dir=auto"), 6, "train.batch: 6 -> 2")
    # it goes on with the size that it has, whatever would fit now
    with stopped_in_step(2, signal.SIGTERM):
        words += ["train.grad_accum_steps=3", "train.micro_batch_size=auto", "hydra.run.dir=cut"]
        assert gvc(*words).code == 75
    saved = json.loads(Path("cut/config.json").read_text())
    saved["train"] |= {"micro_batch_size": 3, "grad_accum_steps": 2}
    Path("cut/config.json").write_text(json.dumps(saved))
    assert gvc(*words).code == 0
    assert json.loads(Path("cut/config.json").read_text())["train"]["micro_batch_size"] == 3
    fails_in_one_line(gvc(*words[:-3], "train.micro_batch_size=auto", "train.devices=4"), 2, "shared by 4 processes")


def test_micro_batch_size_auto_is_kept_by_a_mirror_and_fits_the_processes(gvc, tiny):
    words = ["train", *tiny, "head=dense", "train.max_steps=6", "train.grad_accum_steps=3", "train.mirror=copies"]
    words += ["train.micro_batch_size=auto", "hydra.run.dir=run"]
    with stopped_in_step(2, signal.SIGTERM):
        assert gvc(*words).code == 75
    # as if it had begun where less memory was free
    newest = max(Path("copies").glob("*/step-*"))
    files = {path.name: path.read_bytes() for path in newest.iterdir() if path.name != "manifest.json"}
    state = json.loads(files["state.json"])
    assert state["micro_batch"] == {"micro_batch_size": 6, "grad_accum_steps": 1}
    state["micro_batch"] = {"micro_batch_size": 3, "grad_accum_steps": 2}
    write_checkpoint(newest.parent, int(newest.name[5:]), files | {"state.json": json.dumps(state).encode()}, 2)
    shutil.rmtree("run")
    with stopped_in_step(8, signal.SIGTERM):  # two micro-batches a step now
        assert gvc(*words).code == 75
    saved = json.loads(Path("run/config.json").read_text())["train"]
    assert [saved["micro_batch_size"], saved["grad_accum_steps"]] == [3, 2]
    # 3 windows are no equal parts for 2 processes
    fails_in_one_line(gvc("resume", "run", "train.devices=2"), 2, "cannot be shared by 2 processes")
    assert gvc("resume", "run").code == 0


def test_case_C7_another_checkout_than_the_installed_package_is_said(gvc, tiny, workdir, monkeypatch):
    assert not any(check["what"] == "checkout" for check in json.loads(gvc("doctor", "--json").out))
    Path("tree/grouped_lm").mkdir(parents=True)
    Path("tree/grouped_lm/config.py").touch()
    Path("tree/pyproject.toml").write_text('[project]\nname = "grouped-lm"\n')
    Path("tree/docs").mkdir()
    monkeypatch.chdir("tree/docs")
    package = Path(grouped_lm.__file__).parent
    line = f"{workdir}/tree is not what runs here, but {package}: `pip install -e {workdir}/tree` makes it so"
    assert f"checkout: {line}\n" in gvc("doctor").out
    trained = gvc("train", *tiny, "head=dense", "train.max_steps=1", "hydra.run.dir=run")
    assert f"gvc: warning: {line}\n" in trained.err
    assert json.loads(Path("run/environment.json").read_text())["other_checkout"] == line
