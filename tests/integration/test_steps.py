"""Lists of steps: they add up, every command composes, texts are found, mistakes end in one line."""

import shlex
from pathlib import Path

import pytest
from grouped_lm.cli.compose.compose import HydraFlags, composing, config_groups, expand_jobs, to_config
from grouped_lm.cli.compose.run import compose_bench

from grouped_lm.errors import ConfigError, DataError
from grouped_lm.reproduction.claims import load_claims
from grouped_lm.reproduction.run import Reproduction
from grouped_lm.reproduction.steps import SCALES, find_text, find_texts, load_scale, select_steps

TINY = str(Path(__file__).parents[1] / "helpers" / "tiny.yaml")
TEXT = "data=text data.name={0} data.train=a.txt data.valid=b.txt"


def commands(name):
    """Every command of a scale, texts filled in, as words."""
    scale = load_scale(name)
    texts = {role: scale.texts[role] or TEXT.format(role) for role in ("stories", "other")}
    work = Reproduction(scale, Path("out"), [])
    work.texts = texts
    return {step.name: shlex.split(work.command(step)) for step in scale.steps}


def jobs_of(words):
    """The overrides of every job of a sweep's command."""
    with composing(HydraFlags()) as compose_with:
        params = compose_with([f"sweep={words[2]}"], return_hydra_config=True).hydra.sweeper.params
    given = {word.split("=")[0] for word in words[3:]}
    return expand_jobs(
        [f"sweep={words[2]}", *words[3:]], {key: value for key, value in params.items() if key not in given}
    )


def compose(jobs):
    """The configs of jobs; a bad one raises."""
    with composing(HydraFlags()) as compose_with:
        return [to_config(compose_with(job)) for job in jobs]


@pytest.mark.parametrize("name", SCALES)
def test_minutes_add_up(name):
    scale = load_scale(name)
    assert 0 < sum(step.minutes for step in scale.steps) <= scale.minutes
    assert len({step.name for step in scale.steps}) == len(scale.steps)
    assert [step.name for step in scale.steps if step.always] == ["report"]
    assert scale.minutes <= {"smoke": 7, "cpu": 180}.get(name, 10**6)


@pytest.mark.parametrize("name", [*SCALES, TINY])
def test_every_command_composes(name):
    """As far as that goes without running: sweeps and benches are composed and checked, job by job."""
    for step, words in commands(name).items():
        assert words[0] == "gvc"
        if words[1] == "bench":
            overrides = [word for word in words[3:] if "=" in word]
            grid = words[words.index("--grid") + 1] if "--grid" in words else "quick"
            compose_bench(words[2], grid, overrides, None)
        elif words[1] == "sweep":
            assert words[2] in config_groups()["sweep"], step
            jobs = jobs_of(words)
            assert compose([jobs[0], jobs[-1]])
            assert f"hydra.sweep.dir=out/{step}" in words
            assert f"tracking.group={load_scale(name).name}-{step}" in words  # runs of two scales stay apart


@pytest.mark.parametrize("name", SCALES)
def test_claims_name_steps_that_there_are(name):
    steps = {step.name for step in load_scale(name).steps}
    if name != "smoke":  # a smoke test has no second text and fewer sweeps
        assert {run for claim in load_claims().claims for run in claim.runs} <= steps
    assert {claim.id for claim in load_claims().claims if not set(claim.runs) & steps} <= {
        "group-size-texts",
        "group-size-tasks",
        "other-text",
        "scale-and-shift-states",
    }


def test_the_main_runs_of_a_scale_are_compared_with_each_other():
    """What a claim compares must differ in the head alone."""
    for name in ("cpu", "paper"):
        settings = set()
        for step in ("main-gpt2", "groupings", "full-layers", "class-full"):
            for config in compose(job for job in jobs_of(commands(name)[step]) if "seed=0" in job):
                train = config.train
                sizes = train.max_steps, train.micro_batch_size, train.grad_accum_steps, train.dtype
                settings.add((str(config.optim), str(config.model), config.data.name, *sizes))
        assert len(settings) == 1, name


def test_scales_and_steps_that_there_are_not(tmp_path):
    with pytest.raises(ConfigError, match=r"smoke, cpu, cpu-long, paper or a \.yaml file"):
        load_scale("huge")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_scale(str(tmp_path / "none.yaml"))
    for steps, message in (("{name: a}", "is no list of steps"), ("{name: a, colour: red}", "unknown key .*colour")):
        (tmp_path / "bad.yaml").write_text(f"about: x\nsteps: [{steps}]\n")
        with pytest.raises(ConfigError, match=message):
            load_scale(str(tmp_path / "bad.yaml"))
    with pytest.raises(ConfigError, match="it has order-stories, main-gpt2"):
        select_steps(load_scale("smoke"), ["report", "nosuch"])
    assert [step.name for step in select_steps(load_scale("smoke"), ["report", "evaluate"])] == ["evaluate", "report"]


