"""What both arms are asked of an example, and what a good answer to it is like. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvquant.evaluation.examples import Example, Expected
from kvquant.evaluation.kinds import Kind, kind_of, length_bucket
from kvquant.shadow import asking, preparing
from kvquant.shadow.asking import Asked

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_UNASKED = ("stream_options", "best_of", "use_beam_search", "echo")
"""What engines refuse beside greedy answers that come at once, and what would change them."""


@dataclass(frozen=True, slots=True)
class Question:
    """An example as it is asked.

    Attributes:
        id: Of the example.
        path: Endpoint that is asked.
        body: What is asked of both arms, but for the name of the model.
        asked: What an answer has to be like.
        expect: What is known of a good answer.
        bucket: Bucket of its length.
        kind: What can go wrong with it.
        twice: The baseline is asked a second time.
    """

    id: str
    path: str
    body: Mapping[str, Any]
    asked: Asked
    expect: Expected
    bucket: str
    kind: Kind
    twice: bool

    def sent(self, model: str | None) -> bytes:
        """Return the request for an arm.

        Args:
            model: Name of the model there; None: as it stands in the example.
        """
        body = self.body if model is None else {**self.body, "model": model}
        return json.dumps(body, sort_keys=True).encode()


def ask(example: Example, answer_tokens: int, noise_percent: int) -> Question:
    """Return an example as it is asked: greedy, with a fixed seed, at once.

    Args:
        example: The example.
        answer_tokens: Longest answer that is asked for where the example says nothing of it.
        noise_percent: Share of the examples that the baseline is asked twice. One that offers tools
            and does not tell the calls to expect always is: only that tells a call that differs
            because of the canary from one that differs by itself.
    """
    path, expect = example.endpoint, example.expect or Expected()
    body = {name: value for name, value in example.body.items() if name not in _UNASKED}
    own = [body[name] for name in _LIMITS if type(body.get(name)) is int]
    asked = asking.read(path, body)
    if expect.json_schema:
        schema = expect.json_schema
        asked = replace(asked, wants_json=True, schema=asked.schema if schema is True else schema)
    compared = bool(asked.tools) and expect.tool_calls is None
    return Question(
        id=example.id,
        path=path,
        body=preparing.replayed(path, body, max(own, default=answer_tokens)),
        asked=asked,
        expect=expect,
        bucket=length_bucket(example.body),
        kind=kind_of(path, example.body),
        twice=compared or _rank(example.id, 0) % 100 < noise_percent,
    )


def ordered(examples: list[Example], seed: int) -> list[Example]:
    """Return the examples in an order that has nothing to do with what they are.

    What a deadline leaves unasked is then a fair share of every kind and length.
    """
    return sorted(examples, key=lambda example: (_rank(example.id, seed), example.id))


def _rank(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8])
