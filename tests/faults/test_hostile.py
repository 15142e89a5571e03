"""What strangers and slips bring: malformed overrides, config files, run folders, checkpoints, names; and secrets."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from string import ascii_lowercase

import pytest
from fault_tools import replay, train_to_end, trials
from safetensors.torch import save

from grouped_lm.runs.checkpoint import MANIFEST, SCHEMA_VERSION, list_checkpoints, write_checkpoint

INTS = ("train.max_steps", "train.micro_batch_size", "model.n_layer", "train.grad_accum_steps", "model.block_size")
FLOATS = ("optim.lr", "optim.eps", "train.checkpoint_every_minutes", "tracking.init_timeout_s")
TEXTS = ("model.body", "train.dtype", "train.device", "tokenizer.name", "optim.name", "train.resume", "tracking.mode")


def word(rng: Random) -> str:
    return "z" + "".join(rng.choices(ascii_lowercase, k=rng.randint(3, 12)))


def of(names: tuple[str, ...], value: Callable[[Random], str]) -> Callable[[Random], list[str]]:
    return lambda rng: [f"{rng.choice(names)}={value(rng)}"]


def file_with(text: Callable[[Random], bytes | str]) -> Callable[[Random], list[str]]:
    """Write a primary config of the user's own, and name it."""

    def make(rng: Random) -> list[str]:
        folder = Path.cwd().parent / "own"
        folder.mkdir(exist_ok=True)
        content = text(rng)
        head = b"defaults:\n  - config\n  - _self_\n"
        (folder / "mine.yaml").write_bytes(head + (content if isinstance(content, bytes) else content.encode()))
        return ["--config-dir", str(folder), "--config-name", "mine"]

    return make


KINDS: dict[str, Callable[[Random], list[str]]] = {
    "unknown key": lambda rng: [f"{word(rng)}={rng.randint(0, 9)}"],
    "unknown key in a part": lambda rng: [f"{rng.choice(['train', 'optim', 'data'])}.{word(rng)}=1"],
    "unknown key of the head": lambda rng: [f"head.{word(rng)}=1"],
    "added key": lambda rng: [f"+{word(rng)}=1"],
    "added key in a part": lambda rng: [f"+train.{word(rng)}=1"],
    "forced key": lambda rng: [f"++optim.{word(rng)}=1"],
    "part of a part": lambda rng: [f"optim.lr.{word(rng)}=1"],
    "unknown model": lambda rng: [f"model={word(rng)}"],
    "unknown head": lambda rng: [f"head={word(rng)}"],
    "unknown data": lambda rng: [f"data={word(rng)}"],
    "unknown experiment": lambda rng: [f"experiment={word(rng)}"],
    "unknown sweep": lambda rng: [f"sweep={word(rng)}"],
    "group from elsewhere": lambda rng: [f"model=../{word(rng)}"],
    "negative count": of(INTS, lambda rng: str(-rng.randint(1, 9999))),
    "zero": of(INTS, lambda rng: "0"),
    "fraction for a count": of(INTS, lambda rng: f"{rng.randint(1, 99)}.5"),
    "word for a count": of(INTS, word),
    "count beyond reason": of(INTS, lambda rng: "9" * rng.randint(20, 300)),
    "yes or no for a count": of(INTS, lambda rng: rng.choice(["true", "false"])),
    "list for a count": of(INTS, lambda rng: f"[{rng.randint(1, 9)},2]"),
    "mapping for a count": of(INTS, lambda rng: f"{{a:{rng.randint(1, 9)}}}"),
    "nothing for a count": of(INTS, lambda rng: "null"),
    "NaN": of(FLOATS, lambda rng: rng.choice(["nan", "NaN", ".nan"])),
    "infinity": of(FLOATS, lambda rng: rng.choice(["inf", "-inf", ".inf"])),
    "negative amount": of(FLOATS, lambda rng: f"-{rng.random()}"),
    "word for an amount": of(FLOATS, word),
    "beyond the range": lambda rng: [
        rng.choice(["model.dropout=1.5", "optim.beta1=1", "optim.min_lr_ratio=2", "seed=-3"])
    ],
    "unknown choice": of(TEXTS, word),
    "list for a choice": of(TEXTS, lambda rng: f"[{word(rng)}]"),
    "widths that do not divide": lambda rng: [f"model.n_embd={2 * rng.randint(5, 99) + 1}"],
    "group size beyond the vocabulary": lambda rng: [f"head.group_size={rng.randint(258, 10**9)}"],
    "word for a group size": lambda rng: [f"head.group_size={word(rng)}"],
    "bracket left open": of(INTS, lambda rng: f"[{rng.randint(1, 99)}"),
    "quote left open": of(TEXTS, lambda rng: f"'{word(rng)}"),
    "no key": lambda rng: [f"={rng.randint(0, 9)}"],
    "no value": lambda rng: [rng.choice(INTS)],
    "several values without -m": of(INTS, lambda rng: f"{rng.randint(1, 9)},7"),
    "removed key": lambda rng: [f"~{rng.choice(INTS + FLOATS)}"],
    "reference to nothing": lambda rng: [f"name=${{{word(rng)}}}"],
    "reference to no variable": lambda rng: [f"name=${{oc.env:{word(rng).upper()}}}"],
    "unknown resolver": lambda rng: [f"seed=${{{word(rng)}:1}}"],
    "reference to itself": lambda rng: ["seed=${seed}"],
    "name that leads elsewhere": lambda rng: [f"name={'../' * rng.randint(1, 9)}{word(rng)}"],
    "name that is too long": lambda rng: [f"name={'n' * rng.randint(101, 5000)}"],
    "file: no YAML": file_with(lambda rng: f"train: [{word(rng)}\n"),
    "file: tabs": file_with(lambda rng: f"train:\n\t{word(rng)}: 1\n"),
    "file: unknown key": file_with(lambda rng: f"train:\n  {word(rng)}: 1\n"),
    "file: a word for a count": file_with(lambda rng: f"train:\n  max_steps: {word(rng)}\n"),
    "file: another type": file_with(lambda rng: "train: 3\n"),
    "file: not UTF-8": file_with(lambda rng: b"name: " + bytes([rng.randint(0xA0, 0xFF)]) + b"\xff\n"),
    "file: an object of Python's": file_with(lambda rng: f"name: !!python/object/apply:os.mkdir [{word(rng)}]\n"),
    "file: unknown default": lambda rng: [*file_with(lambda r: "")(rng), f"+nothing={word(rng)}"],
}


