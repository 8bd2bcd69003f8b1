"""The prompts of the saturation probe, and whether an answer to one is right. Pure.

They are made from a seed, so that nothing of a user is in them and a run can be told again. Each
has an answer that is known to be right or wrong without another model: JSON of a given shape, or a
code that stands somewhere in a long text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.shadow import schemas
from kvquant.shadow.answers import Answer
from kvquant.shadow.preparing import CHAT, COMPLETIONS, SEED

STRICT, PLAIN, NEEDLE, FILLER = "strictJson", "plainJson", "needle", "filler"
KINDS = (STRICT,) * 3 + (PLAIN, NEEDLE)
"""Of five prompts, three ask for JSON by a schema: where corruption has been seen first."""

ANSWER_TOKENS = 192
FILLER_TOKENS = 128
"""Length of a filler's answer. Another one follows at once, so that the pool stays full; a longer
one would let the prompts wait behind it until their time is over."""
MOST_WORDS = 2048
"""Words of a long text, each one to two tokens."""

_WORDS = (
    *("river", "window", "market", "copper", "garden", "letter", "winter", "bridge", "candle"),
    *("harbor", "silver", "paper", "forest", "engine", "valley", "mirror", "butter", "planet"),
    *("the", "of", "under", "behind", "and", "small", "quiet", "early", "carries", "turns"),
)
_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 24},
        "population": {"type": "integer"},
        "coastal": {"type": "boolean"},
        "names": {"type": "array", "items": {"type": "string", "maxLength": 16}, "maxItems": 3},
    },
    "required": ["city", "population", "coastal", "names"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt.

    Attributes:
        kind: What it asks for.
        text: What is asked.
        code: What the answer must have in it; empty: it must be the JSON that was asked for.
    """

    kind: str
    text: str
    code: str = ""

    def right(self, answer: Answer) -> bool:
        """Return whether an answer is what was asked for."""
        if self.code:
            return self.code in answer.text
        text = answer.text.strip()
        if self.kind == PLAIN:
            # Models like to fence what nobody made them write without a fence.
            text = text[text.find("{") : text.rfind("}") + 1]
        valid, value = schemas.document(text)
        return valid and schemas.fits(value, _SCHEMA)

    def request(self, model: str, path: str) -> dict[str, Any]:
        """Return the request.

        Args:
            model: Name of the model.
            path: Endpoint that will be asked: chat completions, or completions where the model
                has no chat template.
        """
        filler = self.kind == FILLER
        asked: dict[str, Any] = {
            "model": model,
            "max_tokens": FILLER_TOKENS if filler else ANSWER_TOKENS,
            "temperature": 0,
            "seed": SEED,
            "stream": False,
        }
        if path == CHAT:
            asked["messages"] = [{"role": "user", "content": self.text}]
        else:
            asked["prompt"] = self.text
        if filler:
            asked["ignore_eos"] = True
        if self.kind == STRICT:
            form = {"name": "city", "strict": True, "schema": _SCHEMA}
            asked["response_format"] = {"type": "json_schema", "json_schema": form}
        return asked


def prompts(seed: int, count: int, longest: int) -> list[Probe]:
    """Return prompts, always the same for a seed.

    Args:
        seed: Of the run.
        count: How many.
        longest: Tokens that the model can take; 0: unknown.
    """
    chance = random.Random(seed)  # noqa: S311 - prompts, no secrets
    return [_prompt(KINDS[n % len(KINDS)], chance, longest) for n in range(count)]


def filler(seed: int, longest: int) -> Probe:
    """Return a prompt that takes room and whose answer nobody reads."""
    chance = random.Random(f"filler {seed}")  # noqa: S311 - likewise
    return Probe(FILLER, " ".join(_text(chance, _words(longest))))


def filler_path() -> str:
    """Return the endpoint for fillers, which every generating model has."""
    return COMPLETIONS


def _prompt(kind: str, chance: random.Random, longest: int) -> Probe:
    if kind == NEEDLE:
        code = f"{chance.randrange(10**6):06d}"
        words = _text(chance, _words(longest))
        words.insert(chance.randrange(len(words)), f"The code of the day is {code}.")
        question = "What is the code of the day? Answer with the six digits alone."
        return Probe(kind, f"{' '.join(words)}\n\n{question}", code)
    city = " ".join(_text(chance, 3))
    fields: Mapping[str, Any] = _SCHEMA["properties"]  # type: ignore[assignment]
    shape = ", ".join(f"{name} ({what['type']})" for name, what in fields.items())
    return Probe(
        kind,
        f"Invent facts about a town called {json.dumps(city)}. Answer with one JSON object that "
        f"has exactly these fields and nothing around it: {shape}. names has two strings.",
    )


def _words(longest: int) -> int:
    """Return the words of a long text: a quarter of what the model takes, and never too many."""
    return max(16, min(MOST_WORDS, (longest or 4096) // 4))


def _text(chance: random.Random, words: int) -> list[str]:
    return [chance.choice(_WORDS) for _ in range(words)]
