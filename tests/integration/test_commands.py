"""Every command, as a user types it, on a text of a few kilobytes."""

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grouped_lm.errors import ConfigError
from grouped_lm.evaluate.run import check_runs
from grouped_lm.heads import HEADS
from grouped_lm.reproduction.evidence import read_deciles
from grouped_lm.runs.load import load_config
from grouped_lm.runs.table import read_row


@pytest.fixture
def trained(gvc, tiny) -> Path:
    outcome = gvc("train", *tiny, "head.group_size=16")
    assert outcome.code == 0, outcome.err
    return outcome.run_dir


def test_a_run_explains_itself(trained, tiny):
    assert {p.name for p in trained.iterdir()} >= {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "result.json",
        "checkpoints",
        ".hydra",
    }
    result = json.loads((trained / "result.json").read_text())
    assert result["state"] == "complete"
    assert result["head"] == "shortlist"
    assert result["trainer/tokens"] == 8 * 2 * 64
    for key in (
        "config_hash",
        "val/loss",
        "val/perplexity",
        "val/bits_per_byte",
        "val/group_accuracy",
        "throughput/tokens_per_sec",
        "throughput/mfu",
        "time/step_ms",
        "memory/peak_tensor_gib",
        "memory/peak_rss_gib",
        "train/grad_norm",
        "params/total",
        "params/head",
    ):
        assert result[key], key
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["trainer/step"] for row in rows] == [2, 4, 6, 8, 8]
    assert all(
        row["train/loss"] == pytest.approx(row["train/loss_group"] + row["train/loss_token"]) for row in rows[:4]
    )


def test_stdout_is_the_run_folder_alone(gvc, tiny):
    outcome = gvc("train", *tiny, "hydra.run.dir=here")
    assert outcome.out.strip().endswith("here")
    assert len(outcome.out.splitlines()) == 1


def test_two_runs_of_one_second_have_their_own_folders(gvc, tiny):
    folders = {gvc("train", *tiny, "train.max_steps=1").run_dir for _ in range(2)}
    assert len(folders) == 2


def test_eval_agrees_with_training_and_takes_another_text(gvc, trained, texts):
    result = json.loads((trained / "result.json").read_text())
    figures = json.loads(gvc("eval", str(trained), "--json").out)
    assert figures["val/loss"] == pytest.approx(result["val/loss"], abs=1e-7)
    other = json.loads(gvc("eval", str(trained), f"data.valid={texts['train']}", "--json").out)
    assert other["val/tokens"] > figures["val/tokens"]
    assert "validation perplexity" in gvc("eval", str(trained)).out
    assert gvc("eval", str(trained), "optim.lrr=3").code == 2
    by_flag = json.loads(gvc("eval", str(trained), "--data", texts["train"], "--json", "--samples", "0").out)
    assert by_flag["val/loss"] == pytest.approx(other["val/loss"])
    own, theirs = (json.loads((trained / name).read_text()) for name in ("eval.json", "eval-train.json"))
    assert own["val/loss"] == pytest.approx(result["val/loss"], abs=1e-7)
    assert theirs["val/loss"] == by_flag["val/loss"]
    assert theirs["text"]["valid"] == texts["train"]
    assert gvc("eval", str(trained), "--stride", "65").code == 2


def test_eval_says_its_figures_where_it_cannot_record_them(gvc, trained, texts, monkeypatch):
    def refuse(path, value):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("grouped_lm.evaluate.run.write_json", refuse)
    Path("it's.txt").write_text(Path(texts["valid"]).read_text())
    outcome = gvc("eval", str(trained), "--data", "it's.txt", "--samples", "0")
    assert outcome.code == 4
    assert f"cannot read or write {trained}/eval-it's.json: Permission denied; give another place" in outcome.err
    assert "validation perplexity" in outcome.out


def test_a_terminal_without_the_characters_of_a_story(gvc, trained, monkeypatch):
    bare = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", bare)
    assert gvc("sample", str(trained), "--prompt", "Caf\xe9", "--max-new-tokens", "1").code == 0
    bare.flush()
    assert bare.buffer.getvalue().startswith(b"Caf?")  # type: ignore[attr-defined]


def test_eval_in_other_windows_than_trained(gvc, trained):
    assert gvc("eval", str(trained), "train.eval_batch_size=5").code == 0


def test_eval_of_a_frequency_grouping_needs_no_training_text(gvc, tiny, texts):
    run = gvc("train", *tiny, "grouping=frequency", "hydra.run.dir=run").run_dir
    trained = json.loads((run / "result.json").read_text())["val/loss"]
    figures = json.loads(gvc("eval", str(run), "data.train=gone.txt", "--json").out)
    assert figures["val/loss"] == pytest.approx(trained, abs=1e-7)


