"""Text in, token files out. Imports no torch; batches for training are in `grouped_lm.data.loader`."""

from grouped_lm.data.prepare import Corpus, prepare_data, prepare_split
from grouped_lm.data.sources import describe_source, iter_documents
from grouped_lm.data.split import halve
from grouped_lm.data.token_file import TokenFile
from grouped_lm.data.tokenizers.base import Tokenizer, build_tokenizer, vocab_size_of

__all__ = [
    "Corpus",
    "TokenFile",
    "Tokenizer",
    "build_tokenizer",
    "describe_source",
    "halve",
    "iter_documents",
    "prepare_data",
    "prepare_split",
    "vocab_size_of",
]
