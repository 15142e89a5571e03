"""Bodies, one file each, and the language model that puts a head on one.

Letters: B batch, T sequence, D width, V vocabulary.
"""

from grouped_lm.config import ModelConfig
from grouped_lm.models.gpt2 import GPT2
from grouped_lm.models.gpt_neo import GPTNeo
from grouped_lm.models.lm import LanguageModel, estimate_body_flops_per_token, estimate_body_params

BODIES: dict[str, type[GPT2] | type[GPTNeo]] = {"gpt2": GPT2, "gpt_neo": GPTNeo}
"""Every body by the name that `model.body` uses."""


def build_body(config: ModelConfig, vocab_size: int) -> GPT2 | GPTNeo:
    """Build the body that `config.body` names, freshly initialised from torch's global generator.

    Args:
        config: shapes, dropout and the body's name.
        vocab_size: V, >= 1, of the input embedding `wte`.

    Returns:
        A module that maps (B, T) int64 ids to (B, T, D) hidden states.

    Raises:
        ValueError: vocab_size is below 1.
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    return BODIES[config.body](config, vocab_size)


__all__ = [
    "BODIES",
    "GPT2",
    "GPTNeo",
    "LanguageModel",
    "build_body",
    "estimate_body_flops_per_token",
    "estimate_body_params",
]
