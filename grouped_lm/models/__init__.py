"""Bodies, one file each, and the language model that puts a head on one."""

from grouped_lm.models.gpt2 import GPT2
from grouped_lm.models.gpt_neo import GPTNeo
from grouped_lm.models.lm import BODIES, LanguageModel, build_body, estimate_body_flops_per_token, estimate_body_params

__all__ = [
    "BODIES",
    "GPT2",
    "GPTNeo",
    "LanguageModel",
    "build_body",
    "estimate_body_flops_per_token",
    "estimate_body_params",
]
