"""Cases of the command line: config files, choices that do not go together, closed pipes, version, help, completion."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from grouped_lm.cli.options import plain_value
from grouped_lm.cli.sample import read_prompt

from grouped_lm.errors import DataError

HEADS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "head").glob("*.yaml"))
GVC = str(Path(sys.executable).parent / "gvc")


def write_experiment(text):
    path = Path("own/experiment/mine.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(f"# @package _global_\n{text}")


def fails_with(outcome, line):
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"gvc: error: {line}\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train:\n  max_stpes: 3\n", "unknown key train.max_stpes; did you mean train.max_steps?"),
        ("train:\n  max_steps: abc\n", "train.max_steps takes a whole number, got abc"),
        ("optm:\n  lr: 3\n", "unknown key optm; did you mean optim?"),
        ("seed: null\n", "seed cannot be null: give a value"),
    ],
)
def test_case_C1_a_mistake_in_a_file_names_file_and_key(gvc, workdir, text, line):
    write_experiment(text)
    for command in ("train", "plan"):
        fails_with(gvc(command, "--config-dir", "own", "experiment=mine"), f"own/experiment/mine.yaml: {line}")


def test_case_C1_a_file_without_its_package(gvc, workdir):
    write_experiment("")
    Path("own/experiment/mine.yaml").write_text("train:\n  max_steps: 3\n")
    line = "its first line must be `# @package _global_`, so that its keys are those of the whole config"
    fails_with(gvc("train", "--config-dir", "own", "experiment=mine"), f"own/experiment/mine.yaml: {line}")


def test_case_C1_an_unknown_choice_in_a_file(gvc, workdir):
    write_experiment("defaults:\n  - override /head: gruoped\n")
    err = gvc("train", "--config-dir", "own", "experiment=mine").err
    assert err.startswith("gvc: error: own/experiment/mine.yaml: head: gruoped is not known; did you mean grouped?; ")


@pytest.mark.parametrize(
    "words",
    [
        ["head=grouped", "variant=dense-bias"],
        ["variant=dense-bias", "head=grouped"],
        ["-m", "head=grouped", "variant=dense-bias,trim"],
    ],
)
def test_case_C6_a_head_beside_a_variant_of_another_head(gvc, workdir, words):
    why = "do not go together, since a variant chooses the head: leave one out"
    fails_with(gvc("train", *words), f"variant=dense-bias and head=grouped {why}")


def test_case_C6_a_sweep_that_chooses_a_head_beside_a_variant(gvc, workdir):
    assert "variant=film and head=grouped do not go together" in gvc("sweep", "group-size", "variant=film").err
    assert gvc("train", "variant=dense-bias", "head=dense", "--cfg", "job").code == 0


def test_case_C8_a_closed_pipe_ends_quietly(workdir):
    done = subprocess.run(
        f"{GVC} train --info all | head -n 1", shell=True, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("train.max_steps=abc", "train.max_steps takes a whole number, got abc"),
        ("train.max_steps=1.5", "train.max_steps takes a whole number, got 1.5"),
        ("train.max_steps=null", "train.max_steps cannot be null: give a value"),
        ("model.name=[a]", "model.name takes a text, got [a]"),
        ("train=3", "train is a group of keys: write train.NAME=VALUE"),
        ("~train.max_steps", "~train.max_steps: a key cannot be removed; write train.max_steps=VALUE"),
        ("~optim.eps", "~optim.eps: a key cannot be removed; write optim.eps=VALUE"),
        ("~optim.lr=0.1", "~optim.lr=0.1: a key cannot be removed; write optim.lr=VALUE"),
        ("~head=film", "~head=film: a choice cannot be removed; write head=NAME, one of " + ", ".join(HEADS)),
        ("tracking=null", "tracking=null: a choice is needed; there are none, tensorboard, wandb"),
        ("+tracking=none", "+tracking=none: tracking has a choice already; write tracking=none, without the +"),
    ],
)
def test_case_C9_values_and_removals_in_our_own_words(gvc, workdir, word, line):
    fails_with(gvc("train", word), line)


@pytest.mark.parametrize(
    ("command", "word", "line"),
    [
        ("plan", "head=null", "head=null: a choice is needed; there are " + ", ".join(HEADS)),
        ("plan", "head=5", "head=5 is not known; there are " + ", ".join(HEADS)),
        ("eval", "head=null", "head=null: a choice is needed; there are " + ", ".join(HEADS)),
        ("eval", "tracking=5", "tracking=5 is not known; there are none, tensorboard, wandb"),
        ("sample", "train=5", "train=5: train is a group of keys: write train.NAME=VALUE"),
        ("resume", "train=null", "train=null: train is a group of keys: write train.NAME=VALUE"),
    ],
)
def test_case_C9_groups_in_commands_of_runs(gvc, tiny, command, word, line):
    words = [] if command == "plan" else [str(gvc("train", *tiny, "train.max_steps=1").run_dir)]
    fails_with(gvc(command, *words, word), line)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"# Mine.\na: b: c\n", "own/head/mine.yaml is not YAML: mapping values are not allowed here"),
        (b"- a\n- b\n", "own/head/mine.yaml must hold keys and values, NAME: VALUE, got a list"),
        (b"name: caf\xe9\n", "own/head/mine.yaml is not UTF-8 at byte 9; convert it, for instance with iconv"),
    ],
)
def test_case_C1_config_names_a_damaged_file(gvc, workdir, content, line):
    Path("own/head").mkdir(parents=True)
    Path("own/head/mine.yaml").write_bytes(content)
    for word in ("head", "head=mine"):
        fails_with(gvc("config", word, "--config-dir", "own"), line)


def test_case_C1_a_damaged_preset_hides_no_other(gvc, workdir):
    Path("own/sweep").mkdir(parents=True)
    Path("own/sweep/mine.yaml").write_text("a: [1\n")
    listed = gvc("sweep", "--list", "--config-dir", "own")
    assert listed.code == 0
    assert "equal-tokens" in listed.out
    assert "mine                 - jobs  while parsing a flow sequence" in listed.out


@pytest.mark.parametrize(
    ("word", "plain"),
    [
        ("data.train=~/a b.txt", "data.train=/home/me/a b.txt"),
        ("hydra.run.dir=~", "hydra.run.dir=/home/me"),
        ("data.train=größe.txt", "data.train='größe.txt'"),
        ("data.train=~/é#1.txt", "data.train='/home/me/é#1.txt'"),
        ("data.train=a=b/x.txt", "data.train='a=b/x.txt'"),
        ("data.train='~/x,y.txt'", "data.train='~/x,y.txt'"),
        ("hydra.run.dir=2024_11_30", "hydra.run.dir='2024_11_30'"),
        ("data.train=2024_11_30", "data.train='2024_11_30'"),
        ("init_from=007", "init_from='007'"),
        ("++train.mirror=2024.11", "++train.mirror='2024.11'"),
        ("name=1E5", "name='1E5'"),
        ("name=v1_0", "name=v1_0"),
        ("optim.lr=1e-3", "optim.lr=1e-3"),
        ("train.max_steps=1_000", "train.max_steps=1_000"),
        ("~head", "~head"),
        ("+note=a", "+note=a"),
        ("optim.lr=1e-3,1e-4", "optim.lr=1e-3,1e-4"),
        ("seed=range(0,3)", "seed=range(0,3)"),
        ("name=${oc.env:USER}", "name=${oc.env:USER}"),
        ("~/folder", "~/folder"),
        ("=", "="),
    ],
)
def test_case_24_values_that_shell_and_hydra_leave_alone(monkeypatch, word, plain):
    monkeypatch.setenv("HOME", "/home/me")
    assert plain_value(word) == plain


def test_case_24_paths_from_home_with_umlauts_and_signs(gvc, tiny, workdir, monkeypatch):
    monkeypatch.setenv("HOME", str(workdir))
    Path("größe #1=a.txt").write_text("Once upon a time there was a cat. " * 20)
    made = gvc("data", "order", *tiny, "data.train=~/größe #1=a.txt", "--out=~/order.csv")
    assert made.code == 0, made.err
    assert Path("order.csv").is_file()
    assert not Path("~").exists()


def test_folders_whose_names_look_like_numbers(gvc, tiny):
    words = ["train", *tiny, "train.max_steps=1"]
    first = gvc(*words, "hydra.run.dir=2024_11_30", "name=1e5", "train.mirror=2024_12")
    assert (first.code, first.run_dir.name) == (0, "2024_11_30")
    assert json.loads(Path("2024_11_30/config.json").read_text())["name"] == "1e5"
    assert Path("2024_12").is_dir()
    second = gvc(*words, "init_from=2024_11_30", "hydra.run.dir=007")
    assert (second.code, second.run_dir.name) == (0, "007"), second.err


def test_case_24_closed_streams_are_no_defect(workdir):
    words = f"'{sys.executable}' -c 'from grouped_lm.cli.main import main; main()'"
    for closed in ("2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f"{words} config head {closed}"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert ("head=dense" in done.stdout) == (closed == "2>&-")


def test_case_24_prompts_that_cannot_be_read_are_one_line(workdir):
    Path("a.txt").write_bytes(b"a\xffb")
    for name, message in (("a.txt", "is not UTF-8 at byte 1"), ("no.txt", "No such file"), (".", "Is a directory")):
        with pytest.raises(DataError, match=message) as refused:
            read_prompt("", Path(name))
        assert "Errno" not in str(refused.value)


def test_case_U10_version_and_help(gvc, workdir):
    assert gvc("--version").out == f"gvc {metadata.version('grouped-lm')}\n"
    assert gvc("help").out == gvc("--help").out
    assert gvc("help", "train").out == gvc("train", "--help").out
    assert gvc("help", "nothing").code == 2


def test_case_U10_runs_are_sorted_by_ppl(gvc, tiny, workdir):
    for seed in (0, 1):
        words = ["train", *tiny, "head=dense", "train.max_steps=1", f"seed={seed}", f"hydra.run.dir=runs/{seed}"]
        assert gvc(*words).code == 0
    assert gvc("ls", "--sort", "ppl", "--csv").out == gvc("ls", "--sort", "val/perplexity", "--csv").out


def completions(*words):
    """Return what bash offers for the last of `words`, which it has split at =."""
    env = {"COMP_WORDS": "\n".join(("gvc", *words)), "COMP_CWORD": str(len(words)), "_GVC_COMPLETE": "complete_bash"}
    return subprocess.run([GVC], env=os.environ | env, capture_output=True, text=True, check=True).stdout.split()


def test_case_U11_completion(workdir):
    assert {"head=dense", "variant=trim-bias", "experiment=main_job"} <= set(completions("train", ""))
    assert completions("train", "head=gr") == ["head=grouped"]
    assert completions("train", "head", "=", "gr") == ["grouped"]
    assert {"dense", "film"} <= set(completions("plan", "head", "="))
    assert {"heads", "leaderboard-screen"} <= set(completions("sweep", ""))
    assert {"rtx3060", "cpu"} <= set(completions("plan", "--device", ""))
    assert completions("bench", "dec") == ["decode"]
    assert {"quick", "gpu"} <= set(completions("bench", "heads", "--grid", ""))
    assert completions("reproduce", "--scale", "cpu") == ["cpu", "cpu-long"]
    assert {"head=film", "grouping"} <= set(completions("config", ""))
    assert "optim.lr" in completions("config", "optim.")


def test_case_U11_completion_of_run_folders(workdir):
    for name in ("runs/mine", "runs/sweep/seed=0", "other/run"):
        (workdir / name).mkdir(parents=True)
        (workdir / name / "config.json").write_text("{}")
    assert completions("eval", "ru") == ["runs/mine", "runs/sweep/seed=0"]
    for command in ("plot", "diff", "sample", "ls"):
        assert "runs/mine" in completions(command, "")
    assert completions("diff", "other/") == ["other/run"]


def test_every_help_text_has_an_example(gvc, workdir):
    import typer.main
    from grouped_lm.cli.main import app

    def walk(command):
        for inner in getattr(command, "commands", {}).values():
            yield inner
            yield from walk(inner)

    assert [c.name for c in walk(typer.main.get_command(app)) if "Example: gvc " not in (c.help or "")] == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("ladder runs", "gvc ladder is now gvc leaderboard"),
        ("train entrant=dense", "entrant= is now variant="),
        ("sweep ladder-rates", "sweep ladder-rates is now leaderboard-rates"),
        ("train -m sweep=ladder-final", "sweep ladder-final is now leaderboard-final"),
    ],
)
def test_old_names_answer_with_the_new_ones(gvc, workdir, words, line):
    fails_with(gvc(*words.split()), line)


def test_case_T5_eval_ends_at_sigterm(gvc, tiny, monkeypatch):
    run = gvc("train", *tiny).run_dir
    monkeypatch.setattr(
        "grouped_lm.system.console.EvalDisplay.done", lambda *units: os.kill(os.getpid(), signal.SIGTERM)
    )
    outcome = gvc("eval", str(run))
    assert outcome.code == 75
    assert not (run / "eval.json").exists()


def on_a_terminal(words, width):
    """Return what `gvc WORDS` writes on stderr if that is a terminal of so many columns, without colours."""
    ours, theirs = os.openpty()
    env = os.environ | {"COLUMNS": str(width), "TERM": "xterm"}
    with subprocess.Popen([GVC, *words], stdout=subprocess.DEVNULL, stderr=theirs, env=env) as process:
        os.close(theirs)
        chunks = []
        try:
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)
        except OSError:  # Linux ends a terminal like this when nobody holds its other end
            pass
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(chunks).decode())


def test_case_U2_train_says_each_phase_on_a_terminal(tiny, workdir):
    said = on_a_terminal(["train", *tiny, "head=grouped"], 80)
    phases = ["starting", "reading the config", "reading the training text", "checking memory"]
    phases += ["building the grouped head with groups by merge_rank", "debug grouped", "validating"]
    places = [said.find(phase) for phase in phases]
    assert -1 not in places
    assert places == sorted(places)
    assert re.search(r"validating +[━╸╺]+ +0/\d+", said)
    assert max(len(line) for line in re.split(r"[\r\n]+", said)) <= 80
