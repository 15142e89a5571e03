"""What `gvc bench` measures and how long: the schema of `conf/bench/*.yaml`."""

from dataclasses import dataclass, field
from typing import Any

from grouped_lm.config import DataConfig, TokenizerConfig, check_choice, check_range
from grouped_lm.errors import ConfigError

SUITES = ("heads", "steps", "memory", "decode", "vocab")


def _check_sizes(path: str, values: list[int]) -> None:
    for value in values:
        check_range(path, value, 1, 10**9)


@dataclass(kw_only=True, slots=True)
class MeterConfig:
    """How times are measured."""

    min_rounds: int = 2
    """Least number of rounds A B B A, >= 1. A round has two samples of each implementation."""
    max_rounds: int = 20
    """Most rounds for an implementation."""
    budget_s: float = 5.0
    """Seconds of measuring for one implementation in one cell. After `min_rounds` it then leaves further rounds."""
    max_drift: float = 0.10
    """A round is dropped if the calibrations around it differ from each other, or from the first of the cell, by more
    than this share."""
    max_dropped: int = 4
    """Most rounds of a cell that are dropped and repeated. Later ones are kept, and their drift is reported. Dropping
    also ends when it took longer than all budgets together."""

    def __post_init__(self) -> None:
        check_range("meter.min_rounds", self.min_rounds, 1, 1000)
        check_range("meter.max_rounds", self.max_rounds, self.min_rounds, 10_000)
        check_range("meter.budget_s", self.budget_s, 0, 86_400)
        check_range("meter.max_drift", self.max_drift, 0, 10, open_low=True)
        check_range("meter.max_dropped", self.max_dropped, 0, 1000)


@dataclass(kw_only=True, slots=True)
class HeadsGrid:
    """`gvc bench heads`: the head alone, with the tokenizer's V."""

    n_tokens: list[int] = field(default_factory=lambda: [1024])
    """States N of one pass."""
    n_embd: list[int] = field(default_factory=lambda: [128])
    """Widths D."""

    def __post_init__(self) -> None:
        _check_sizes("heads.n_tokens", self.n_tokens)
        _check_sizes("heads.n_embd", self.n_embd)


@dataclass(kw_only=True, slots=True)
class StepsGrid:
    """`gvc bench steps`: whole optimizer steps."""

    models: list[str] = field(default_factory=lambda: ["gpt2-1m"])
    """Presets of conf/model."""
    micro_batch_size: int = 8
    block_size: int = 256

    def __post_init__(self) -> None:
        _check_sizes("steps.micro_batch_size", [self.micro_batch_size])
        _check_sizes("steps.block_size", [self.block_size])


@dataclass(kw_only=True, slots=True)
class MemoryGrid:
    """`gvc bench memory`: peaks of whole steps, measured and predicted."""

    truth_models: list[str] = field(default_factory=lambda: ["gpt2-1m"])
    """Presets whose real steps are measured by kind of bytes, beside the prediction."""
    truth_batches: list[int] = field(default_factory=lambda: [2, 4])
    truth_block_size: int = 128
    claim_models: list[str] = field(default_factory=lambda: ["neo-33m", "gpt2-33m"])
    """Presets of the predicted ratios, with fused and unfused attention."""
    claim_heads: list[str] = field(default_factory=lambda: ["grouped"])
    """Variants that are compared with the full softmax there."""
    claim_batches: list[int] = field(default_factory=lambda: [8, 32, 80])
    claim_block_size: int = 512
    claim_ratio: float = 3.4
    """The paper's ratio. The smallest batch that reaches it is searched."""
    fit_models: list[str] = field(default_factory=list)
    """Presets measured at the largest batch whose dense step is predicted to fit `limit_gib`; minutes each."""
    limit_gib: float = 16.0
    grid_model: str = "gpt2-8m"
    grid_batches: list[int] = field(default_factory=lambda: [1, 8, 32, 128])
    grid_block_sizes: list[int] = field(default_factory=lambda: [128, 512, 2048])
    grid_limit_gib: float = 0.5
    """Cells of the grid predicted to need no more than this are also run; 0 runs none."""

    def __post_init__(self) -> None:
        for name in ("truth_batches", "claim_batches", "grid_batches", "grid_block_sizes"):
            _check_sizes(f"memory.{name}", getattr(self, name))
        _check_sizes("memory.truth_block_size", [self.truth_block_size])
        _check_sizes("memory.claim_block_size", [self.claim_block_size])
        check_range("memory.claim_ratio", self.claim_ratio, 1, 1000)
        check_range("memory.limit_gib", self.limit_gib, 0, 10**6, open_low=True)
        check_range("memory.grid_limit_gib", self.grid_limit_gib, 0, 10**6)


