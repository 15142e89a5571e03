"""A prior from counts: interpolated modified Kneser-Ney of the training text. Imports no torch."""

from grouped_lm.prior.kneser_ney import Contexts, KneserNey, build_kneser_ney

__all__ = ["Contexts", "KneserNey", "build_kneser_ney"]