def assert_refused(outcome, kind: str, words: list[str], seed: int) -> None:
    told = (kind, words, outcome.code, outcome.err[-1500:], replay("malformed", seed))
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 2, told
    assert len(lines) == 1, told
    assert lines[0].startswith("gvc: error: "), told
    assert "a defect of gvc" not in lines[0], told
    assert "Traceback" not in outcome.err, told
    assert outcome.out == "", told


def malformed(gvc, tiny: list[str], workdir: Path, count: int) -> dict[str, int]:
    counts: dict[str, int] = {}
    inside = workdir / "inside"
    inside.mkdir()
    os.chdir(inside)
    for seed, rng in trials("malformed", count):
        kind = list(KINDS)[seed % len(KINDS)]
        words = KINDS[kind](rng)
        assert_refused(gvc("train", *tiny, *words), kind, words, seed)
        assert list(inside.iterdir()) == [], (kind, words)
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def test_a_few_malformed(gvc, tiny, workdir):
    malformed(gvc, tiny, workdir, 12)


@pytest.mark.faults
def test_malformed_overrides_and_files(gvc, tiny, workdir, figure):
    counts = malformed(gvc, tiny, workdir, 300)
    assert len(counts) >= 30 or sum(counts.values()) == 1
    assert max(counts.values()) <= 30
    figure(
        "malformed overrides and config files",
        f"{sum(counts.values())} of {sum(counts.values())}, {len(counts)} kinds: exit 2, one line, no folder",
    )


def test_an_alias_bomb_is_refused_at_once(gvc, workdir, figure):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (workdir / "own").mkdir()
    (workdir / "own" / "bomb.yaml").write_text("\n".join(lines) + "\n")
    started = time.monotonic()
    outcome = gvc("train", "--config-dir", "own", "--config-name", "bomb")
    took = time.monotonic() - started
    assert_refused(outcome, "alias bomb", [], 0)
    assert "bomb.yaml" in outcome.err
    assert took < 30  # written out, the values would take hours
    figure("a YAML file whose aliases stand for 9^10 values", f"refused in {took:.1f} s")


