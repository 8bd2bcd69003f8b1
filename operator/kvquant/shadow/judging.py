"""What both arms made of a prompt, turned into counts and a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvquant.core.shadow_settings import ANSWERED
from kvquant.shadow import answers
from kvquant.shadow.answers import UnreadableAnswerError
from kvquant.shadow.asking import Asked
from kvquant.shadow.comparing import Comparison, compare
from kvquant.shadow.ports import Dropped
from kvquant.shadow.record import Told
from kvquant.shadow.replaying import NO_POD, Reply


@dataclass(slots=True)
class Judged:
    """A pair of answers.

    Attributes:
        signals: Differences by signal.
        comparison: What they rest on; None: only one of the two answered.
    """

    signals: dict[str, float] = field(default_factory=dict)
    comparison: Comparison | None = None


def told(path: str, reply: Reply) -> Told:
    """Return what an arm told: its answer, where its reply is one."""
    if reply.failure:
        return Told(reply, None)
    try:
        return Told(reply, answers.read(path, reply.document))
    except UnreadableAnswerError:
        unreadable = Reply(reply.status, None, "unreadable", reply.seconds, reply.pod)
        return Told(unreadable, None)


def judge(asked: Asked, first: Told, second: Told) -> Judged:
    """Return the differences between two arms' answers.

    Raises:
        Dropped: There is nothing to compare: neither answered.
    """
    if NO_POD in (first.reply.failure, second.reply.failure):
        raise Dropped("noPod")
    if first.answer is not None and second.answer is not None:
        comparison = compare(asked, first.answer, second.answer)
        return Judged({ANSWERED: 0.0, **comparison.signals}, comparison)
    if first.answer is not None:
        return Judged({ANSWERED: 1.0})
    if second.answer is not None:
        return Judged({ANSWERED: -1.0})
    if first.reply.refused and second.reply.refused:
        raise Dropped("refused")
    raise Dropped("unanswered")


def merged(*counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts by kind, added up."""
    total: dict[str, int] = {}
    for one in counts:
        for kind, count in one.items():
            total[kind] = total.get(kind, 0) + count
    return total
