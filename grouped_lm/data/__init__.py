"""Text in, token files out. Imports no torch; batches for training are in `grouped_lm.data.loader`."""

from grouped_lm.data.prepare import Corpus, prepare_data, prepare_split
from grouped_lm.data.sources import SOURCES, iter_documents, open_source, parse_data_config
from grouped_lm.data.sources.hub import HubConfig
from grouped_lm.data.sources.text_files import TextConfig
from grouped_lm.data.sources.tinytales import TinytalesConfig
from grouped_lm.data.split import halve
from grouped_lm.data.token_file import TokenFile
from grouped_lm.data.tokenizers.base import Tokenizer, vocab_size_of
from grouped_lm.data.tokenizers.build import build_tokenizer

__all__ = [
    "SOURCES",
    "Corpus",
    "HubConfig",
    "TextConfig",
    "TinytalesConfig",
    "TokenFile",
    "Tokenizer",
    "build_tokenizer",
    "halve",
    "iter_documents",
    "open_source",
    "parse_data_config",
    "prepare_data",
    "prepare_split",
    "vocab_size_of",
]