class Opened:
    """Whoever unpickles this leaves a trace."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def forge(folder: Path, files: dict[str, bytes], step: int | None = None) -> None:
    """Write files and a manifest that fits them, as one who knows the format can."""
    for old in folder.iterdir():
        old.unlink()
    entries = {n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in files.items()}
    manifest = {"schema_version": SCHEMA_VERSION, "step": step or int(folder.name[5:]), "files": entries}
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    for name, data in files.items():
        (folder / name).write_bytes(data) if "/" not in name else None
    (folder / MANIFEST).write_text(json.dumps(manifest))


def state_of(run: Path) -> tuple[bytes, bytes]:
    folder = list_checkpoints(run / "checkpoints")[-1]
    return (folder / "state.safetensors").read_bytes(), (folder / "state.json").read_bytes()


def in_all(run: Path, change: Callable[[Path], None]) -> None:
    for folder in list_checkpoints(run / "checkpoints"):
        change(folder)


def with_files(**files: bytes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        tensors, state = state_of(run)
        own = {name.replace("_", "."): data for name, data in files.items()}
        in_all(run, lambda folder: forge(folder, {"state.safetensors": tensors, "state.json": state} | own))

    return change


def replaced_by(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Put something else in the place of the state, under its name."""

    def change(folder: Path) -> None:
        (folder / "state.json").unlink()
        make(folder / "state.json")

    return lambda run: in_all(run, change)


def with_config(**changes) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        config = json.loads((run / "config.json").read_text())
        for path, value in changes.items():
            part, _, key = path.partition("__")
            (config[part] if key else config)[key or part] = value
        (run / "config.json").write_text(json.dumps(config))

    return change


HOSTILE: dict[str, tuple[Callable[[Path], None], tuple[int, ...]]] = {
    "a pickle for tensors": (with_files(state_safetensors=pickle.dumps(Opened())), (5,)),
    "a pickle for the state": (with_files(state_json=pickle.dumps(Opened())), (5,)),
    "a header of 2^60 bytes": (with_files(state_safetensors=(1 << 60).to_bytes(8, "little") + b"{}"), (5,)),
    "tensors of nobody": (with_files(state_safetensors=save({})), (5,)),
    "a state that is a list": (with_files(state_json=b"[]"), (5,)),
    "a state nested 100,000 deep": (with_files(state_json=b"[" * 100_000), (5,)),
    "a file that leads elsewhere": (lambda run: in_all(run, lambda f: forge(f, {"../../../../outside/x": b"x"})), (5,)),
    "another step than its name": (lambda run: in_all(run, lambda f: forge(f, {"state.json": b"{}"}, 999)), (5,)),
    "a link to another file": (replaced_by(lambda p: p.symlink_to("/etc/passwd")), (5,)),
    "a pipe that never ends": (replaced_by(lambda p: os.mkfifo(p)), (5,)),
    "an endless device": (replaced_by(lambda p: p.symlink_to("/dev/zero")), (5,)),
    "a manifest nested 100,000 deep": (
        lambda run: in_all(run, lambda f: (f / MANIFEST).write_text("[" * 100_000) and None),
        (5,),
    ),
    "a config nested 100,000 deep": (lambda run: (run / "config.json").write_text("[" * 100_000) and None, (3,)),
    "a config that is a list": (lambda run: (run / "config.json").write_text("[1]") and None, (3,)),
    "a config without a head": (with_config(head=None), (3,)),
    "a head of nobody": (with_config(head={"name": "os.system"}), (3,)),
    "a target to instantiate": (with_config(head={"_target_": "os.mkdir", "name": "grouped"}), (3,)),
    "a word for a count": (with_config(model__n_layer="3"), (3,)),
    "a list for a count": (with_config(model__n_layer=[3]), (3,)),
    "a model of 10^18 weights": (with_config(model__n_layer=10**6, model__n_embd=2 * 10**5), (5,)),
    "a name that leads elsewhere": (with_config(name="../../outside/x"), (3,)),
    "a seed that is text": (with_config(seed="0; rm"), (3,)),
    "a key of nobody": (with_config(surprise=1), (3,)),
    "a source of nobody": (with_config(data__source="exec"), (3,)),
}


@pytest.mark.parametrize("command", ["eval", "sample"])
def test_hostile_run_folders(gvc, config, tmp_path, workdir, command, figure):
    import shutil

    train_to_end(config(), tmp_path / "good")
    (tmp_path / "outside").mkdir()
    for number, (what, (change, codes)) in enumerate(HOSTILE.items()):
        run = tmp_path / "in" / str(number)
        shutil.copytree(tmp_path / "good", run)
        change(run)
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        outcome = gvc(command, str(run))
        assert outcome.code in codes, (what, outcome.code, outcome.err)
        assert "Traceback" not in outcome.err, (what, outcome.err)
        assert "a defect of gvc" not in outcome.err, (what, outcome.err)
        assert sorted(str(p) for p in tmp_path.rglob("*")) == before, what
    figure(
        f"hostile run folders, gvc {command}", f"{len(HOSTILE)} of {len(HOSTILE)} refused, nothing executed or written"
    )