@dataclass(kw_only=True, slots=True)
class DecodeGrid:
    """`gvc bench decode`: one new token."""

    model: str = "gpt2-8m"
    batches: list[int] = field(default_factory=lambda: [1, 32])
    context: int = 32
    """Tokens of context, >= 2. The last one is new, and the others are cached."""
    top_p: float = 0.9
    runs: list[str] = field(default_factory=list)
    """Run folders, whose trained models are measured instead of new ones."""

    def __post_init__(self) -> None:
        _check_sizes("decode.batches", self.batches)
        check_range("decode.context", self.context, 2, 10**6)
        check_range("decode.top_p", self.top_p, 0, 1, open_low=True)


@dataclass(kw_only=True, slots=True)
class VocabGrid:
    """`gvc bench vocab`: a step over V, and losses on a language whose entropy is known."""

    vocab_sizes: list[int] = field(default_factory=lambda: [10_000, 50_257])
    model: str = "gpt2-8m"
    micro_batch_size: int = 8
    block_size: int = 256
    limit_gib: float = 6.0
    """A step that is predicted to need more is not run."""
    heads: list[str] = field(default_factory=lambda: ["dense", "grouped", "adaptive", "shortlist"])
    excess_vocab_sizes: list[int] = field(default_factory=lambda: [10_000])
    excess_model: str = "debug"
    excess_languages: list[str] = field(default_factory=lambda: ["markov"])
    """`zipf` (independent tokens: only frequencies can be learnt) or `markov` (classes of tokens)."""
    excess_steps: int = 100
    excess_batch_size: int = 16
    excess_block_size: int = 64
    excess_lr: list[float] = field(default_factory=lambda: [1e-2])
    """Learning rates tried for every head. The row has the best one."""

    def __post_init__(self) -> None:
        _check_sizes("vocab.vocab_sizes", self.vocab_sizes)
        _check_sizes("vocab.excess_vocab_sizes", self.excess_vocab_sizes)
        check_range("vocab.excess_steps", self.excess_steps, 1, 10**9)
        check_range("vocab.limit_gib", self.limit_gib, 0, 10**6, open_low=True)
        for language in self.excess_languages:
            check_choice("vocab.excess_languages", language, ("zipf", "markov"))
        for lr in self.excess_lr:
            check_range("vocab.excess_lr", lr, 0, 1e9, open_low=True)


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
    repeats: int = 1
    """Passes in one sample, >= 1. A GPU is synchronized after the last of them only, as in training."""
    threads: int | None = 1
    """CPU threads; null is torch's choice. One thread varies least, since two wait for the slower core."""
    seed: int = 0
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
        check_range("repeats", self.repeats, 1, 10**6)
        check_range("threads", self.threads, 1, 4096)
        check_range("seed", self.seed, 0, 2**63 - 1)

    def check_suite(self, suite: str) -> None:
        """Refuse a device or type that a suite does not measure on.

        Raises:
            ConfigError: suites other than `heads` and `steps` measure in fp32 on the CPU.
        """
        if suite not in ("heads", "steps") and (self.device, self.dtype) != ("cpu", "float32"):
            raise ConfigError(
                f"{suite} measures with device=cpu dtype=float32, got {self.device} and {self.dtype}: heads and steps "
                "take others"
            )

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
