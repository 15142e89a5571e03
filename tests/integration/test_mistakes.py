"""A user's mistake: one line on stderr that helps, the right exit code, no run folder, no traceback."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

MISTAKES = [
    ("lern_rate=1", "unknown key lern_rate; did you mean optim.lr?"),
    ("optim.learning_rate=1", "did you mean optim.lr?"),
    ("train.max_step=5", "did you mean train.max_steps?"),
    ("modle=gpt2-1m", "did you mean model?"),
    ("model.batch_size=3", "did you mean train.micro_batch_size?"),
    ("train.n_embd=3", "did you mean model.n_embd?"),
    ("grouping.nothing=3", "unknown key grouping.nothing; grouping has name; "),
    ("head.group_sise=3", "did you mean head.group_size?"),
    ("+typo=1", "unknown key typo"),
    ("+train.typo=1", "unknown key train.typo"),
    ("train.max_steps=-5", "train.max_steps must be in [1, 1e+09], got -5"),
    ("train.max_steps=0", "train.max_steps must be in"),
    ("train.max_steps=abc", "train.max_steps"),
    ("train.max_steps=1.5", "train.max_steps"),
    ("train.max_steps=10000000000000000000000000", "train.max_steps"),
    ("train.micro_batch_size=0", "train.micro_batch_size must be in"),
    ("head.group_size=0", "head.group_size must be in [1"),
    ("head.group_size=60000", "head.group_size must be in [1, 257]"),
    ("head.group_size=big", "head.group_size must be a whole number"),
    ("model=gpt7", "model=gpt7 is not known"),
    ("model=gpt2-2m", "did you mean gpt2-28m?"),
    ("head=dens", "head=dens is not known; did you mean dense?"),
    ("experiment=nothing", "experiment=nothing is not known"),
    ("model.n_embd=31", "model.n_embd must be a multiple of model.n_head"),
    ("optim.lr=abc", "optim.lr must be a number, got 'abc'"),
    ("optim.lr=null", "optim.lr must be a number, got null"),
    ("train.compile=yep", "train.compile takes true or false, got yep"),
    ("optim.lr=nan", "optim.lr must be in (0"),
    ("optim.lr=inf", "optim.lr must be in (0"),
    ("optim.lr=-1", "optim.lr must be in (0"),
    ("train.dtype=float8", "train.dtype must be one of float32, bfloat16, float16"),
    ("train.device=tpu", "train.device must be one of auto, cpu, cuda"),
    ("train.devices=0", "train.devices must be in [1, 1024], got 0"),
    (
        "train.devices=3",
        "train.micro_batch_size=2 cannot be shared by 3 processes (train.devices x train.nodes): 3 can",
    ),
    ("train.strategy=zero", "train.strategy must be one of ddp, fsdp2"),
    ("train.nodes=2", "train.nodes=2 needs a SLURM job with as many machines"),
    ("seed=-1", "seed must be in"),
    ("seed=1,2", "add -m"),
    ("=", "= is no override: write KEY=VALUE"),
    ("a.txt", "a.txt is no override: write KEY=VALUE"),
    ("data.valid=a b=c,d.txt", "goes in quotes: \"data.valid='a b=c,d.txt'\""),
    ("data.valid=it's.txt", "goes in quotes: \"data.valid='it\\'s.txt'\""),
    ("hydra.run.dir=", "hydra.run.dir is empty: name a folder"),
    ("hydra.sweep.dir=null", "hydra.sweep.dir is empty: name a folder"),
    ("data.cache_dir=", "data.cache_dir ($GVC_CACHE_DIR) must name a folder"),
    ("data.train=' '", "data.train must be a file"),
    ("train.max_steps", "train.max_steps"),
    ("train.max_steps=[1", "override"),
    ("data.train=[]", "data.train must be a file"),
    ("model.block_size=100000", "block_size"),
]


def assert_one_line(outcome, code: int, message: str) -> None:
    assert outcome.code == code, outcome.err
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("gvc: error: ")
    assert message in lines[0]
    assert outcome.out == ""


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_mistakes_end_in_one_line(gvc, tiny, workdir, override, message):
    code = 3 if "block_size" in override else 2  # a text too short for the window is a matter of data
    assert_one_line(gvc("train", *tiny, override), code, message)
    assert list(workdir.iterdir()) == []


def test_float16_with_a_cut_vocabulary_is_refused(gvc, tiny, workdir):
    words = ["train.dtype=float16", "train.vocab_parallel=true"]
    assert_one_line(gvc("train", *tiny, *words), 2, "train.dtype=float16 cannot scale the loss with train.vocab_")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample", "name a run folder, as `gvc train` printed it, or give --example"),
        ("data halve", "Missing argument 'TEXT'"),
        ("data halve x.txt", "Missing option '--out'"),
        ("leaderboard --nothing", "No such option: --nothing"),
        ("nothing", "No such command 'nothing'; there are demo, train, "),
        ("trian", "No such command 'trian'. Did you mean 'train'"),
        ("data prepar", "No such command 'prepar'. Did you mean 'prepare'"),
    ],
)
def test_missing_and_unknown_words(gvc, workdir, words, message):
    assert_one_line(gvc(*words.split()), 2, message)


@pytest.mark.parametrize("words", [[], ["data"], ["--debug"]])
def test_no_command_shows_those_there_are(gvc, words):
    outcome = gvc(*words)
    os.environ.pop("GVC_DEBUG", None)
    assert outcome.code == 2
    assert "Commands" in outcome.out
    assert outcome.err.startswith("gvc: error: name a command of ")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["train", ""], "train"),
        (["eval", "RUN", "--data", ""], "--data"),
        (["eval", "RUN", "--data="], "--data"),
        (["data", "order", "--out", ""], "--out"),
        (["dashboard", "--offline", "--out", ""], "--out"),
    ],
)
def test_a_word_that_is_empty(gvc, workdir, words, name):
    assert_one_line(gvc(*words), 2, f"what follows {name} is empty")
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data prepare seed=1,2", "seed=1,2 gives several values: this command takes one"),
        ("plan seed=1,2", "this command takes one"),
        ("data prepare sweep=seeds", "this command takes one config, and a sweep describes 6"),
        ("data order sweep=seeds", "this command takes one config"),
        ("plan sweep=seeds", "this command takes one config"),
        ("sweep seeds hydra.sweep.dir=", "hydra.sweep.dir is empty"),
        ("train sweep=equal-time", "sweep=equal-time is a contest, "),
        ("train -m sweep=equal-tokens", ": gvc sweep equal-tokens"),
        ("plan sweep=equal-tokens", "sweep=equal-tokens is a contest, "),
        (
            "train data=text data.train=a data.valid=b head=dense,grouped",
            "head=dense,grouped gives several values: add ",
        ),
        ("train -m head=dense,grouped head.group_size=4", "unknown key head.group_size; head has name, tied, bias"),
        ("train -m data=text data.train=a data.valid=b head=dense,grouped train.max_steps=abc", "takes a whole number"),
        ("bench steps steps.models=gpt2-1m", "steps.models takes a list: write steps.models=[gpt2-1m]"),
        ("bench heads heads.n_tokens=8", "heads.n_tokens takes a list: write heads.n_tokens=[8]"),
        ("sample . --temperature -1", "Input should be greater than or equal to 0, got '-1'"),
    ],
)
def test_several_where_one_is_taken_and_the_reverse(gvc, workdir, words, message):
    assert_one_line(gvc(*words.split()), 2, message)
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("train TINY hydra.run.dir=taken", "taken: File exists"),
        ("train TINY hydra.run.dir=taken/x", "taken/x: Not a directory"),
        ("train TINY hydra.run.dir=dangling", "dangling: File exists"),
        ("train -m TINY seed=0,1 hydra.sweep.dir=taken/x", "taken/x: Not a directory"),
        ("sweep seeds TINY hydra.sweep.dir=taken", "taken: File exists"),
        ("data order TINY --out taken/x.csv", "taken: File exists"),
        ("bench vocab --dir taken", "taken: File exists"),
    ],
)
def test_a_place_that_cannot_be_written(gvc, tiny, workdir, words, place):
    Path("taken").write_text("mine")
    Path("dangling").symlink_to("nowhere/x")
    outcome = gvc(*(part for word in words.split() for part in (tiny if word == "TINY" else [word])))
    assert_one_line(outcome, 4, f"cannot read or write {place}; give another place")
    assert sorted(p.name for p in workdir.rglob("*")) == ["dangling", "taken"]
    assert Path("taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data.train=x.txt", "unknown key data.train; data has "),
        ("data.train=x.txt", "; data.train belongs to data=text; "),
        ("data.num_train_stories=5 data=text", "; data.num_train_stories belongs to data=tinytales; "),
        ("data.hub_id=a/b", "; data.hub_id belongs to data=tinystories or tinystories_v2 or wikitext; "),
        ("data.hubid=a/b data=tinystories", "did you mean data.hub_id?"),
        ("data.source=text", "data.source=text sets no options of that source: write data=text"),
        ("data.source=text data.train=x.txt", "data.source=text sets no options of that source: write data=text"),
        ("data.source=disk", ": write data=NAME, one of text, tinystories, "),
        ("data=tinystories data.hub_id=null", "data.hub_id must name a dataset (owner/name)"),
        ("data.num_train_stories=many", "data.num_train_stories must be a whole number, got 'many'"),
        ("data.num_train_stories=0", "data.num_train_stories must be in [1, 1e+08], got 0"),
    ],
)
@pytest.mark.parametrize("command", ["train", "bench heads"])
def test_a_key_of_another_source(gvc, workdir, command, words, message):
    assert_one_line(gvc(*command.split(), *words.split()), 2, message)
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ("data.train=a,b/train.txt", "data.train='a,b/train.txt'"),
        ("data.train=[a=b/x.txt,y.txt]", "data.train=['a=b/x.txt','y.txt']"),
        ("data.train=[it's/x.txt,'y.txt']", "data.train=['it\\'s/x.txt','y.txt']"),
    ],
)
def test_cases_C3_the_advice_on_quotes_works_as_printed(gvc, tiny, given, advice):
    for name in ("a,b/train.txt", "a=b/x.txt", "it's/x.txt", "y.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("Once upon a time there was a cat. " * 20)
    assert_one_line(gvc("data", "prepare", *tiny, given), 2, f'goes in quotes: "{advice}"')
    assert gvc("data", "prepare", *tiny, advice).code == 0


def test_a_key_of_another_head(gvc, tiny):
    message = "unknown key head.group_size; head has name, tied, bias"
    assert_one_line(gvc("train", *tiny, "head=dense", "head.group_size=3"), 2, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cfg nosuch", "--cfg must be one of job, hydra, all, got 'nosuch'"),
        ("--info nosuch", "--info must be one of all, config"),
        ("--cfg job --package nosuch", "--package nosuch is no part of the config"),
        ("--resolve", "--resolve and --package say how --cfg prints: add --cfg job"),
        ("--package train", "--resolve and --package say how --cfg prints: add --cfg job"),
        ("--cfg job --info all", "--cfg and --info exclude each other"),
        ("--multirun --cfg job", "--multirun and --cfg exclude each other"),
    ],
)
def test_what_is_printed_instead_of_training(gvc, words, message):
    assert_one_line(gvc("train", *words.split()), 2, message)


@pytest.mark.parametrize("command", ["train", "plan", "bench heads", "sweep seeds", "config"])
def test_a_folder_of_configs_that_is_not_there(gvc, workdir, command):
    assert_one_line(gvc(*command.split(), "--config-dir", "nosuch"), 2, "--config-dir nosuch is not a folder")
    assert list(workdir.iterdir()) == []


def test_choices_in_a_folder_of_configs_are_known(gvc, tiny):
    Path("own/model").mkdir(parents=True)
    Path("own/model/mine.yaml").write_text("name: mine\nn_layer: 1\nn_head: 2\nn_embd: 16\nblock_size: 32\n")
    words = ["train", *tiny, "--config-dir", "own"]
    assert_one_line(
        gvc(*words, "model=mine", "train.max_steps=abc"), 2, "train.max_steps takes a whole number, got abc"
    )
    assert_one_line(gvc(*words, "model=mime"), 2, "model=mime is not known; did you mean mine?")


@pytest.mark.parametrize("command", ["train", "plan", "sweep seeds", "config"])
def test_a_file_with_the_name_of_one_of_ours(gvc, tiny, command):
    Path("own/model").mkdir(parents=True)
    ours = files("grouped_lm.conf") / "model/debug.yaml"
    Path("own/model/debug.yaml").write_bytes(ours.read_bytes())
    assert gvc("config", "model", "--config-dir", "own").code == 0
    Path("own/model/debug.yaml").write_text("name: debug\nn_layer: 1\nn_head: 2\nn_embd: 16\nblock_size: 32\n")
    line = "own/model/debug.yaml has the name of a file of gvc and would not be used: give it another name"
    words = [] if command == "config" else tiny
    assert_one_line(gvc(*command.split(), *words, "--config-dir", "own"), 2, line)


PACKAGE = "`# @package _global_`, so that its keys are those of the whole config"
"""The end of a line about a file of a group that chooses several parts."""


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize("group", ["variant", "experiment", "sweep"])
@pytest.mark.parametrize("start", ["", "defaults:\n  - override /head: dense\n"])
def test_a_file_of_several_parts_without_its_first_line(gvc, workdir, command, group, start):
    Path(f"own/{group}").mkdir(parents=True)
    Path(f"own/{group}/mine.yaml").write_text(f"{start}train:\n  max_steps: 7\n")
    outcome = gvc(command, f"{group}=mine", "--config-dir", "own")
    assert_one_line(outcome, 2, PACKAGE)
    named = "unknown key variant.train: " if group == "variant" and not start else f"own/{group}/mine.yaml: "
    assert named in outcome.err


def test_a_primary_config_without_ours(gvc, tiny):
    Path("own").mkdir()
    Path("own/mine.yaml").write_text("train:\n  max_steps: 5\n")
    words = ["train", "--config-dir", "own", "--config-name", "mine"]
    line = "own/mine.yaml lacks parts of the config: begin it with `defaults: [config, _self_]`"
    assert_one_line(gvc(*words), 2, line)
    Path("own/mine.yaml").write_text("defaults: [config, _self_]\ntrain:\n  max_steps: abc\n")
    assert_one_line(gvc(*words), 2, "train.max_steps takes a whole number, got abc")


def test_a_refused_run_leaves_the_folder_that_an_interpolation_names(gvc, tiny):
    words = ["train", *tiny, "head=dense", "name=a", "hydra.run.dir=runs/${name}"]
    assert gvc(*words, "train.max_steps=1").code == 0
    before = {path: path.read_bytes() for path in Path("runs/a").rglob("*.yaml")}
    assert len(before) == 3
    assert_one_line(gvc(*words, "train.max_steps=2"), 6, "train.max_steps: 1 -> 2")
    assert {path: path.read_bytes() for path in Path("runs/a").rglob("*.yaml")} == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax (own_mistake_0.py, line 1)"),
        ("missing()\n", "NameError: name 'missing' is not defined"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_mistake_in_a_plugin(gvc, tiny, monkeypatch, text, message):
    name = "own_mistake_0"
    Path(f"{name}.py").write_text(text)
    monkeypatch.setenv("GVC_PLUGINS", name)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    line = f"GVC_PLUGINS={name}: {name} has a mistake ({message}): correct it"
    assert_one_line(gvc("train", *tiny), 2, line)


def test_a_report_of_nothing_and_a_place_without_marks(gvc, workdir):
    Path("empty").mkdir()
    Path("page.md").write_text("No marks.")
    assert_one_line(gvc("report", "empty", "--into", "page.md"), 2, "page.md has no lines")
    assert list(Path("empty").iterdir()) == []
    outcome = gvc("report", "empty")
    assert (outcome.code, outcome.out) == (0, "empty/report/report.html\n")
    assert "gvc: no run and no bench in empty: nothing speaks for any claim" in outcome.err


def test_only_failed_where_none_has_failed(gvc, tiny):
    outcome = gvc("sweep", "seeds", *tiny, "head=dense", "seed=0", "--only-failed")
    assert outcome.code == 0
    assert "gvc: --only-failed: no job in runs/seeds has failed, and none is run" in outcome.err


def test_a_config_of_another_version(gvc, tiny):
    run = gvc("train", *tiny, "train.max_steps=1", "hydra.run.dir=run").run_dir
    values = json.loads((run / "config.json").read_text())
    values["train"]["newthing"] = 1
    (run / "config.json").write_text(json.dumps(values))
    message = "run/config.json is damaged: unknown key train.newthing"
    assert_one_line(gvc("eval", "run"), 3, message)


def test_help_shows_brackets(gvc):
    assert "steps.models=[gpt2-1m] competitors=[grouped,adaptive]" in " ".join(gvc("bench", "--help").out.split())


def test_a_prompt_from_a_closed_stdin(monkeypatch):
    from grouped_lm.cli.sample import read_prompt

    from grouped_lm.errors import DataError

    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="reads stdin, and it is closed"):
        read_prompt("-", None)


def test_output_that_nobody_takes(workdir):
    words = [sys.executable, "-c", "from grouped_lm.cli.main import main; main()", "train", "--cfg", "job"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    full_disk = (
        "gvc: error: cannot read or write the output: the disk is full; make room and run the same command again\n"
    )
    assert (done.returncode, done.stderr) == (4, full_disk)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_cuda_graphs_in_processes_that_torchrun_has_started(gvc, tiny, monkeypatch):
    for key, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    outcome = gvc("train", *tiny, "train.cuda_graphs=true")
    assert_one_line(outcome, 2, "train.cuda_graphs=true needs one process, and 2 were started")


def test_cuda_graphs_in_two_processes(gvc, tiny):
    outcome = gvc("train", *tiny, "train.cuda_graphs=true", "train.devices=2")
    assert_one_line(outcome, 2, "train.cuda_graphs=true needs one process, got 2 (train.devices x nodes)")


def test_cuda_graphs_without_a_gpu(gvc, tiny, workdir):
    outcome = gvc("train", *tiny, "train.cuda_graphs=true")
    assert_one_line(outcome, 2, "train.cuda_graphs=true needs a GPU, got train.device=cpu, which is cpu here")
    assert list(workdir.iterdir()) == []


def test_a_head_tied_to_nothing(gvc, tiny, workdir):
    outcome = gvc("train", *tiny, "model.embedding=factorised", "head=dense")
    assert_one_line(outcome, 2, "no row per token for head=dense to share: set head.tied=false")
    assert list(workdir.iterdir()) == []


def test_one_bad_value_in_a_grid_stops_it_before_the_first_job(gvc, tiny, workdir):
    outcome = gvc("train", "-m", *tiny, "head.group_size=4,60000")
    assert_one_line(outcome, 2, "head.group_size must be in [1, 257]")
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("field", ["data.train", "data.valid"])
def test_missing_text(gvc, tiny, workdir, field):
    assert_one_line(gvc("train", *tiny, f"{field}=nowhere.txt"), 3, "nowhere.txt")
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("words", [["train"], ["data", "prepare"]])
def test_validation_text_among_the_training_text(gvc, tiny, words):
    Path("texts").mkdir()
    for name in ("train", "valid"):
        Path(f"texts/{name}.txt").write_text("a story")
    outcome = gvc(*words, *tiny, "data.train=texts", "data.valid=texts/valid.txt")
    assert_one_line(outcome, 2, "texts/valid.txt is in data.train=texts and in data.valid=texts/valid.txt")


def test_more_spaces_than_the_tokenizer_takes(gvc, tiny):
    Path("blank.txt").write_text("Once" + " " * 1_100_000 + "upon")
    outcome = gvc("data", "prepare", *tiny, "tokenizer=gpt2", "data.train=blank.txt")
    assert_one_line(outcome, 3, "1,100,000 spaces or line ends in a row, in the text that begins 'Once upon'")


def test_text_that_is_not_utf8(gvc, tiny, workdir):
    Path("latin.txt").write_bytes("un caf\xe9 noir".encode("latin-1"))
    assert_one_line(gvc("train", *tiny, "data.train=latin.txt"), 3, "latin.txt")
    assert [p.name for p in workdir.iterdir()] == ["latin.txt"]


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_unknown_run_and_bad_override_of_a_run(gvc, command):
    assert_one_line(gvc(command, "nowhere"), 3, "nowhere is not a run folder")


@pytest.mark.parametrize("words", [["train", "--nosuch"], ["nosuch"], ["sample", ".", "--temperature", "-1"], ["eval"]])
def test_usage(gvc, words):
    assert_one_line(gvc(*words), 2, "")


def test_debug_shows_the_traceback(gvc, tiny):
    from grouped_lm.cli.main import main

    from grouped_lm.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["train", *tiny, "optim.lr=-1", "--debug"])