def test_eval_of_another_text_keeps_the_run_s_own_figures(gvc, tiny, trained, texts):
    assert gvc("eval", str(trained), "--samples", "0").code == 0
    own = (trained / "eval.json").read_bytes()
    others = [f"data.valid={texts['train']}"], ["eval.max_tokens=100"]
    for words in others:
        assert gvc("eval", str(trained), "--samples", "0", *words).code == 0
    for number, text in enumerate(("One day a cat sat. ", "Two dogs ran home. ")):
        Path(f"{number}").mkdir()
        Path(f"{number}/same.txt").write_text(text * 20, encoding="utf-8")
        assert gvc("eval", str(trained), "--samples", "0", "--data", f"{number}/same.txt").code == 0
    assert gvc("eval", str(trained), "--samples", "0", "--stride", "16").code == 0
    assert gvc("eval", str(trained), "--samples", "0", "train.dtype=bfloat16").code == 0
    assert gvc("eval", str(trained), "--samples", "0", "data.valid=[0/*.txt,1/same.txt]").code == 0
    assert (trained / "eval.json").read_bytes() == own
    assert (trained / "eval-valid-stride-16.json").exists()
    assert (trained / "eval-valid-bfloat16.json").exists()
    assert (trained / "eval-_-same.json").exists()
    assert len(list(trained.glob("eval-same*.json"))) == 2
    assert len(list(trained.glob("eval-*.json"))) == 7


def test_eval_of_two_texts_fails_before_it_scores(gvc, tiny, trained, texts, workdir):
    other = gvc("train", *tiny, f"data.valid={texts['train']}", "hydra.run.dir=other").run_dir
    refused = gvc("eval", str(trained), str(other), "--samples", "0")
    assert refused.code == 2
    assert "read other tokens: give both the same text, --data FILE" in refused.err
    with pytest.raises(ConfigError, match="read other tokens"):
        check_runs([trained, other], [load_config(trained), load_config(other)])
    compared = " ".join(gvc("diff", str(trained), str(other)).out.split())
    assert f"gvc eval {trained} {other} --data FILE measures" in compared
    for path in (other / "checkpoints").iterdir():
        shutil.rmtree(path)
    assert "other has no checkpoint yet: train it first" in gvc("eval", str(trained), str(other)).err


def test_figures_of_an_earlier_step_are_not_those_of_the_run(gvc, trained):
    assert gvc("eval", str(trained), "--samples", "1").code == 0
    assert "sample/distinct_1" in read_row(trained)
    evaluated = json.loads((trained / "eval.json").read_text())
    (trained / "eval.json").write_text(json.dumps(evaluated | {"trainer/step": evaluated["trainer/step"] - 1}))
    assert "sample/distinct_1" not in read_row(trained)
    assert read_deciles(trained, "run") == []


def test_eval_notices_texts_that_changed_since_training(gvc, tiny, texts):
    words = []
    for split, text in texts.items():
        Path(f"my-{split}.txt").write_text(Path(text).read_text(encoding="utf-8"), encoding="utf-8")
        words.append(f"data.{split}=my-{split}.txt")
    run = gvc("train", *tiny, *words, "hydra.run.dir=run").run_dir
    assert "by_frequency" in json.loads(gvc("eval", str(run), "--samples", "0", "--json").out)
    own = (run / "eval.json").read_bytes()
    for split in texts:
        with Path(f"my-{split}.txt").open("a", encoding="utf-8") as file:
            file.write("One more day.\n")
    figures = json.loads(gvc("eval", str(run), "--samples", "0", "--json").out)
    assert "by_frequency" not in figures
    assert (run / "eval.json").read_bytes() == own
    assert json.loads((run / "eval-my-valid.json").read_text())["val/loss"] == figures["val/loss"]


def test_eval_refuses_different_tokenizers_before_any_work(gvc, tiny, trained):
    words = ["tokenizer=bpe", "tokenizer.vocab_size=300", "head=dense", "tracking=none", "hydra.run.dir=runs/bpe"]
    assert gvc("train", *tiny, *words).code == 0
    outcome = gvc("eval", str(trained), "runs/bpe", "--samples", "0")
    assert outcome.code == 2
    assert "these runs have different tokenizers" in outcome.err
    assert not (trained / "eval.json").exists()


