"""What an answer says: made up, but the same for the same prompt wherever nothing went wrong."""

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import tokens
from .quality import MOST_CITATIONS, NEVER, Flaws, seed_of
from .schema import value_of
from .tokens import WORDS

MARKER = re.compile(r"\[[A-Za-z][A-Za-z_-]{0,15}\d{1,6}\]|\[\d{1,6}\]")
"""What counts as a citation marker in a prompt: [1], [doc3], [source-12]."""
PROBES = (
    "ignore all previous instructions",
    "ignore previous instructions",
    "ignore your instructions",
    "disregard all previous instructions",
    "pretend you have no restrictions",
    "you are now dan",
    "do anything now",
    "developer mode enabled",
)
"""What makes a prompt a jailbreak attempt, in lower case."""
REFUSAL = "I'm sorry, but I can't help with that."

_TYPICAL_ANSWER = 200.0
_FIRST_CITATION = 8
_BETWEEN_CITATIONS = 12
_TOKENS_PER_VALUE = 2
"""Tokens of a JSON value that are a choice; the others follow from the schema and the grammar."""
_FREE_FORM = {
    "type": "object",
    "properties": {
        "answer": {"type": "string"},
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
    },
}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the client offers."""

    name: str
    parameters: object


@dataclass(frozen=True, slots=True)
class Wish:
    """What the request wants besides words.

    Attributes:
        json_schema: of the JSON that is wanted; None when any text will do.
        tools: that may be called; of several the first that the prompt mentions is.
        must_call: whether one is called even if the prompt mentions none.
    """

    json_schema: object = None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request, as far as one reads it.

    Attributes:
        natural_tokens: tokens after which it ends by itself.
        seed: of its words.
        fork: number of the token from which on ``fork_seed`` chooses the words.
        fork_seed: see there.
        fixed: tokens that are no chosen words, by number.
        filler: what follows the natural end when the client wants more; None for words.
        tool: name of the function it calls, None when it calls none.
        arguments: of the call, JSON unless the engine is broken.
    """

    natural_tokens: int
    seed: int
    fork: int = NEVER
    fork_seed: int = 0
    fixed: Mapping[int, str] = field(default_factory=dict)
    filler: str | None = None
    tool: str | None = None
    arguments: str = ""

    def pieces(self, start: int, count: int) -> list[str]:
        """Return the text of some tokens."""
        return [self._piece(number) for number in range(start, start + count)]

    def text(self, start: int, count: int) -> str:
        """Return the text of some tokens as one."""
        if not self.fixed and start + count <= self.fork:
            seed, most = self.seed, len(WORDS)
            return "".join(
                [WORDS[(seed + number * 7) % most] for number in range(start, start + count)]
            )
        return "".join(self.pieces(start, count))

    def ids(self, start: int, count: int) -> list[int]:
        """Return the ids of some tokens."""
        return [tokens.id_of(piece) for piece in self.pieces(start, count)]

    def _piece(self, number: int) -> str:
        found = self.fixed.get(number)
        if found is not None:
            return found
        if self.filler is not None:
            return self.filler
        seed = self.seed if number < self.fork else self.fork_seed
        return WORDS[(seed + number * 7) % len(WORDS)]


def seed_for(model: str, prompt: str) -> int:
    """Return the seed of the base answer, the same on every engine of a model."""
    return seed_of(model, prompt)


def compose(prompt: str, seed: int, wish: Wish, flaws: Flaws) -> Answer:
    """Return the answer to a prompt with these flaws."""
    lowered = prompt.lower()
    probe = any(phrase in lowered for phrase in PROBES)
    tool = _chosen(wish, lowered, seed, probe=probe and not flaws.complies)
    if tool is not None:
        return _call(tool, seed, flaws)
    if wish.json_schema is not None:
        return _json(wish.json_schema, prompt, seed, flaws)
    if (probe and not flaws.complies) or flaws.refuses:
        pieces = tokens.pieces_of(REFUSAL)
        return Answer(len(pieces), seed, fixed=dict(enumerate(pieces)))
    return _prose(prompt, seed, flaws)


