"""What `gvc bench` measures and how long: the schema of `conf/bench/*.yaml`."""

from dataclasses import dataclass, field, fields
from typing import Any

from grouped_lm.config import DataConfig, TokenizerConfig, check_choice, check_range
from grouped_lm.errors import ConfigError

SUITES = ("heads", "steps", "memory", "decode", "vocab")


def ranged(default: Any, low: float = 1, high: float = 10**9, *, open_low: bool = False) -> Any:
    """Return a field whose value, or every value of whose list, is in [low, high], or (low, high] if `open_low`."""
    limits = {"low": low, "high": high, "open_low": open_low}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=limits)
    return field(default=default, metadata=limits)


def check_ranges(settings: Any, prefix: str) -> None:
    """Raise `ConfigError` for a value outside its range."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        for number in (value if isinstance(value, list) else [value]) if f.metadata else []:
            check_range(f"{prefix}{f.name}", number, **f.metadata)


@dataclass(kw_only=True, slots=True)
class MeterConfig:
    """How times are measured."""

    min_rounds: int = ranged(2, 1, 1000)
    """Least number of rounds A B B A, >= 1. A round has two samples of each implementation."""
    max_rounds: int = ranged(20, 1, 10_000)
    """Most rounds for an implementation, >= `min_rounds`."""
    budget_s: float = ranged(5.0, 0, 86_400)
    """Seconds of measuring for one implementation in one cell. After `min_rounds` it then leaves further rounds."""
    max_drift: float = ranged(0.10, 0, 10, open_low=True)
    """A round is dropped if the calibrations around it differ from each other, or from the first of the cell, by more
    than this share."""
    max_dropped: int = ranged(4, 0, 1000)
    """Most rounds of a cell that are dropped and repeated. Later ones are kept, and their drift is reported. Dropping
    also ends when it took longer than all budgets together."""


@dataclass(kw_only=True, slots=True)
class HeadsGrid:
    """`gvc bench heads`: the head alone, with the tokenizer's V."""

    n_tokens: list[int] = ranged([1024])
    """States N of one pass."""
    n_embd: list[int] = ranged([128])
    """Widths D."""
    shapes: list[list[int]] = field(default_factory=list)
    """Further cells after those, as [N, D, V]. Where V is not the tokenizer's, token t has a share of 1 / (t + 1), and
    there is no text to group tokens by. Implementations that compile are left out, since each compiles every shape."""


@dataclass(kw_only=True, slots=True)
class StepsGrid:
    """`gvc bench steps`: whole optimizer steps."""

    models: list[str] = field(default_factory=lambda: ["gpt2-1m"])
    """Presets of conf/model."""
    micro_batch_size: int = ranged(8)
    block_size: int = ranged(256)


@dataclass(kw_only=True, slots=True)
class MemoryGrid:
    """`gvc bench memory`: peaks of whole steps, measured and predicted."""

    truth_models: list[str] = field(default_factory=lambda: ["gpt2-1m"])
    """Presets whose real steps are measured by kind of bytes, beside the prediction."""
    truth_batches: list[int] = ranged([2, 4])
    truth_block_size: int = ranged(128)
    claim_models: list[str] = field(default_factory=lambda: ["neo-33m", "gpt2-33m"])
    """Presets of the predicted ratios, with fused and unfused attention."""
    claim_heads: list[str] = field(default_factory=lambda: ["grouped"])
    """Variants that are compared with the full softmax there."""
    claim_batches: list[int] = ranged([8, 32, 80])
    claim_block_size: int = ranged(512)
    claim_ratio: float = ranged(3.4, 1, 1000)
    """The paper's ratio. The smallest batch that reaches it is searched."""
    fit_models: list[str] = field(default_factory=list)
    """Presets measured at the largest batch whose dense step is predicted to fit `limit_gib`; minutes each."""
    limit_gib: float = ranged(16.0, 0, 10**6, open_low=True)
    grid_model: str = "gpt2-8m"
    grid_batches: list[int] = ranged([1, 8, 32, 128])
    grid_block_sizes: list[int] = ranged([128, 512, 2048])
    grid_limit_gib: float = ranged(0.5, 0, 10**6)
    """Cells of the grid predicted to need no more than this are also run; 0 runs none."""


@dataclass(kw_only=True, slots=True)
class DecodeGrid:
    """`gvc bench decode`: one new token."""

    model: str = "gpt2-8m"
    batches: list[int] = ranged([1, 32])
    context: int = ranged(32, 2, 10**6)
    """Tokens of context, >= 2. The last one is new, and the others are cached."""
    top_p: float = ranged(0.9, 0, 1, open_low=True)
    runs: list[str] = field(default_factory=list)
    """Run folders, whose trained models are measured instead of new ones."""


