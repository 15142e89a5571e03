"""The config of `head=kneser_ney`: a run that counts n-grams instead of training a network."""

from dataclasses import dataclass

from grouped_lm.config import check_fields, setting


@dataclass(kw_only=True, slots=True)
class KneserNeyConfig:
    """Config of `head=kneser_ney`."""

    name: str = "kneser_ney"
    order: int = setting(5, 2, 5)
    """Tokens of the longest n-grams."""

    def __post_init__(self) -> None:
        check_fields(self, "head")
