"""A look that finds nothing new is no write, but for one a minute that shows that we look."""

from __future__ import annotations

from datetime import timedelta

from kvquant.api.v1alpha1 import Phase, Status
from kvquant.core.evidence import Evidence
from kvquant.core.machine import SIGN_OF_LIFE, decide
from tests.fakes.metrics import arm
from tests.unit.test_machine import NOW, PLAN, seen, status

FEW = Evidence(NOW, arm(9), arm(1))


def look(before: Status, seconds: float, evidence: Evidence = FEW) -> Status:
    now = NOW + timedelta(seconds=seconds)
    return decide(PLAN, before, seen(evidence=evidence), now).status


def test_the_same_seen_again_changes_nothing() -> None:
    first = look(status(Phase.PROGRESSING, step=1), 0)
    assert first.analysis is not None
    assert look(first, 10) == first
    assert look(first, SIGN_OF_LIFE.total_seconds() - 1) == first


def test_once_a_minute_it_is_written_all_the_same() -> None:
    first = look(status(Phase.PROGRESSING, step=1), 0)
    later = look(first, 60)
    assert later.analysis is not None
    assert later.analysis.at == NOW + SIGN_OF_LIFE


def test_any_other_number_is_written_at_once() -> None:
    first = look(status(Phase.PROGRESSING, step=1), 0)
    later = look(first, 1, Evidence(NOW, arm(9), arm(2)))
    assert later.analysis is not None
    assert later.analysis.at == NOW + timedelta(seconds=1)
    assert later.analysis.canary_requests == 2
