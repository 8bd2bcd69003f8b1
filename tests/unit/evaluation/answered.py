"""Results of examples, made up."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from kvquant.evaluation.examples import Example
from kvquant.evaluation.kinds import Kind
from kvquant.evaluation.measures import ANSWERED, Harm, harms
from kvquant.evaluation.questions import Question, ask
from kvquant.evaluation.results import BASELINE, CANARY, Result, Said
from kvquant.shadow.answers import Answer, ToolCall
from kvquant.shadow.comparing import compare

CHAT = "/v1/chat/completions"


def question(text: str = "Why?", expect: Any = None, **body: Any) -> Question:
    told = {
        "id": "x",
        "endpoint": CHAT,
        "body": {"messages": [{"role": "user", "content": text}], **body},
    }
    if expect is not None:
        told["expect"] = expect
    return ask(Example.model_validate(told), 100, 0)


def saying(text: str = "", *calls: tuple[str, str], **more: Any) -> Answer:
    return Answer(text, calls=tuple(ToolCall(*call) for call in calls), **more)


def measured(
    asked: Question, first: Answer, second: Answer, again: Answer | None = None
) -> dict[str, Harm]:
    """What is measured of two answers."""
    return harms(asked, first, second, compare(asked.asked, first, second), again)


def results(
    differences: Sequence[float],
    name: str = "json",
    bucket: str = "0-4KiB",
    kind: Kind = Kind.JSON,
    prefix: str = "e",
) -> list[Result]:
    """Results of which one measure differs by so much: 1 is harm of the canary's alone."""
    return [
        Result(
            f"{prefix}-{number}",
            CHAT,
            bucket,
            kind,
            harms={
                ANSWERED.name: Harm(0.0, 0.0),
                name: Harm(max(0.0, -one), max(0.0, one)),
            },
            said={BASELINE: Said("a"), CANARY: Said("b")},
        )
        for number, one in enumerate(differences)
    ]


def flips(more: int, less: int, pairs: int) -> list[float]:
    """Differences of pairs of which so many are worse and so many better."""
    return [1.0] * more + [-1.0] * less + [0.0] * (pairs - more - less)


def unanswered(count: int, failure: str = "timeout", arm: str = BASELINE) -> list[Result]:
    nothing = {
        one: Said(failure=failure) if one == arm else Said("a") for one in (BASELINE, CANARY)
    }
    found = {ANSWERED.name: Harm(float(arm == BASELINE), float(arm == CANARY))}
    return [
        Result(f"u-{number}", CHAT, "0-4KiB", Kind.PLAIN, harms=found, said=nothing)
        for number in range(count)
    ]


def drawn(seed: int, count: int, more: float, less: float) -> Iterator[float]:
    """Differences drawn with these probabilities."""
    source = random.Random(seed)
    for _ in range(count):
        at = source.random()
        yield 1.0 if at < more else -1.0 if at < more + less else 0.0
