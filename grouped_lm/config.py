"""The schema of a run: a tree of dataclasses whose defaults are those of `gvc train`.

Values come from YAML or from Python; a value out of range raises `ConfigError` when the object is built, with
the full path of the field. Heads bring schemas of their own (`grouped_lm.heads`), so that a new head is a new
file: `Config.head` holds one of them.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from types import UnionType
from typing import Any, get_args, get_origin

from grouped_lm.errors import ConfigError, SchemaError

IGNORE_INDEX = -100
"""A target of this value is ignored: no loss, no gradient, not part of the mean."""
SCHEMA_VERSION = 2
"""Version of the files in a run folder: config.json, job.json and checkpoints. Other versions are refused."""


def check_range(path: str, value: float | None, low: float, high: float = math.inf, open_low: bool = False) -> None:
    """Raise `ConfigError` unless low <= value <= high (low < value if `open_low`); None passes."""
    if value is None:
        return
    inside = (value > low if open_low else value >= low) and value <= high and math.isfinite(value)
    if not inside:  # NaN compares false and lands here too
        raise ConfigError(f"{path} must be in {format_range(low, high, open_low)}, got {value}")


def format_range(low: float, high: float, open_low: bool) -> str:
    """Return a range such as "[0, 1]" or "(0, inf)"."""
    return f"{'(' if open_low else '['}{low:g}, {'inf)' if high == math.inf else f'{high:g}]'}"


def check_label(path: str, value: str) -> None:
    """Raise `ConfigError` unless `value` can be part of a folder's name: without slashes."""
    if not value or len(value) > 100 or not value.isprintable() or set(value) & set("/\\") or set(value) == {"."}:
        raise ConfigError(f"{path} must be 1 to 100 printable characters without / and \\, got {value[:100]!r}")


