"""A user's mistake: one line on stderr that helps, the right exit code, no run folder, no traceback."""

from pathlib import Path

import pytest

MISTAKES = [
    ("lern_rate=1", "unknown key lern_rate; did you mean optim.lr?"),
    ("optim.learning_rate=1", "did you mean optim.lr?"),
    ("train.max_step=5", "did you mean train.max_steps?"),
    ("modle=gpt2-1m", "did you mean model?"),
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
    ("head.group_size=big", "head.group_size must be int"),
    ("model=gpt7", "model=gpt7 is not known"),
    ("model=gpt2-2m", "did you mean gpt2-28m?"),
    ("head=dens", "head=dens is not known; did you mean dense?"),
    ("experiment=nothing", "experiment=nothing is not known"),
    ("model.n_embd=31", "model.n_embd must be a multiple of model.n_head"),
    ("optim.lr=nan", "optim.lr must be in (0"),
    ("optim.lr=inf", "optim.lr must be in (0"),
    ("optim.lr=-1", "optim.lr must be in (0"),
    ("train.dtype=float8", "train.dtype must be one of float32, bfloat16"),
    ("train.device=tpu", "train.device must be one of auto, cpu, cuda"),
    (
        "train.cuda_graphs=true",
        "train.cuda_graphs=true needs train.compile=true, train.grad_accum_steps=1 and one process, got false, 1 and 1",
    ),
    ("train.devices=0", "train.devices must be in [1, 1024], got 0"),
    (
        "train.devices=3",
        "train.micro_batch_size=2 cannot be shared by 3 processes (train.devices x train.nodes): 3 can",
    ),
    ("train.strategy=zero", "train.strategy must be one of ddp, fsdp2"),
    ("train.nodes=2", "train.nodes=2 needs a SLURM job with as many machines"),
    ("seed=-1", "seed must be in"),
    ("seed=1,2", "add -m"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sample", "Missing argument 'RUN'"),
        ("data halve", "Missing argument 'TEXT'"),
        ("data halve x.txt", "Missing option '--out'"),
        ("ladder --nothing", "No such option: --nothing"),
        ("nothing", "No such command 'nothing'"),
    ],
)
def test_missing_and_unknown_words(gvc, workdir, words, message):
    assert_one_line(gvc(*words.split()), 2, message)


def test_cuda_graphs_in_processes_that_torchrun_has_started(gvc, tiny, monkeypatch):
    for key, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    outcome = gvc("train", *tiny, "train.compile=true", "train.cuda_graphs=true")
    assert_one_line(outcome, 2, "train.cuda_graphs=true needs one process, and 2 were started")


def test_cuda_graphs_without_a_gpu(gvc, tiny, workdir):
    outcome = gvc("train", *tiny, "train.compile=true", "train.cuda_graphs=true")
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