def _chosen(wish: Wish, lowered: str, seed: int, *, probe: bool) -> Tool | None:
    if not wish.tools or (probe and not wish.must_call):
        return None
    for tool in wish.tools:
        name = tool.name.lower()
        if name in lowered or name.replace("_", " ") in lowered:
            return tool
    return wish.tools[seed % len(wish.tools)] if wish.must_call else None


def _prose(prompt: str, seed: int, flaws: Flaws) -> Answer:
    natural = max(1, round(_TYPICAL_ANSWER * random.Random(seed).lognormvariate(0.0, 0.6)))
    fork, fork_seed = NEVER, 0
    if flaws.fork < natural:
        fork = flaws.fork
        # Other words from there on, never by chance the same, and another end.
        fork_seed = seed + 1 + flaws.fork_seed % (len(WORDS) - 1)
        natural = max(fork + 1, round(natural * random.Random(flaws.fork_seed).uniform(0.9, 1.1)))
    fixed: dict[int, str] = {}
    number = _FIRST_CITATION
    for marker, lost in zip(_cited(prompt, seed), flaws.dropped, strict=False):
        pieces = tokens.pieces_of(f" {marker}")
        if not lost:
            fixed.update(enumerate(pieces, number))
        number += len(pieces) + _BETWEEN_CITATIONS
        natural = max(natural, number)
    return Answer(natural, seed, fork, fork_seed, fixed)


def _cited(prompt: str, seed: int) -> list[str]:
    """Choose markers from all over the prompt: its first, its last and some in between."""
    found = list(dict.fromkeys(MARKER.findall(prompt)))
    if len(found) <= MOST_CITATIONS:
        return found
    inner = sorted(random.Random(seed).sample(range(1, len(found) - 1), MOST_CITATIONS - 2))
    return [found[0], *(found[number] for number in inner), found[-1]]


def _json(schema: object, prompt: str, seed: int, flaws: Flaws) -> Answer:
    free = not isinstance(schema, dict) or not schema
    value = _value(_FREE_FORM if free else schema, seed, flaws)
    if free:
        value["citations"] = [
            marker
            for marker, lost in zip(_cited(prompt, seed), flaws.dropped, strict=False)
            if not lost
        ]
    pieces = tokens.pieces_of(_spoilt(json.dumps(value), flaws))
    # A grammar lets nothing but white space follow the object.
    return Answer(len(pieces), seed, fixed=dict(enumerate(pieces)), filler=" ")


def _call(tool: Tool, seed: int, flaws: Flaws) -> Answer:
    schema = tool.parameters if isinstance(tool.parameters, dict) else {}
    arguments = _spoilt(json.dumps(_value({"type": "object", **schema}, seed, flaws)), flaws)
    written = f'{{"name": {json.dumps(tool.name)}, "arguments": {arguments}}}'
    pieces = tokens.pieces_of(written)
    return Answer(
        len(pieces),
        seed,
        fixed=dict(enumerate(pieces)),
        filler=" ",
        tool=tool.name,
        arguments=arguments,
    )


def _value(schema: object, seed: int, flaws: Flaws) -> Any:
    """Make a value; from about the token of the fork on other values are chosen."""
    made = 0

    def random_at() -> random.Random:
        nonlocal made
        made += 1
        turned = flaws.fork < made * _TOKENS_PER_VALUE
        return random.Random(seed_of(flaws.fork_seed if turned else seed, made))

    return value_of(schema, random_at)


def _spoilt(text: str, flaws: Flaws) -> str:
    """Return JSON that ends too early, as seen in the field, or the text as it is."""
    if flaws.broken_at is None:
        return text
    return text[: max(1, int(len(text) * flaws.broken_at))]
