"""The made-up tokenizer: four characters are one token, and ids can be turned back into text.

The id of four ASCII characters is their bytes as a little-endian number, so that nothing has to be
remembered. Words of prose, which answers are made of, are one token each and have ids that no
ASCII text can have. So has text in other scripts, but its ids are hashes and decode to U+FFFD.
"""

import struct
import zlib
from collections.abc import Sequence as Many

CHARACTERS_PER_TOKEN = 4
WORDS = (
    " the", " model", " reads", " a", " page", " of", " cache", " and", " writes", " one",
    " token", " more", " so", " that", " every", " answer", " grows", " until", " it", " ends",
)  # fmt: skip
_FIRST_WORD = 0x80
_WORD_IDS = {word: _FIRST_WORD + number for number, word in enumerate(WORDS)}
# What a short word's bytes would be as a number: one text has one id, in a prompt and in an answer.
_SHORT_WORDS = {
    int.from_bytes(word.encode("ascii"), "little"): token
    for word, token in _WORD_IDS.items()
    if len(word) <= CHARACTERS_PER_TOKEN
}
_OTHER_SCRIPT = 0x8000
_UNKNOWN = "\ufffd"


def count_tokens(text: str) -> int:
    """Return how many tokens a prompt has."""
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


def pieces_of(text: str) -> list[str]:
    """Cut a text into its tokens."""
    size = CHARACTERS_PER_TOKEN
    return [text[start : start + size] for start in range(0, len(text), size)]


def encode(text: str) -> list[int]:
    """Return the token ids of a prompt, as many as ``count_tokens`` says."""
    if not text.isascii():
        return [id_of(piece) for piece in pieces_of(text)]
    count = count_tokens(text)
    padded = text.encode("ascii").ljust(count * CHARACTERS_PER_TOKEN, b"\0")
    return [_SHORT_WORDS.get(number, number) for number in struct.unpack(f"<{count}I", padded)]


def id_of(piece: str) -> int:
    """Return the id of one token."""
    if piece in _WORD_IDS:
        return _WORD_IDS[piece]
    if piece.isascii():
        number = int.from_bytes(piece.encode("ascii"), "little")
        return _SHORT_WORDS.get(number, number)
    return _OTHER_SCRIPT | (zlib.crc32(piece.encode("utf-8", "surrogatepass")) & 0x7FFFFFFF)


def piece_of(token: int) -> str:
    """Return the text of one token id."""
    number = token - _FIRST_WORD
    if 0 <= number < len(WORDS):
        return WORDS[number]
    if not 0 <= token <= 0x7F7F7F7F:
        return _UNKNOWN
    raw = token.to_bytes(CHARACTERS_PER_TOKEN, "little").rstrip(b"\0") or b"\0"
    return raw.decode("ascii") if raw.isascii() else _UNKNOWN


def decode(ids: Many[int]) -> str:
    """Return the text of token ids."""
    known = {token: piece_of(token) for token in set(ids)}
    return "".join([known[token] for token in ids])
