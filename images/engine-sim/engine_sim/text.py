"""Token counts and the text of answers: made up, but always the same for the same prompt."""

import hashlib
import random
from collections.abc import Sequence as Many

CHARACTERS_PER_TOKEN = 4
_WORDS = (
    " the", " model", " reads", " a", " page", " of", " cache", " and", " writes", " one",
    " token", " more", " so", " that", " every", " answer", " grows", " until", " it", " ends",
)  # fmt: skip
_TYPICAL_ANSWER = 200.0


def count_tokens(text: str) -> int:
    """Return about how many tokens a text has: four characters each."""
    return max(1, -(-len(text) // CHARACTERS_PER_TOKEN))


class Answer:
    """The answer to one prompt: its natural length and its words."""

    def __init__(self, prompt: str | Many[int]) -> None:
        digest = hashlib.blake2b(repr(prompt).encode(), digest_size=8).digest()
        self._seed = int.from_bytes(digest, "big")

    @property
    def natural_tokens(self) -> int:
        """Tokens after which the answer ends by itself."""
        drawn = random.Random(self._seed).lognormvariate(0.0, 0.6)
        return max(1, round(_TYPICAL_ANSWER * drawn))

    def words(self, start: int, count: int) -> str:
        """Return the text of some tokens, one word each."""
        numbers = range(start, start + count)
        return "".join(_WORDS[(self._seed + number * 7) % len(_WORDS)] for number in numbers)