@dataclass(kw_only=True, slots=True)
class VocabGrid:
    """`gvc bench vocab`: a step over V, and losses on a language whose entropy is known."""

    vocab_sizes: list[int] = ranged([10_000, 50_257])
    model: str = "gpt2-8m"
    micro_batch_size: int = ranged(8)
    block_size: int = ranged(256)
    limit_gib: float = ranged(6.0, 0, 10**6, open_low=True)
    """A step that is predicted to need more is not run."""
    heads: list[str] = field(default_factory=lambda: ["dense", "grouped", "adaptive", "shortlist"])
    excess_vocab_sizes: list[int] = ranged([10_000])
    excess_model: str = "debug"
    excess_languages: list[str] = field(default_factory=lambda: ["markov"])
    """`zipf` (independent tokens: only frequencies can be learnt) or `markov` (classes of tokens)."""
    excess_steps: int = ranged(100)
    excess_batch_size: int = ranged(16)
    excess_block_size: int = ranged(64)
    excess_lr: list[float] = ranged([1e-2], 0, 1e9, open_low=True)
    """Learning rates tried for every head. The row has the best one."""


@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """The config of `gvc bench`."""

    data: Any = None
    """The config of a data source. Its token frequencies decide the targets and the order in frequency-sorted heads."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    device: str = "cpu"
    """`cpu`, or `cuda` for the suites `heads` and `steps`."""
    dtype: str = "float32"
    """`float32`, or `bfloat16` for autocast, in the suites `heads` and `steps`."""
    repeats: int = ranged(1, 1, 10**6)
    """Passes in one sample, >= 1. A GPU is synchronized after the last of them only, as in training."""
    threads: int | None = ranged(1, 1, 4096)
    """CPU threads; null is torch's choice. One thread varies least, since two wait for the slower core."""
    seed: int = ranged(0, 0, 2**63 - 1)
    limit_s: float | None = None
    """Seconds after which no further cell is begun, > 0; null means no limit. The same command continues."""
    competitors: list[str] = field(default_factory=list)
    """Variants, or beginnings of names in the rows, to measure besides the plain dense head; empty means all."""
    meter: MeterConfig = field(default_factory=MeterConfig)
    heads: HeadsGrid = field(default_factory=HeadsGrid)
    steps: StepsGrid = field(default_factory=StepsGrid)
    memory: MemoryGrid = field(default_factory=MemoryGrid)
    decode: DecodeGrid = field(default_factory=DecodeGrid)
    vocab: VocabGrid = field(default_factory=VocabGrid)

    def __post_init__(self) -> None:
        if self.data is None:
            self.data = DataConfig()
        check_choice("device", self.device, ("cpu", "cuda"))
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_ranges(self, "")
        for part in ("meter", *SUITES):
            check_ranges(getattr(self, part), f"{part}.")
        if self.limit_s is not None:
            check_range("limit_s", self.limit_s, 0, 10**9, open_low=True)
        for shape in self.heads.shapes:
            if len(shape) != 3:
                raise ConfigError(f"heads.shapes must have [N, D, V] in each place, got {shape}")
            for number in shape:
                check_range("heads.shapes", number, 1, 10**9)
        check_range("meter.max_rounds", self.meter.max_rounds, self.meter.min_rounds)
        for language in self.vocab.excess_languages:
            check_choice("vocab.excess_languages", language, ("zipf", "markov"))

    def check_suite(self, suite: str) -> None:
        """Raise `ConfigError` for a device or dtype that a suite does not measure on."""
        if suite not in ("heads", "steps") and (self.device, self.dtype) != ("cpu", "float32"):
            raise ConfigError(
                f"{suite} measures with device=cpu dtype=float32, got {self.device} and {self.dtype}: heads and steps "
                "take others"
            )

    def block_sizes(self, suite: str) -> dict[str, int]:
        """Return the longest input that a suite gives to each preset, for those whose shape it leaves as it is."""
        steps, decode, vocab = self.steps, self.decode, self.vocab
        if suite == "vocab":
            own = {vocab.model: vocab.block_size}
            return own | {vocab.excess_model: max(vocab.excess_block_size, own.get(vocab.excess_model, 0))}
        sizes = {"steps": dict.fromkeys(steps.models, steps.block_size), "decode": {decode.model: decode.context}}
        return sizes.get(suite, {})

    def model_names(self, suite: str) -> list[str]:
        """Return the presets that a suite needs."""
        memory, vocab = self.memory, self.vocab
        names = {
            "heads": [],
            "steps": self.steps.models,
            "memory": [*memory.truth_models, *memory.claim_models, *memory.fit_models, memory.grid_model],
            "decode": [self.decode.model],
            "vocab": [vocab.model, vocab.excess_model],
        }[suite]
        return list(dict.fromkeys(names))