@pytest.mark.parametrize("command", ["eval", "sample", "resume"])
@pytest.mark.parametrize("word", ["variant=dense-bias", "experiment=main_job"])
def test_a_run_keeps_its_config(gvc, trained, command, word):
    outcome = gvc(command, str(trained), word)
    assert outcome.code == 2
    assert f"{word} is for new runs" in outcome.err


def test_plan_and_data_prepare_know_the_run_that_weights_come_from(gvc, tiny, trained):
    planned = json.loads(gvc("plan", f"init_from={trained}", "--device", "a100", "--json").out)
    assert planned["model"] == "debug"
    outcome = gvc("plan", *tiny, "head=kneser_ney")
    assert outcome.code == 2
    assert "head=kneser_ney counts n-grams" in outcome.err


def test_a_folder_is_no_file_to_write(gvc, tiny, trained):
    for words in (["data", "order", *tiny, "--out", "."], ["leaderboard", str(trained), "--csv", "."]):
        outcome = gvc(*words)
        assert outcome.code == 2
        assert "is a folder: name a file in it" in outcome.err


def test_eval_of_a_run_against_itself_and_another(gvc, tiny, trained, texts):
    dense = gvc("train", *tiny, "head=dense", "hydra.run.dir='runs/head=dense,seed=0'").run_dir
    found = json.loads(gvc("eval", str(trained), str(trained), str(dense), "--samples", "0", "--json").out)
    same, other = found["checkpoints"]
    assert (same["difference"], same["low"], same["high"], same["p_value"]) == (0.0, 0.0, 0.0, 1.0)
    stories = [run["story/loss"] for run in found["runs"]]
    assert other["difference"] == pytest.approx(stories[2] - stories[0])
    assert [m["verdict"] for m in found["methods"]] == ["not shown"]
    assert [m["seeds"] for m in found["methods"]] == [[1, 1]]  # a run that is named twice is one seed
    assert ["head=dense" in m["second"].split() for m in found["methods"]] == [True]
    table = gvc("eval", str(trained), str(dense), "--samples", "2").out
    assert "not shown" in table
    assert "one seed" in table
    byte_text, words = gvc("eval", str(trained), "nowhere"), gvc("eval", "data=text")
    assert (byte_text.code, words.code) == (3, 2)


def test_eval_writes_into_the_summary_of_wandb(gvc, trained):
    assert gvc("eval", str(trained), "tracking.mode=offline", "--samples", "0").code == 0
    assert list((trained / "wandb").glob("offline-run-*"))


def test_sample_repeats_with_its_seed(gvc, trained):
    words = ["sample", str(trained), "--prompt", "Once", "--max-new-tokens", "20", "--num-samples", "2"]
    first, again, other = gvc(*words).out, gvc(*words).out, gvc(*words, "--seed", "1").out
    assert first == again != other
    assert first.startswith("Once")
    assert first.count("\n---\n") == 1
    line = json.loads(gvc("sample", str(trained), "--temperature", "0", "--max-new-tokens", "3", "--json").out)
    assert set(line) == {"index", "prompt", "text", "tokens", "log_probs", "finish"}
    assert 1 <= len(line["tokens"]) == len(line["log_probs"]) <= 3


def test_sample_takes_prompts_from_files_and_stdin(gvc, trained, monkeypatch):
    Path("prompt.txt").write_text("Für Anna", encoding="utf-8")
    words = ["sample", str(trained), "--max-new-tokens", "5", "--top-p", "0.9", "--min-p", "0.01", "--stop", "zz"]
    from_flag = gvc(*words, "--prompt", "Für Anna")
    assert from_flag.out.startswith("Für Anna")
    assert gvc(*words, "--prompt-file", "prompt.txt").out == from_flag.out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Für Anna".encode())))
    assert gvc(*words, "--prompt", "-").out == from_flag.out
    assert gvc(*words, "--prompt", "a", "--prompt-file", "prompt.txt").code == 2
    Path("prompt.txt").write_bytes(b"\xff")
    assert gvc(*words, "--prompt-file", "prompt.txt").code == 3
    assert gvc(*words, "--prompt-file", "none.txt").code == 3


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--temperature", "inf"],
        ["--top-p", "2"],
        ["--top-p", "0"],
        ["--top-k", "0"],
    ],
)
def test_sample_refuses_values_out_of_range(gvc, trained, words):
    outcome = gvc("sample", str(trained), *words)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert outcome.out == ""


def test_sample_answers_a_prompt_longer_than_the_block(gvc, trained):
    outcome = gvc("sample", str(trained), "--prompt", "word " * 50, "--max-new-tokens", "3")
    assert outcome.code == 0
    assert outcome.err.count("gvc: note: ") == 1