def check_choice(path: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{path} must be one of {', '.join(allowed)}, got {value!r}")


KERNELS = ("auto", "on", "off")
"""When the Triton kernels of heads are used."""


def setting(
    default: Any,
    low: float | None = None,
    high: float = math.inf,
    *,
    open_low: bool = False,
    choices: tuple[str, ...] = (),
    identity: bool = True,
    **marks: Any,
) -> Any:
    """Return a dataclass field whose value `check_fields` checks.

    Args:
        default: the default value.
        low: the smallest value, or with `open_low` the bound below all values; None means that there is no range.
        high: the largest value.
        open_low: whether `low` itself is outside.
        choices: the texts that are allowed; none means all.
        identity: whether the field is part of the run's identity (`grouped_lm.runs.identity`).
        marks: `unit="tokens"`: what the number counts. `cost=True`: the field changes the speed or the memory of a run,
            and tables of runs show it. `late=True`: the field is younger than `SCHEMA_VERSION`. Its default is then no
            part of the identity, so that older runs keep theirs.
    """
    limits = {} if low is None else {"range": (low, high, open_low)}
    return field(default=default, metadata={"identity": identity, "choices": choices, **marks, **limits})


free = partial(setting, identity=False)
"""Makes a field that may change between a run and its continuation; all others are part of the run's identity."""


def check_fields(config: Any, path: str) -> None:
    """Raise `ConfigError` for a `setting` of a config outside its range or choices; `path` is the config's key."""
    for spec in fields(config):
        key, value = f"{path}.{spec.name}", getattr(config, spec.name)
        if choices := spec.metadata.get("choices"):
            check_choice(key, value, choices)
        if "range" in spec.metadata:
            check_range(key, value, *spec.metadata["range"])


def parse_named(registry: Mapping[str, type], values: Any, path: str, key: str = "name") -> Any:
    """Return the config object that `values[key]` names, with every key and every type checked.

    Args:
        registry: the schema (a dataclass) of each name.
        values: the settings, for example out of YAML or JSON.
        path: the config key of these settings, such as "head".
        key: the setting that holds the name.

    Raises:
        ConfigError: an unknown name or key, a value of another type or out of range.
    """
    name = values.get(key) if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or not isinstance(name, str) or name not in registry:
        raise ConfigError(f"{path} must be one of {', '.join(registry)}, got {name!r}")
    return parse_fields(registry[name], values, path, f" for {path}={name}")


def parse_fields(schema: Any, values: Mapping[str, Any], path: str, owner: str = "") -> Any:
    """Return `schema(**values)`, a dataclass, with every key and every type checked.

    `path` is as in `parse_named`, or "" for a whole config. `owner` ends the message about an unknown key, such as
    " for head=dense".

    Raises:
        ConfigError: as `parse_named`.
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


KIND_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "settings",
    type(None): "null",
}
"""How messages call a type."""


def check_type(path: str, kind: Any, value: Any) -> Any:
    """Return `value`, as a float where `kind` is float and the value is a whole number such as 1.

    Raises:
        ConfigError: the value is not of `kind`, which is a class, a union of classes, `list[...]` or `Any`.
    """
    if kind is Any:
        return value
    kinds = tuple(get_origin(k) or k for k in (get_args(kind) if isinstance(kind, UnionType) else (kind,)))
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds:
        return float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        allowed = " or ".join(KIND_NAMES.get(k, k.__name__) for k in kinds)
        raise ConfigError(f"{path} must be {allowed}, got {'null' if value is None else repr(value):.100}")
    return value


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Body of the network, in GPT-2's own names."""

    name: str = "gpt2-1m"
    """A label for tables."""
    body: str = setting("gpt2", choices=("gpt2", "gpt_neo"))
    """`gpt2` or `gpt_neo`."""
    n_layer: int = setting(8, 1, 1_000_000, unit="blocks")
    """Blocks."""
    n_head: int = setting(16, 1, 1_000_000, unit="heads")
    """Attention heads, divides n_embd."""
    n_embd: int = setting(64, 1, 1_000_000, unit="dimensions")
    """Width D."""
    block_size: int = setting(256, 1, 1_000_000, unit="tokens")
    """Longest context, tokens."""
    dropout: float = setting(0.0, 0, 0.99)
    """Probability, on embeddings, attention weights, attention output and MLP output."""
    ln_f_gain: float = setting(1.0, 0, 1e3, open_low=True)
    """Start of the weight of the last LayerNorm. It scales the states that the head gets, and so its first logits.
    GPT-2 has 1. With weights of 0.02 and small widths the logits are then too small, and 3 learns faster."""
    window_size: int = setting(256, 1, 1_000_000, unit="tokens")
    """GPT-Neo's local attention span, tokens; every second layer uses it."""
    embedding: str = setting("table", choices=("table", "factorised"))
    """Input side: `table`, a row per token, or `factorised`, scale and shift per group on a row per slot (no tying)."""
    attention: str = free("fused", choices=("fused", "unfused"), cost=True)
    """`fused` (torch's kernel) or `unfused`: the same function with T x T scores in memory, to measure their cost."""
    activation_checkpointing: bool = free(False, cost=True)
    """Keep only the states between blocks for the backward pass, which computes the inside of each again: less memory,
    a third more operations of the body."""

    def __post_init__(self) -> None:
        check_label("model.name", self.name)
        check_fields(self, "model")
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
    max_valid_tokens: int | None = setting(None, 1, late=True, unit="tokens")
    """Validate on the first so many tokens of the validation text, for short runs; null means all."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        if not self.cache_dir.strip():
            raise ConfigError("data.cache_dir ($GVC_CACHE_DIR) must name a folder, got ''")


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """Text to ids."""

    name: str = setting("gpt2", choices=("gpt2", "bytes", "bpe"))
    """`gpt2` (50,257 ids), `bytes` (256 bytes and one end-of-text) or `bpe` (trained on the training text)."""
    vocab_size: int | None = setting(None, 258, 65536, unit="tokens")
    """`bpe`: ids, end-of-text included; null for the others, whose sizes are fixed."""
    file: str | None = None
    """`bpe`: a tokenizer.json trained before, such as a run folder's; null trains one on data.train."""

    def __post_init__(self) -> None:
        check_fields(self, "tokenizer")
        if (self.vocab_size is not None) != (self.name == "bpe"):
            raise ConfigError(f"tokenizer.vocab_size belongs to tokenizer=bpe, got {self.vocab_size} for {self.name}")
        if self.file is not None and self.name != "bpe":
            raise ConfigError(f"tokenizer.file belongs to tokenizer=bpe, got {self.file!r} for {self.name}")

    @property
    def label(self) -> str:
        """`gpt2`, `bytes` or `bpe-4096`, for tables: losses per token compare only where it is the same."""
        return self.name if self.vocab_size is None else f"{self.name}-{self.vocab_size}"


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Settings that every optimizer has: linear warm-up, then cosine decay, and clipping."""

    name: str = "adamw"
    """A name of `grouped_lm.optim.OPTIMIZERS`."""
    lr: float = setting(1e-3, 0, 1e9, open_low=True)
    """Peak learning rate."""
    warmup_steps: int = setting(50, 0, 10**9, unit="steps")
    """Steps of linear rise."""
    min_lr_ratio: float = setting(0.1, 0, 1)
    """Learning rate at the last step, as a share of `lr`."""
    grad_clip: float = setting(1.0, 0, 1e9)
    """Largest norm of the whole gradient. With 0 the gradient is not clipped."""
    ema: float = setting(0.0, 0, 0.999999)
    """Decay of an average of the weights, such as 0.99; 0 is none. Validation, evaluation and export use it."""

    def __post_init__(self) -> None:
        check_fields(self, "optim")


@dataclass(kw_only=True, slots=True)
class AdamWConfig(OptimConfig):
    """AdamW, the default. It is here so that `Config()` has an optimizer; others are in `grouped_lm.optim`."""

    name: str = setting("adamw", choices=("adamw",))
    beta1: float = setting(0.9, 0, 0.999999)
    """Decay of the average of gradients."""
    beta2: float = setting(0.99, 0, 0.999999)
    """Decay of the average of squared gradients."""
    eps: float = setting(1e-6, 0, 1, open_low=True)
    """Added to the root of the second average."""
    weight_decay: float = setting(0.1, 0, 1e6)
    """On matrices only. Norms, biases, scales and shifts have none."""
    table_weight_decay: float | None = setting(None, 0, 1e6)
    """On tables with a row per token: the input embedding, and the matrix of an untied head. The matrices of
    head=adaptive and of head.own_shortlist=true have weight_decay. null is weight_decay."""
    sparse_rows: bool = False
    """In tables with a row per token, update only the rows that have a gradient in this step. This is not dense AdamW,
    where all other rows decay and move by their momentum."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """The training loop: steps, batches, devices, checkpoints and logs."""

    max_steps: int = setting(300, 1, 10**9, unit="steps")
    """Optimizer steps."""
    micro_batch_size: int = setting(8, 1, 10**6, unit="windows")
    """Windows of block_size tokens per forward pass of all processes together. Also `auto`: the largest that fits
    into memory and divides the batch, with as many grad_accum_steps as make the same batch."""
    grad_accum_steps: int = setting(1, 1, 10**6, unit="forward passes")
    """Forward passes per optimizer step."""
    auto_micro_batch: bool = setting(False, late=True)
    """`train.micro_batch_size=auto` sets this. A run keeps the size that it was started with."""
    dtype: str = setting("float32", choices=("float32", "bfloat16", "float16"))
    """Of matrix products. `bfloat16` and `float16` are autocast with fp32 weights and losses. `float16` scales the loss
    so that small gradients are not rounded to 0; it is for GPUs without bfloat16."""
    label_smoothing: float = setting(0.0, 0, 0.99)
    """Share of the target's probability that all classes of the head's first softmax get; that softmax is over groups
    in heads that have them. Reported losses stay true likelihoods."""
    z_loss: float = setting(0.0, 0, 1)
    """Weight of the squared log of the first softmax's partition function; 1e-4 is usual."""
    compile: bool = False
    """Run the body and head through `torch.compile`."""
    cuda_graphs: bool = free(False, cost=True)
    """Record the whole training step as one CUDA graph, so that small models do not wait for launches; needs one
    process on a GPU and optim=adamw. The figures are those of a run without."""
    device: str = free("auto", choices=("auto", "cpu", "cuda"))
    """`auto`, `cpu` or `cuda`."""
    kernels: str = free("auto", choices=KERNELS, cost=True)
    """Triton kernels of heads: `auto` uses them where they run, on a GPU of compute capability 7.5 or more; `on`
    refuses to run without; `off` takes the lines of torch that they equal."""
    devices: int = free(1, 1, 1024, cost=True, unit="processes")
    """Processes that train together on this machine, one per GPU; each takes an equal part of every micro-batch.
    Neither this nor the four below change what is computed, but for rounding, dropout, and which windows train the
    gate of prior=kneser_ney."""
    nodes: int = free(1, 1, 1024, cost=True, unit="machines")
    """Machines with `devices` processes each; more than 1 inside a SLURM job that has as many."""
    strategy: str = free("ddp", choices=("ddp", "fsdp2"), cost=True)
    """`ddp`: the whole model on each device; `fsdp2`: weights, gradients and optimizer state in shards."""
    vocab_parallel: bool = free(False, cost=True)
    """With `ddp` and several processes: each has its part of the rows of the input embedding and of a dense head, with
    their gradients and optimizer state, and states travel instead of these gradients. Other heads stay whole."""
    max_restarts: int = free(3, 0, 10**6, unit="restarts")
    """How often all processes are restarted from the last checkpoint after one is lost."""
    threads: int | None = setting(None, 1, 4096, unit="threads")
    """CPU threads; null leaves torch's choice. Part of what makes a run repeatable to the bit."""
    resume: str = free("auto", choices=("auto", "never"))
    """`auto` continues from the folder's last checkpoint; `never` refuses a folder that has one."""
    log_every_steps: int = free(10, 1, 10**9, unit="steps")
    """A row of metrics every so many steps."""
    eval_every_steps: int | None = free(None, 1, 10**9, unit="steps")
    """Validation also every so many steps; null means at the end only."""
    eval_batch_size: int | None = free(None, 1, 10**9, unit="windows")
    """Windows per validation pass of one process; null means its part of micro_batch_size."""
    checkpoint_every_steps: int | None = free(None, 1, 10**9, unit="steps")
    """null means every tenth of the run; the last step is always saved."""
    checkpoint_every_minutes: float = free(10.0, 0, 10**6, open_low=True, unit="minutes")
    """Save at least once in so many minutes."""
    keep_checkpoints: int = free(2, 2, 10**6, unit="checkpoints")
    """Number of newest checkpoints to keep, at least 2, so that a damaged one always has a predecessor."""
    mirror: str | None = free(None)
    """A folder for a verified copy of every checkpoint, in a folder named after the run and a hash of it;
    used when none is here."""
    on_nonfinite: str = free("raise", choices=("raise", "skip", "rollback"))
    """After a loss or gradient that is not finite: `raise` ends the run, `skip` leaves the update out, `rollback`
    returns to the last checkpoint and continues with the text after the one that caused it."""
    max_nonfinite: int = free(3, 0, 10**6)
    """How many times `skip` or `rollback` is done before the run ends as with `raise`."""
    hang_minutes: float | None = free(30.0, 0, 10**6, open_low=True, unit="minutes")
    """Minutes without a step or an evaluation batch after which the process ends; null means no limit."""

    def __post_init__(self) -> None:
        check_fields(self, "train")
        if not self.auto_micro_batch:  # else the micro-batch is chosen for the processes
            self.share(self.processes)
        if self.vocab_parallel and (self.strategy != "ddp" or self.compile):
            raise ConfigError(
                "train.vocab_parallel=true needs train.strategy=ddp (fsdp2 has the table in shards already) and "
                f"train.compile=false, got {self.strategy} and {str(self.compile).lower()}"
            )
        if self.vocab_parallel and self.dtype == "float16":
            raise ConfigError(
                "train.dtype=float16 cannot scale the loss with train.vocab_parallel=true: take bfloat16 or float32"
            )
        if self.cuda_graphs and self.processes > 1:
            raise ConfigError(f"train.cuda_graphs=true needs one process, got {self.processes} (train.devices x nodes)")

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
class PriorConfig:
    """A model of counts beside the network: the mixture of both predicts. The network is trained as without it."""

    name: str = setting("none", choices=("none", "kneser_ney"), late=True)
    """`none`, or `kneser_ney`: n-grams of the training text, counted once and kept beside its tokens."""
    mix: str = setting("gate", choices=("weight", "gate"), late=True)
    """`weight`: one share for the counts, fitted on held-out training text; `gate`: a share for every token, from the
    state and what is known of its context."""
    order: int = setting(5, 2, 5, late=True, unit="tokens")
    """Tokens of the longest n-grams."""
    min_count: int = setting(1, 1, 2, late=True, unit="occurrences")
    """2 leaves out n-grams of three tokens and more that were seen once: a quarter of the memory on stories, where the
    counts alone are 0.05 nats worse."""
    held_out_tokens: int = setting(16384, 0, 10**9, late=True, unit="tokens")
    """Tokens at the end of the training text, a tenth of it at most, that are neither counted nor trained on. The one
    weight is fitted there; 0 leaves it out, and needs mix=gate."""
    lr: float = setting(4e-3, 0, 1e9, open_low=True, late=True)
    """Peak learning rate of the gate; its schedule is that of optim.lr."""

    def __post_init__(self) -> None:
        check_fields(self, "prior")
        if self.mix == "weight" and not self.held_out_tokens:
            raise ConfigError(
                "prior.mix=weight is fitted on held-out text: prior.held_out_tokens must be above 0, got 0"
            )

    @property
    def is_on(self) -> bool:
        """Whether there is one."""
        return self.name != "none"


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Weights & Biases or TensorBoard. `metrics.jsonl` and `result.json` are always written."""

    backend: str = setting("wandb", choices=("wandb", "tensorboard"))
    """`wandb`, or `tensorboard` for event files in the run folder; all keys below but `mode=disabled` are W&B's."""
    mode: str = setting("offline", choices=("online", "offline", "disabled"))
    """`online`, `offline` (in the run folder, `wandb sync` sends it later) or `disabled`."""
    project: str = "gvc"
    """The W&B project."""
    entity: str | None = None
    """The W&B user or team; null means your own."""
    group: str | None = None
    """Runs that belong together, e.g. the name of a sweep."""
    job_type: str = "train"
    """W&B's kind of run."""
    tags: list[str] = field(default_factory=list)
    """Added to the tags for model, head and data."""
    init_timeout_s: float = setting(20.0, 0, 3600, open_low=True, unit="seconds")
    """Seconds to wait for the server before the run goes on without it."""

    def __post_init__(self) -> None:
        check_fields(self, "tracking")


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    """The language model that grades stories for `gvc eval --judge`. It changes nothing about a run."""

    base_url: str = "https://api.openai.com/v1"
    """Of any endpoint that speaks OpenAI's chat completions: a paid one, or a server on this machine."""
    model: str = "gpt-4o-mini"
    """As the endpoint names it."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, which is never written down; unset where a local server needs none."""
    num_stories: int = setting(50, 1, 10**6, unit="stories")
    """Beginnings to complete."""
    max_new_tokens: int = setting(200, 1, 10**6, unit="tokens")
    """Of a completion."""
    temperature: float = setting(1.0, 0, 1e6)
    """Of the completions, 0 for the likeliest."""
    retries: int = setting(4, 0, 100)
    """Times to ask again after no answer (with growing waits) or an answer without grades."""
    timeout_s: float = setting(60.0, 0, 86_400, open_low=True, unit="seconds")
    """Seconds to wait for one answer."""
    usd_per_million_prompt_tokens: float | None = setting(None, 0, 1e6, unit="USD")
    """With the next one: what the answers cost is added up."""
    usd_per_million_completion_tokens: float | None = setting(None, 0, 1e6, unit="USD")
    """The same for answers."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"judge.base_url={self.base_url!r} is no address: http://... or https://...")
        check_fields(self, "judge")


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """A limit for evaluations that are not the last one of a run. It changes nothing about its result."""

    max_tokens: int | None = setting(None, 1, unit="tokens")
    """Tokens of the validation text that `gvc eval` reads, and the validations on the way (train.eval_every_steps);
    null means all. A limit of the last validation of a run is data.max_valid_tokens."""

    def __post_init__(self) -> None:
        check_fields(self, "eval")


@dataclass(kw_only=True, slots=True)
class Config:
    """One run."""

    name: str = free("run")
    """A label without effect on the training."""
    seed: int = 0
    """Seeds weights, dropout and the order of the data."""
    init_from: str | None = setting(None, late=True)
    """A run folder: start from the weights of its last checkpoint, with a new optimizer and schedule."""
    model: ModelConfig = field(default_factory=ModelConfig)
    head: Any = None
    """A head's own config, such as `grouped_lm.heads.GroupedConfig`."""
    grouping: Any = None
    """The config of a grouping, such as `grouped_lm.grouping.SeededConfig`; None means the paper's, `merge_rank`."""
    data: Any = None
    """The config of a data source, such as `grouped_lm.data.TextConfig`; None means `tinytales`."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: Any = field(default_factory=AdamWConfig)
    """An optimizer's own config, an `OptimConfig`."""
    train: TrainConfig = field(default_factory=TrainConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata={"identity": False})
    eval: EvalConfig = field(default_factory=EvalConfig, metadata={"identity": False})
    judge: JudgeConfig = field(default_factory=JudgeConfig, metadata={"identity": False})

    def __post_init__(self) -> None:
        check_label("name", self.name)
        check_range("seed", self.seed, 0, 2**63 - 1)
        if self.init_from is not None and not self.init_from.strip():
            raise ConfigError("init_from must name a run folder, got ''")
        if self.prior.is_on and (self.train.strategy != "ddp" or self.train.vocab_parallel):
            raise ConfigError(
                f"prior={self.prior.name} needs whole weights in each process: set train.strategy=ddp and "
                f"train.vocab_parallel=false, got {self.train.strategy} and {str(self.train.vocab_parallel).lower()}"
            )
        if self.grouping is None:
            self.grouping = GroupingConfig()
        if self.data is None:
            self.data = DataConfig()


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return the config and the schema version as plain dicts, lists and scalars, ready for JSON."""
    return {"schema_version": SCHEMA_VERSION, **asdict(config)}


def config_from_dict(values: Mapping[str, Any], parsers: Mapping[str, Callable[[Any], Any]]) -> Config:
    """Rebuild a config from what `config_to_dict` returns; "schema_version" is ignored.

    `parsers` has a function for each part whose schema depends on a name in it, such as `parse_head_config`.

    Raises:
        ConfigError: as `parse_named`.
    """
    types: dict[str, Any] = {f.name: f.type for f in fields(Config)}
    built = {part: parse(values.get(part)) for part, parse in parsers.items()}
    for key, value in values.items():
        if key not in parsers and key != "schema_version":
            built[key] = parse_fields(types[key], value, key) if is_dataclass(types.get(key)) else value
    config: Config = parse_fields(Config, built, "")
    return config


def check_schema(version: Any, place: object) -> None:
    """Refuse a file that another version of gvc wrote: `version` is the one in the file `place`, or None.

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