def test_a_strangers_config_does_not_say_where_we_write(gvc, config, tmp_path):
    train_to_end(config(), tmp_path / "run")
    (tmp_path / "valid.txt").write_text("A text nobody has prepared yet.")
    values = json.loads((tmp_path / "run" / "config.json").read_text())
    values["data"] |= {"cache_dir": str(tmp_path / "outside"), "valid": str(tmp_path / "valid.txt")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(values))
    assert gvc("sample", str(tmp_path / "run")).code == 0
    assert gvc("eval", str(tmp_path / "run")).code == 0
    assert not (tmp_path / "outside").exists()


SECRETS = {
    "WANDB_API_KEY": "5ecre7" + "a1" * 17,
    "HF_TOKEN": "hf_5ecre7bbbbbbbbbbbbbbbb",
    "AWS_SECRET_ACCESS_KEY": "5ecre7/cccccccccccccccc",
    "MY_PASSWORD": "5ecre7-dddddddd",
}
NETRC_PASSWORD = "5ecre7-eeeeeeeeeeee"


def bytes_below(*folders: Path) -> bytes:
    return b"\0".join(p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file())


@pytest.mark.faults
def test_secrets_are_nowhere(workdir, tiny, tmp_path, figure):
    (tmp_path / "home").mkdir()
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {NETRC_PASSWORD}\n")
    netrc.chmod(0o600)
    home = {"HOME": str(tmp_path / "home"), "NETRC": str(netrc), "TMPDIR": str(tmp_path / "home")}
    gvc = str(Path(sys.executable).parent / "gvc")
    work = tmp_path / "work"
    work.mkdir()

    def run(*words: str) -> subprocess.CompletedProcess:
        command = [gvc, "train", *tiny, *words]
        return subprocess.run(command, cwd=work, env=os.environ | SECRETS | home, capture_output=True, text=True)

    done = run("tracking=wandb", "hydra.run.dir=run", f"train.mirror={work}/copies")
    assert done.returncode == 0, done.stderr
    diverged = run("optim.lr=1e9", "optim.grad_clip=0", "optim.warmup_steps=0", "hydra.run.dir=bad", "--debug")
    assert diverged.returncode != 0
    refused = [run(f"name={value}", "hydra.run.dir=x") for value in [*list(SECRETS.values())[:2], NETRC_PASSWORD]]
    assert [one.returncode for one in refused] == [2, 2, 2], refused
    assert not (work / "x").exists()
    written = (
        bytes_below(work, tmp_path / "home" / ".cache")
        if (tmp_path / "home" / ".cache").exists()
        else bytes_below(work)
    )
    said = "".join(one.stdout + one.stderr for one in (done, diverged, *refused)).encode()
    assert b"wandb" in written
    assert (written + said).count(b"5ecre7") == 0
    figure("5 secrets in environment, netrc, config", f"in 0 of {len(written) + len(said):,} bytes written and said")


def test_a_config_with_a_secret_is_refused_without_showing_it(gvc, tiny, workdir, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "5ecre7-ffffffff")
    outcome = gvc("train", *tiny, "tracking.tags=[a,x5ecre7-ffffffff]")
    assert outcome.code == 2
    assert outcome.err == (
        "gvc: error: tracking.tags holds the value of $MY_API_KEY: configs are written down, keys are not\n"
    )
    assert list(workdir.iterdir()) == []


def test_tampered_token_files_are_built_anew(config, tmp_path, figure):
    from grouped_lm.data import prepare_data

    made = config()
    made.data.cache_dir = str(tmp_path / "cache")
    expected = prepare_data(made.data, made.tokenizer).train.manifest["sha256"]
    for name in ("tokens.bin", "documents.bin", "manifest.json"):
        (path,) = (tmp_path / "cache").glob(f"text-train-*/{name}")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
        again = prepare_data(made.data, made.tokenizer).train
        assert hashlib.sha256(again.tokens().tobytes()).hexdigest() == expected == again.manifest["sha256"]
    figure("tampered token files", "3 of 3 noticed and built anew (tokenizer files: tests/data/test_tokenizer.py)")


def test_a_checkpoint_that_is_a_link_elsewhere_is_not_pruned_through(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for step in (1, 2):
        write_checkpoint(elsewhere, step, {"state.json": b"{}"}, keep=2)
    parent = tmp_path / "run"
    parent.mkdir()
    (parent / "step-00000001").symlink_to(elsewhere / "step-00000001")
    for step in (2, 3, 4):
        write_checkpoint(parent, step, {"state.json": b"{}"}, keep=2)
    assert len(list_checkpoints(elsewhere)) == 2
    assert (elsewhere / "step-00000001" / MANIFEST).exists()