def test_sample_of_a_run_without_checkpoint(gvc, trained):
    for checkpoint in (trained / "checkpoints").iterdir():
        checkpoint.rename(trained / checkpoint.name)
    assert gvc("sample", str(trained)).code == 5


def test_ls_shows_runs_side_by_side(gvc, tiny, trained):
    gvc("train", *tiny, "head=dense", "hydra.run.dir=runs/other")
    rows = json.loads(gvc("ls", "--json").out)
    assert {row["head"] for row in rows} == {"dense", "shortlist"}
    table = gvc("ls", "runs").out
    assert "perplexity" in table
    assert "dense" in table
    assert gvc("ls", "nowhere").code == 3


def test_multirun_runs_every_job(gvc, tiny):
    outcome = gvc("train", "-m", *tiny, "head=dense,grouped", "seed=0,1", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    results = [json.loads(p.read_text()) for p in Path("sweep").glob("*/result.json")]
    assert sorted((r["head"], r["seed"]) for r in results) == [
        ("dense", 0),
        ("dense", 1),
        ("grouped", 0),
        ("grouped", 1),
    ]
    assert len(outcome.out.splitlines()) == 4


def test_multirun_over_joblib(gvc, tiny):
    words = [*tiny, "head=dense,grouped", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    # a process of its own: joblib keeps its workers, and with them the folder in which an earlier test stood
    command = [Path(sys.executable).parent / "gvc", "train", "-m", *words]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert len(list(Path("sweep").glob("*/result.json"))) == 2


def test_a_preset_is_a_multirun(gvc, tiny):
    outcome = gvc("sweep", "heads", *tiny, "train.max_steps=1", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    heads = {json.loads(p.read_text())["head"] for p in Path("sweep").glob("*/result.json")}
    assert heads == set(HEADS)


def test_hydra_prints_its_config_on_stdout(gvc):
    outcome = gvc("train", "--cfg", "job", "head=dense")
    assert "name: dense" in outcome.out
    assert outcome.err == ""
    assert "max_steps: 300" in gvc("train", "--cfg", "job", "--package", "train").out
    assert "Defaults" in gvc("train", "--info", "defaults").out


def test_own_configs_from_a_folder(gvc, tiny, workdir):
    (workdir / "conf" / "model").mkdir(parents=True)
    (workdir / "conf" / "model" / "mine.yaml").write_text(
        "name: mine\nbody: gpt2\nn_layer: 1\nn_head: 1\nn_embd: 8\nblock_size: 16\n"
    )
    outcome = gvc("train", "--config-dir", "conf", *tiny, "model=mine", "train.max_steps=1")
    assert outcome.code == 0, outcome.err
    assert json.loads((outcome.run_dir / "result.json").read_text())["model"] == "mine"


def test_data_prepare_and_its_manifest(gvc, texts):
    words = ["data", "prepare", "tokenizer=bytes", "data=text", f"data.train={texts['train']}"]
    outcome = gvc(*words, f"data.valid={texts['valid']}", "--json")
    manifest = json.loads(outcome.out)["train"]
    assert manifest["documents"] == 308
    assert manifest["tokens"] == 1 + manifest["documents"] + manifest["bytes"]


def test_doctor(gvc):
    checks = json.loads(gvc("doctor", "--json").out)
    assert {check["what"] for check in checks} >= {"gpu", "tokenizer gpt2", "W&B"}


@pytest.mark.parametrize("head", ["dense", "grouped", "film"])
def test_bf16_compile_free_and_accumulation(gvc, tiny, head):
    outcome = gvc(
        "train", *tiny, f"head={head}", "train.dtype=bfloat16", "train.grad_accum_steps=3", "model.dropout=0.1"
    )
    assert outcome.code == 0, outcome.err


def test_accumulation_is_the_same_step_as_a_larger_batch(gvc, tiny):
    losses = []
    for words in (["train.micro_batch_size=4"], ["train.micro_batch_size=2", "train.grad_accum_steps=2"]):
        run = gvc("train", *tiny, *words, "train.max_steps=3").run_dir
        losses.append(json.loads((run / "result.json").read_text())["val/loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; from grouped_lm.cli import main; print({'torch', 'hydra', 'wandb'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
    started = time.perf_counter()
    subprocess.run([Path(sys.executable).parent / "gvc", "--help"], check=True, capture_output=True)
    assert time.perf_counter() - started < 10  # a guard against importing torch on a busy machine, not a benchmark
