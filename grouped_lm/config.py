"""The schema of a run: a tree of dataclasses whose defaults are those of `gvc train`.

Values come from YAML or from Python; a value out of range raises `ConfigError` when the object is built, with
the full path of the field. Heads bring schemas of their own (`grouped_lm.heads`), so that a new head is a new
file: `Config.head` holds one of them.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin

from grouped_lm.errors import ConfigError, SchemaError

IGNORE_INDEX = -100
"""A target of this value is ignored: no loss, no gradient, not part of the mean."""
SCHEMA_VERSION = 2
"""Version of the files in a run folder: config.json, job.json and checkpoints. Other versions are refused."""


def check_range(path: str, value: float | None, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise `ConfigError` unless low <= value <= high (low < value if `open_low`); None passes."""
    if value is None:
        return
    inside = (value > low if open_low else value >= low) and value <= high and math.isfinite(value)
    if not inside:  # NaN compares false and lands here too
        ceiling = "inf)" if high == math.inf else f"{high:g}]"
        raise ConfigError(f"{path} must be in {'(' if open_low else '['}{low:g}, {ceiling}, got {value}")


def check_label(path: str, value: str) -> None:
    """Raise `ConfigError` unless `value` can be part of a folder's name: without slashes."""
    if not value or len(value) > 100 or not value.isprintable() or set(value) & set("/\\") or set(value) == {"."}:
        raise ConfigError(f"{path} must be 1 to 100 printable characters without / and \\, got {value[:100]!r}")


