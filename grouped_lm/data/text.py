"""The form in which text moves from a source to a tokenizer: fragments of documents."""

import re

EOT_TEXT = "<|endoftext|>"
"""The end of a document in a .txt file, and the text that `decode` returns for the end-of-text id."""

Fragment = tuple[str, bool]
"""A piece of a document, and whether the document ends with it. Documents are cut where tokens do not change."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def valid_unicode(text: str) -> str:
    """Return the text with U+FFFD for lone surrogates, which UTF-8 cannot hold, but a JSON string may contain."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def unix_line_ends(text: str) -> str:
    """Return the text with LF for CR LF and for a single CR, as Python reads text files."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
