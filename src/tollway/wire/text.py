"""How long a text can become before a tokenizer cuts it."""

import unicodedata


def text_bytes(text: str) -> int:
    """In UTF-8, as it is or normalised to NFKC, as some tokenizers do first: whichever is
    longer."""
    if text.isascii():
        return len(text)
    return max(len(text.encode()), len(unicodedata.normalize("NFKC", text).encode()))