def check_choice(path: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{path} must be one of {', '.join(allowed)}, got {value!r}")


def free(default: Any = MISSING, *, factory: Any = MISSING, cost: bool = False) -> Any:
    """Return a dataclass field that may change between a run and its continuation.

    All other fields are part of the run's identity (`grouped_lm.runs.identity`).

    Args:
        default: the default value.
        factory: a function that makes the default value, instead of `default`.
        cost: whether the field changes the speed or the memory of a run. Tables of runs show such a field.
    """
    return field(default=default, default_factory=factory, metadata={"identity": False, "cost": cost})


def parse_named(registry: Mapping[str, type], values: Any, path: str, key: str = "name") -> Any:
    """Return the config object that `values[key]` names, with every key and every type checked.

    Args:
        registry: the schema (a dataclass) of each name.
        values: the settings as a plain dict, for example out of YAML or JSON.
        path: the config key of these settings, such as "head". Error messages begin with it.
        key: the setting that holds the name.

    Raises:
        ConfigError: an unknown name or key, a value of another type or out of range.
    """
    name = values.get(key) if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or not isinstance(name, str) or name not in registry:
        raise ConfigError(f"{path} must be one of {', '.join(registry)}, got {name!r}")
    return parse_fields(registry[name], values, path, f" for {path}={name}")


def parse_fields(schema: Any, values: Mapping[str, Any], path: str, owner: str = "") -> Any:
    """Return `schema(**values)`, with every key and every type checked.

    Args:
        schema: a dataclass.
        values: its settings; settings that are left out keep their defaults.
        path: the config key of these settings, such as "train"; "" for a whole config.
        owner: what the message about an unknown key adds, such as " for head=dense".

    Raises:
        ConfigError: an unknown key, a value of another type or out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must hold settings, got {values!r:.100}")
    types = {f.name: f.type for f in fields(schema)}
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f" ({path or 'a config'} has {', '.join(types)})"
            raise ConfigError(f"unknown key {prefix}{key}{owner}{hint}")
    return schema(**{key: check_type(f"{prefix}{key}", types[key], value) for key, value in values.items()})


def check_type(path: str, kind: Any, value: Any) -> Any:
    """Return `value`, as a float where `kind` is float and the value is a whole number such as 1.

    Args:
        path: the config key, for the error message.
        kind: a class, a union of classes, `list[...]` or `Any`.
        value: the value that was given.

    Raises:
        ConfigError: the value has another type.
    """
    if kind is Any:
        return value
    kinds = tuple(get_origin(k) or k for k in (get_args(kind) if isinstance(kind, UnionType) else (kind,)))
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"{path} must be {kind.__name__ if isinstance(kind, type) else kind}, got {value!r:.100}")
    return value


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Body of the network, in GPT-2's own names."""

    name: str = "gpt2-1m"
    body: str = "gpt2"
    """`gpt2` or `gpt_neo`."""
    n_layer: int = 8
    """Blocks, >= 1."""
    n_head: int = 16
    """Attention heads, divides n_embd."""
    n_embd: int = 64
    """Width D, >= 1."""
    block_size: int = 256
    """Longest context, tokens, >= 1."""
    dropout: float = 0.0
    """Probability in [0, 0.99], on embeddings, attention weights, attention output and MLP output."""
    window_size: int = 256
    """GPT-Neo's local attention span, tokens, >= 1; every second layer uses it."""
    embedding: str = "table"
    """Input side: `table`, a row per token, or `factorised`, scale and shift per group on a row per slot (no tying)."""
    attention: str = free("fused", cost=True)
    """`fused` (torch's kernel) or `unfused`: the same function with T x T scores in memory, to measure their cost."""
    activation_checkpointing: bool = free(False, cost=True)
    """Keep only the states between blocks for the backward pass, which computes the inside of each again: less memory,
    a third more operations of the body."""

    def __post_init__(self) -> None:
        check_label("model.name", self.name)
        check_choice("model.body", self.body, ("gpt2", "gpt_neo"))
        check_choice("model.attention", self.attention, ("fused", "unfused"))
        for key in ("n_layer", "n_head", "n_embd", "block_size", "window_size"):
            check_range(f"model.{key}", getattr(self, key), 1, 1_000_000)
        check_choice("model.embedding", self.embedding, ("table", "factorised"))
        check_range("model.dropout", self.dropout, 0.0, 0.99)
        if self.n_embd % self.n_head:
            raise ConfigError(f"model.n_embd must be a multiple of model.n_head, got {self.n_embd} and {self.n_head}")


@dataclass(kw_only=True, slots=True)
class GroupingConfig:
    """How tokens are put into groups. A grouping with options has a subclass in `grouped_lm.grouping`."""

    name: str = "merge_rank"
    """A name of `grouped_lm.grouping.GROUPINGS`."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Settings that every data source has. Options of one source are in a subclass in `grouped_lm.data.sources`."""

    name: str = free("tinytales")
    """A label for tables."""
    source: str = "tinytales"
    """A name of `grouped_lm.data.sources.SOURCES`: `tinytales` (embedded generator), `hub` (a Hugging Face dataset) or
    `text` (own files)."""
    cache_dir: str = free("~/.cache/gvc")
    """Folder of the prepared token files, which can be rebuilt from the source at any time."""

    def __post_init__(self) -> None:
        if not self.cache_dir.strip():
            raise ConfigError("data.cache_dir ($GVC_CACHE_DIR) must name a folder, got ''")


def tokenizer_label(values: dict[str, Any]) -> str:
    """Return `gpt2`, `bytes`, or `bpe-4096` for the fields of a `TokenizerConfig`."""
    return "-".join(str(values[key]) for key in ("name", "vocab_size") if values.get(key) is not None)


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """Text to ids."""

    name: str = "gpt2"
    """`gpt2` (50,257 ids), `bytes` (256 bytes and one end-of-text) or `bpe` (trained on the training text)."""
    vocab_size: int | None = None
    """`bpe`: ids, end-of-text included, in [258, 65536]; null for the others, whose sizes are fixed."""
    file: str | None = None
    """`bpe`: a tokenizer.json trained before, such as a run folder's; null trains one on data.train."""

    def __post_init__(self) -> None:
        check_choice("tokenizer.name", self.name, ("gpt2", "bytes", "bpe"))
        check_range("tokenizer.vocab_size", self.vocab_size, 258, 65536)
        if (self.vocab_size is not None) != (self.name == "bpe"):
            raise ConfigError(f"tokenizer.vocab_size belongs to tokenizer=bpe, got {self.vocab_size} for {self.name}")
        if self.file is not None and self.name != "bpe":
            raise ConfigError(f"tokenizer.file belongs to tokenizer=bpe, got {self.file!r} for {self.name}")

    @property
    def label(self) -> str:
        """The name that tables show: losses per token compare only where it is the same."""
        return tokenizer_label(asdict(self))


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Settings that every optimizer has: linear warm-up, then cosine decay, and clipping."""

    name: str = "adamw"
    lr: float = 1e-3
    """Peak learning rate, > 0."""
    warmup_steps: int = 50
    """Steps of linear rise, >= 0."""
    min_lr_ratio: float = 0.1
    """Learning rate at the last step, as a share of `lr`, in [0, 1]."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient, >= 0. With 0 the gradient is not clipped."""

    def __post_init__(self) -> None:
        check_range("optim.lr", self.lr, 0, 1e9, open_low=True)
        check_range("optim.warmup_steps", self.warmup_steps, 0, 10**9)
        check_range("optim.min_lr_ratio", self.min_lr_ratio, 0, 1)
        check_range("optim.grad_clip", self.grad_clip, 0, 1e9)


@dataclass(kw_only=True, slots=True)
class AdamWConfig(OptimConfig):
    """AdamW, the default. It is here so that `Config()` has an optimizer; others are in `grouped_lm.optim`."""

    beta1: float = 0.9
    """Decay of the average of gradients, in [0, 0.999999]."""
    beta2: float = 0.95
    """Decay of the average of squared gradients, in [0, 0.999999]."""
    eps: float = 1e-8
    """Added to the root of the second average, in (0, 1]."""
    weight_decay: float = 0.1
    """On matrices only. Norms, biases, scales and shifts have none."""
    sparse_rows: bool = False
    """In tables with a row per token, update only the rows that have a gradient in this step. This is not dense AdamW,
    where all other rows decay and move by their momentum."""

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)  # super() does not work in a dataclass with slots
        check_choice("optim.name", self.name, ("adamw",))
        check_range("optim.beta1", self.beta1, 0, 0.999999)
        check_range("optim.beta2", self.beta2, 0, 0.999999)
        check_range("optim.eps", self.eps, 0, 1, open_low=True)
        check_range("optim.weight_decay", self.weight_decay, 0, 1e6)


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """The training loop: steps, batches, devices, checkpoints and logs."""

    max_steps: int = 300
    """Optimizer steps, >= 1."""
    micro_batch_size: int = 8
    """Windows of block_size tokens per forward pass of all processes together, >= 1."""
    grad_accum_steps: int = 1
    """Forward passes per optimizer step, >= 1."""
    dtype: str = "float32"
    """`float32`, or `bfloat16` for autocast with fp32 weights and losses."""
    label_smoothing: float = 0.0
    """Share of the target's probability that all classes of the head's first softmax get, in [0, 0.99]; that softmax is
    over groups in heads that have them. Reported losses stay true likelihoods."""
    z_loss: float = 0.0
    """Weight in [0, 1] of the squared log of the first softmax's partition function; 1e-4 is usual."""
    compile: bool = False
    """Run the body and head through `torch.compile`."""
    cuda_graphs: bool = free(False, cost=True)
    """Record compiled passes as CUDA graphs, so that small models do not wait for launches; needs train.compile=true,
    train.grad_accum_steps=1 and a GPU."""
    device: str = free("auto")
    """`auto`, `cpu` or `cuda`."""
    devices: int = free(1, cost=True)
    """Processes that train together on this machine, one per GPU, in [1, 1024]; each takes an equal part of every
    micro-batch. Neither this nor the four below change what is computed, but for rounding and dropout."""
    nodes: int = free(1, cost=True)
    """Machines with `devices` processes each, in [1, 1024]; more than 1 inside a SLURM job that has as many."""
    strategy: str = free("ddp", cost=True)
    """`ddp`: the whole model on each device; `fsdp2`: weights, gradients and optimizer state in shards."""
    vocab_parallel: bool = free(False, cost=True)
    """With `ddp` and several processes: each has its part of the rows of the input embedding and of a dense head, with
    their gradients and optimizer state, and states travel instead of these gradients. Other heads stay whole."""
    max_restarts: int = free(3)
    """How often all processes are restarted from the last checkpoint after one is lost, >= 0."""
    threads: int | None = None
    """CPU threads, >= 1; null leaves torch's choice. Part of what makes a run repeatable to the bit."""
    resume: str = free("auto")
    """`auto` continues from the folder's last checkpoint; `never` refuses a folder that has one."""
    log_every_steps: int = free(10)
    eval_every_steps: int | None = free(None)
    """Validation also every so many steps; null means at the end only."""
    eval_batch_size: int | None = free(None)
    """Windows per validation pass of one process; null means its part of micro_batch_size."""
    checkpoint_every_steps: int | None = free(None)
    """null means every tenth of the run; the last step is always saved."""
    checkpoint_every_minutes: float = free(10.0)
    """Save at least once in so many minutes."""
    keep_checkpoints: int = free(2)
    """Number of newest checkpoints to keep, >= 2, so that a damaged one always has a predecessor."""
    mirror: str | None = free(None)
    """A folder for a verified copy of every checkpoint, in a folder named after the run and a hash of it;
    used when none is here."""
    on_nonfinite: str = free("raise")
    """After a loss or gradient that is not finite: `raise` ends the run, `skip` leaves the update out, `rollback`
    returns to the last checkpoint and continues with the text after the one that caused it."""
    max_nonfinite: int = free(3)
    """How many times `skip` or `rollback` is done, >= 0, before the run ends as with `raise`."""
    hang_minutes: float | None = free(30.0)
    """Minutes without a step or an evaluation batch after which the process ends, > 0; null means no limit."""

    def __post_init__(self) -> None:
        check_range("train.max_steps", self.max_steps, 1, 10**9)
        check_range("train.micro_batch_size", self.micro_batch_size, 1, 10**6)
        check_range("train.grad_accum_steps", self.grad_accum_steps, 1, 10**6)
        check_range("train.label_smoothing", self.label_smoothing, 0, 0.99)
        check_range("train.z_loss", self.z_loss, 0, 1)
        check_choice("train.dtype", self.dtype, ("float32", "bfloat16"))
        check_choice("train.device", self.device, ("auto", "cpu", "cuda"))
        check_range("train.devices", self.devices, 1, 1024)
        check_range("train.nodes", self.nodes, 1, 1024)
        check_choice("train.strategy", self.strategy, ("ddp", "fsdp2"))
        if self.vocab_parallel and (self.strategy != "ddp" or self.compile):
            raise ConfigError(
                "train.vocab_parallel=true needs train.strategy=ddp (fsdp2 has the table in shards already) and "
                f"train.compile=false, got {self.strategy} and {str(self.compile).lower()}"
            )
        check_range("train.max_restarts", self.max_restarts, 0, 10**6)
        self.share(self.processes)
        if self.cuda_graphs and (not self.compile or self.grad_accum_steps > 1 or self.processes > 1):
            raise ConfigError(
                "train.cuda_graphs=true needs train.compile=true, train.grad_accum_steps=1 and one process, "
                f"got {str(self.compile).lower()}, {self.grad_accum_steps} and {self.processes}"
            )
        check_range("train.threads", self.threads, 1, 4096)
        check_choice("train.resume", self.resume, ("auto", "never"))
        for key in ("log_every_steps", "eval_every_steps", "eval_batch_size", "checkpoint_every_steps"):
            check_range(f"train.{key}", getattr(self, key), 1, 10**9)
        check_range("train.checkpoint_every_minutes", self.checkpoint_every_minutes, 0, 10**6, open_low=True)
        check_range("train.keep_checkpoints", self.keep_checkpoints, 2, 10**6)
        check_choice("train.on_nonfinite", self.on_nonfinite, ("raise", "skip", "rollback"))
        check_range("train.max_nonfinite", self.max_nonfinite, 0, 10**6)
        check_range("train.hang_minutes", self.hang_minutes, 0, 10**6, open_low=True)

    @property
    def processes(self) -> int:
        """All processes on all machines."""
        return self.devices * self.nodes

    def share(self, processes: int) -> int:
        """Return the windows that each of so many processes takes of a micro-batch.

        Raises:
            ConfigError: they cannot take equal parts.
        """
        if self.micro_batch_size % processes:
            below = self.micro_batch_size // processes * processes
            near = " or ".join(str(size) for size in (below, below + processes) if size)
            raise ConfigError(
                f"train.micro_batch_size={self.micro_batch_size} cannot be shared by {processes} processes "
                f"(train.devices x train.nodes): {near} can"
            )
        return self.micro_batch_size // processes


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Weights & Biases. `metrics.jsonl` and `result.json` are always written."""

    mode: str = "offline"
    """`online`, `offline` (in the run folder, `wandb sync` sends it later) or `disabled`."""
    project: str = "gvc"
    entity: str | None = None
    group: str | None = None
    """Runs that belong together, e.g. the name of a sweep."""
    job_type: str = "train"
    tags: list[str] = field(default_factory=list)
    """Added to the tags for model, head and data."""
    init_timeout_s: float = 20.0
    """Seconds to wait for the server before the run goes on without it."""

    def __post_init__(self) -> None:
        check_choice("tracking.mode", self.mode, ("online", "offline", "disabled"))
        check_range("tracking.init_timeout_s", self.init_timeout_s, 0, 3600, open_low=True)


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    """The language model that grades stories for `gvc eval --judge`. It changes nothing about a run."""

    base_url: str = "https://api.openai.com/v1"
    """Of any endpoint that speaks OpenAI's chat completions: a paid one, or a server on this machine."""
    model: str = "gpt-4o-mini"
    """As the endpoint names it."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, which is never written down; unset where a local server needs none."""
    num_stories: int = 50
    """Beginnings to complete."""
    max_new_tokens: int = 200
    """Of a completion."""
    temperature: float = 1.0
    """Of the completions, 0 for the likeliest."""
    retries: int = 4
    """Times to ask again after no answer (with growing waits) or an answer without grades."""
    timeout_s: float = 60.0
    """Seconds to wait for one answer."""
    usd_per_million_prompt_tokens: float | None = None
    """With the next one: what the answers cost is added up."""
    usd_per_million_completion_tokens: float | None = None

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"judge.base_url={self.base_url!r} is no address: http://... or https://...")
        check_range("judge.num_stories", self.num_stories, 1, 10**6)
        check_range("judge.max_new_tokens", self.max_new_tokens, 1, 10**6)
        check_range("judge.temperature", self.temperature, 0, 1e6)
        check_range("judge.retries", self.retries, 0, 100)
        check_range("judge.timeout_s", self.timeout_s, 0, 86_400, open_low=True)
        check_range("judge.usd_per_million_prompt_tokens", self.usd_per_million_prompt_tokens, 0, 1e6)
        check_range("judge.usd_per_million_completion_tokens", self.usd_per_million_completion_tokens, 0, 1e6)


