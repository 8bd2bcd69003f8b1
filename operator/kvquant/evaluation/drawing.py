"""An example set, drawn from the shadow log: some of every length and kind, none of it twice. Pure.

The draw follows from the seed and the prompts alone, whatever the order in which they are read:
each prompt has a number that a hash of it and of the seed gives, and the lowest ones are taken.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kvquant.core.shadow_settings import BUCKETS
from kvquant.evaluation.examples import Example, identity
from kvquant.evaluation.kinds import Kind, kind_of, length_bucket, texts

_PLACEHOLDER = re.compile(r"<([A-Z][A-Z0-9_]*?)_[0-9A-Za-z]+>")
_SPACE = re.compile(r"\s+")
_OURS = frozenset({"temperature", "top_p", "seed", "stream", "n", "return_token_ids", "store"})
"""Fields that the shadow service has set: an evaluation sets its own."""

Stratum = tuple[str, Kind]
Records = Callable[[], Iterable[Mapping[str, Any]]]


@dataclass(slots=True)
class Drawn:
    """A set, and where it comes from.

    Attributes:
        examples: The set.
        offered: Different prompts by stratum.
        taken: Examples by stratum.
        records: Lines that were read.
        duplicates: Prompts that had been there before, but for spaces, case and placeholders.
        unusable: Lines that are no pair, or whose prompt the baseline did not answer.
    """

    examples: list[Example] = field(default_factory=list)
    offered: dict[Stratum, int] = field(default_factory=dict)
    taken: dict[Stratum, int] = field(default_factory=dict)
    records: int = 0
    duplicates: int = 0
    unusable: int = 0


@dataclass(slots=True)
class _Prompt:
    stratum: Stratum
    identity: str


def draw(records: Records, size: int, seed: int) -> Drawn:
    """Return a set of at most so many examples.

    The log is read twice, so that only the prompts that are taken are ever in memory.

    Args:
        records: Returns the lines of the log, the same at each call.
        size: How many examples at most.
        seed: Another one draws another set.
    """
    drawn = Drawn()
    prompts: dict[str, _Prompt] = {}
    for record in records():
        drawn.records += 1
        request = _request(record)
        if request is None:
            drawn.unusable += 1
            continue
        endpoint, body = request
        name = identity(endpoint, body)
        key = _sameness(endpoint, body)
        known = prompts.get(key)
        if known is None:
            prompts[key] = _Prompt((length_bucket(body), kind_of(endpoint, body)), name)
        else:
            drawn.duplicates += 1
            # Of two that are the same to us, one has to be chosen by something that stays.
            if name < known.identity:
                prompts[key] = _Prompt((length_bucket(body), kind_of(endpoint, body)), name)
    strata: dict[Stratum, list[tuple[bytes, str]]] = {}
    for key, prompt in prompts.items():
        rank = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        strata.setdefault(prompt.stratum, []).append((rank, prompt.identity))
    drawn.offered = {stratum: len(members) for stratum, members in sorted(strata.items(), key=_at)}
    drawn.taken = shares(drawn.offered, size)
    chosen = {
        name
        for stratum, members in strata.items()
        for _, name in sorted(members)[: drawn.taken[stratum]]
    }
    for record in records():
        request = _request(record)
        if request is None:
            continue
        endpoint, body = request
        name = identity(endpoint, body)
        if name in chosen:
            chosen.discard(name)
            drawn.examples.append(Example(id=name, endpoint=endpoint, body=body))
    drawn.examples.sort(key=lambda example: example.id)
    return drawn


def shares(offered: Mapping[Stratum, int], size: int) -> dict[Stratum, int]:
    """Return how many to take of each stratum: the same of each, as far as they have so many.

    Long prompts and tool calls are rare, and it is they that a quantized cache harms first.
    """
    taken = dict.fromkeys(offered, 0)
    left = min(size, sum(offered.values()))
    while left:
        open_ones = [stratum for stratum in offered if taken[stratum] < offered[stratum]]
        each = max(1, left // len(open_ones))
        for stratum in open_ones:
            more = min(each, offered[stratum] - taken[stratum], left)
            taken[stratum] += more
            left -= more
    return taken


def _at(item: tuple[Stratum, Any]) -> tuple[int, str]:
    (bucket, kind), _ = item
    return [name for name, _ in BUCKETS].index(bucket), kind


def _request(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return endpoint and body of a record whose prompt the baseline answered."""
    try:
        if record["schema_version"] != 1 or record["arms"]["baseline"]["answer"] is None:
            return None
        body = {name: value for name, value in record["request"].items() if name not in _OURS}
        Example(id="x", endpoint=record["endpoint"], body=body)
    except (KeyError, TypeError, AttributeError, ValidationError):
        return None
    return record["endpoint"], body


def _sameness(endpoint: str, body: Mapping[str, Any]) -> str:
    """Return what two prompts share that differ in spaces, case or placeholders only."""
    said = _SPACE.sub(" ", _PLACEHOLDER.sub(r"<\1>", "\n".join(texts(body)))).strip().lower()
    rest = {
        name: value
        for name, value in body.items()
        if name in ("tools", "functions", "response_format", "guided_json", "text")
    }
    return identity(endpoint, {"said": said, **rest})
