"""What kind of request an example is: what can go wrong with it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from kvquant.core.shadow_settings import bucket_of
from kvquant.shadow import asking


class Kind(StrEnum):
    """The kinds, each of which an example set should have some of."""

    JAILBREAK = "jailbreak"
    """It looks like an attempt to talk the model out of its rules."""
    TOOLS = "toolCalls"
    """Tools are offered."""
    JSON = "json"
    """JSON is asked for."""
    CITATIONS = "citations"
    """Its prompt has sources with markers, such as [1] and [2]."""
    TURNS = "multiTurn"
    """It is the later part of a conversation."""
    PLAIN = "plain"
    """None of these."""


_FEWEST_MARKERS = 2
_LOOKED_AT = 8000
"""Characters at the end of a prompt, where its question is: a source may quote whatever it will."""
_JAILBREAK = re.compile(
    r"\b(?:ignore|disregard|forget) (?:all |any )?(?:of )?(?:the |your |my )?"
    r"(?:previous|prior|above|earlier|preceding) (?:instructions|prompts?|rules|messages)"
    r"|\bjail ?break|\bDAN\b(?= mode|,| has| can| will)|\bdeveloper mode\b|\bdo anything now\b"
    r"|\bwithout (?:any )?(?:restrictions|filters?|moral|ethical|safety)"
    r"|\b(?:pretend|act as if|imagine) (?:that )?you (?:are|were|have) (?:no|not|an? (?:evil|unre))"
    r"|\b(?:reveal|print|repeat|show)(?: me)? (?:all of )?your (?:system prompt|instructions)"
    r"|\bhow (?:to|do i|can i|would one) (?:make|build|synthesi[sz]e|cook) (?:a |an )?"
    r"(?:bombs?|explosives?|meth|nerve agents?|ricin|weapons?)\b",
    re.IGNORECASE,
)


def kind_of(endpoint: str, body: Mapping[str, Any]) -> Kind:
    """Return the kind of a request: the first of those that fit, in their order."""
    asked = asking.read(endpoint, body)
    ending = "\n".join(texts(body))[-_LOOKED_AT:]
    if _JAILBREAK.search(ending):
        return Kind.JAILBREAK
    if asked.tools:
        return Kind.TOOLS
    if asked.wants_json:
        return Kind.JSON
    if len(asked.markers) >= _FEWEST_MARKERS:
        return Kind.CITATIONS
    turns = body.get("messages") or body.get("input")
    if isinstance(turns, list) and any(
        isinstance(turn, Mapping) and turn.get("role") == "assistant" for turn in turns
    ):
        return Kind.TURNS
    return Kind.PLAIN


def length_bucket(body: Mapping[str, Any]) -> str:
    """Return the bucket of a request's length, as the shadow service and the router count it."""
    return bucket_of(len(json.dumps(body, ensure_ascii=False).encode(errors="replace")))


def texts(body: Mapping[str, Any]) -> Iterator[str]:
    """Yield what people, tools and documents said in a request, in its order."""
    for name in ("system", "instructions", "documents", "prompt", "messages", "input"):
        yield from _leaves(body.get(name))


def _leaves(value: object) -> Iterator[str]:
    # Without recursion, as anybody may nest a request as deep as JSON can be read.
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            waiting.extend([value[name] for name in reversed(list(value)) if name != "role"])
        elif isinstance(value, list):
            waiting.extend(reversed(value))