STEP = "{name: a, about: x, minutes: 1, command: gvc doctor}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("minutes: 9", "minutes: long", "minutes must be a number, got 'long'"),
        ("gvc doctor", "[gvc, doctor]", "command must be a text"),
        ("gvc doctor", "rm -r /", "must begin with gvc"),
        ("gvc doctor", "'gvc doctor {folder}'", "{folder} is none of {out}"),
        ("gvc doctor", "'gvc eval {run}'", "belong together"),
        ("gvc doctor", "'gvc doctor \"'", "cannot be split"),
        (STEP, f"{STEP}, {STEP}", "step 'a' is there twice"),
        ("name: a", "name: ../a", "without /"),
        (
            "minutes: 1,",
            "minutes: 1, each: /etc/*, makes: x, side_by_side: yes,",
            "side_by_side must be a whole number",
        ),
        ("stories: null", "novel: null", "texts must be overrides"),
        ("stories: null", "stories: 3", "texts must be overrides"),
    ],
)
def test_lists_of_ones_own_that_are_wrong_are_refused_at_the_start(tmp_path, old, new, said):
    text = f"about: x\nmachine: any\nminutes: 9\ntexts: {{stories: null}}\nsteps: [{STEP}]\n"
    (tmp_path / "own.yaml").write_text(text)
    assert [step.name for step in load_scale(str(tmp_path / "own.yaml")).steps] == ["a"]
    assert old in text
    (tmp_path / "own.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as error:
        load_scale(str(tmp_path / "own.yaml"))
    assert said in str(error.value)


def test_texts_are_found_and_commands_hold_nobodys_paths(tmp_path):
    for name in ("tinystories", "prose"):
        (tmp_path / name).mkdir()
        for split in ("train", "valid"):
            (tmp_path / name / f"{split}.txt").write_text(f"{name} {split}\n<|endoftext|>\n")
    texts = [find_text(f"tinystories={tmp_path / 'prose'}"), find_text(str(tmp_path / "prose"))]
    assert [text.name for text in texts] == ["tinystories", "prose"]
    work = Reproduction(load_scale("cpu"), tmp_path / "out", texts)
    with work.lock():
        work.prepare()
    assert (tmp_path / "out/texts/tinystories/train.txt").read_text().startswith("prose train")
    work.prepare()
    other = Reproduction(load_scale("cpu"), tmp_path / "out", [find_text(str(tmp_path / "tinystories"))])
    with pytest.raises(ConfigError, match="begun with another text tinystories"):
        other.prepare()
    swapped = Reproduction(load_scale("cpu"), tmp_path / "out", [find_text(f"tinystories_v2={tmp_path / 'prose'}")])
    with pytest.raises(ConfigError, match="begun with the text tinystories, not tinystories_v2"):
        swapped.prepare()
    resumed = Reproduction(load_scale("cpu"), tmp_path / "out", [])  # a folder that was begun remembers its texts
    resumed.prepare()
    assert resumed.texts == work.texts
    assert (tmp_path / "out/texts/tinystories/train.txt").read_text().startswith("prose train")
    turned = Reproduction(load_scale("cpu"), tmp_path / "out", texts[::-1])
    turned.prepare()
    assert turned.texts == work.texts
    with pytest.raises(ConfigError, match="holds a reproduction of scale cpu"):
        Reproduction(load_scale("smoke"), tmp_path / "out", []).prepare()
    relative = Reproduction(load_scale("cpu"), Path("out"), texts)
    assert "data.train=out/texts/prose/train.txt" in relative.command(relative.scale.steps[1])


@pytest.mark.parametrize("files", [[], ["train.txt"], ["train.txt", "train.jsonl", "valid.txt"]])
def test_folders_that_are_no_text(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"must hold one (train|valid)\.txt, \.jsonl or \.parquet"):
        find_text(str(tmp_path))
    with pytest.raises(DataError, match="is no folder"):
        find_text(f"a={tmp_path / 'none'}")
    with pytest.raises(ConfigError, match="without /"):
        find_text(f"..\\a={tmp_path}")


def test_two_texts_of_one_name_are_one_too_many(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.txt").write_text("x")
    assert [text.role for text in find_texts([f"a={tmp_path}", f"tinystories={tmp_path}"])] == ["other", "stories"]
    for given in (["a", "b"], ["tinystories", "tinystories_v2"]):
        with pytest.raises(ConfigError, match=r"one text named tinystories\.\.\., .* and one that is not"):
            find_texts([f"{name}={tmp_path}" for name in given])
    for given in (["a", "a"], ["a", "b", "c"]):
        with pytest.raises(ConfigError, match="one or two texts of different names"):
            find_texts([f"{name}={tmp_path}" for name in given])


def test_the_dtype_of_a_folder_stays_on_another_processor(tmp_path, monkeypatch):
    scale = load_scale("cpu")
    step = next(step for step in scale.steps if "{cpu_dtype}" in step.command)
    monkeypatch.setattr("grouped_lm.reproduction.run.cpu_dtype", lambda: "bfloat16")
    first = Reproduction(scale, tmp_path, [])
    first.prepare()
    monkeypatch.setattr("grouped_lm.reproduction.run.cpu_dtype", lambda: "float32")
    assert "train.dtype=bfloat16" in first.command(step)
    assert Reproduction(scale, tmp_path, []).command(step) == first.command(step)
    assert "train.dtype=float32" in Reproduction(scale, tmp_path / "other", []).command(step)