@dataclass(kw_only=True, slots=True)
class Config:
    """One run."""

    name: str = free("run")
    """A label without effect on the training."""
    seed: int = 0
    """Seeds weights, dropout and the order of the data."""
    model: ModelConfig = field(default_factory=ModelConfig)
    head: Any = None
    """A head's own config, such as `grouped_lm.heads.GroupedConfig`."""
    grouping: Any = None
    """The config of a grouping, such as `grouped_lm.grouping.KMeansConfig`; None means the paper's, `merge_rank`."""
    data: Any = None
    """The config of a data source, such as `grouped_lm.data.TextConfig`; None means `tinytales`."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: Any = field(default_factory=AdamWConfig)
    """An optimizer's own config, an `OptimConfig`."""
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = free(factory=TrackingConfig)
    judge: JudgeConfig = free(factory=JudgeConfig)

    def __post_init__(self) -> None:
        check_label("name", self.name)
        check_range("seed", self.seed, 0, 2**63 - 1)
        if self.grouping is None:
            self.grouping = GroupingConfig()
        if self.data is None:
            self.data = DataConfig()


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the config and the schema version as plain dicts, lists and scalars, ready for JSON."""
    return {"schema_version": SCHEMA_VERSION, **asdict(config)}


def config_from_dict(values: Mapping[str, Any], parsers: Mapping[str, Callable[[Any], Any]]) -> Config:
    """Rebuild a config from plain values.

    Args:
        values: the settings by part, as `config_to_dict` returns them; "schema_version" is ignored.
        parsers: a function for each part whose schema depends on a name in it, such as `parse_head_config`.

    Raises:
        ConfigError: an unknown key, a value of another type or out of range.
    """
    types: dict[str, Any] = {f.name: f.type for f in fields(Config)}
    built = {part: parse(values.get(part)) for part, parse in parsers.items()}
    for key, value in values.items():
        if key not in parsers and key != "schema_version":
            built[key] = parse_fields(types[key], value, key) if is_dataclass(types.get(key)) else value
    config: Config = parse_fields(Config, built, "")
    return config


def check_schema(version: Any, place: object) -> None:
    """Refuse a file that another version of gvc wrote.

    Args:
        version: the schema version in the file, None where the file has none.
        place: the file or folder, for the message.

    Raises:
        SchemaError: the version is not `SCHEMA_VERSION`.
    """
    if version == SCHEMA_VERSION:
        return
    old = version is None or (isinstance(version, int) and version < SCHEMA_VERSION)
    advice = "train again, or read it with gvc 0.1" if old else "use the gvc that wrote it"
    raise SchemaError(
        f"{place} has schema version {1 if version is None else version}, this gvc reads {SCHEMA_VERSION}: {advice}"
    )
