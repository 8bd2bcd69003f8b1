"""A look that finds nothing new is no write, but for one a minute that shows that we look."""

from __future__ import annotations

from datetime import timedelta

from kvquant.api.v1alpha1 import Phase, Status, Verdict
from kvquant.core.analysis import Report
from kvquant.core.machine import decide
from kvquant.core.turn import SIGN_OF_LIFE
from tests.fakes.reports import report
from tests.unit.test_machine import NOW, PLAN, seen, status

FEW = report(Verdict.INCONCLUSIVE, canary=1)


def look(before: Status, seconds: float, found: Report = FEW) -> Status:
    now = NOW + timedelta(seconds=seconds)
    return decide(PLAN, before, seen(report=found), now).status


def test_the_same_verdict_again_changes_nothing_whatever_its_numbers() -> None:
    first = look(status(Phase.PROGRESSING, step=1), 0)
    assert first.analysis is not None
    more = report(Verdict.INCONCLUSIVE, canary=2)
    assert look(first, 10, more) == first
    assert look(first, SIGN_OF_LIFE.total_seconds() - 1, more) == first


def test_how_long_it_will_take_is_written_once_it_is_known() -> None:
    first = look(status(Phase.PROGRESSING, step=1), 0)
    later = look(first, 1, report(Verdict.INCONCLUSIVE, canary=1, eta=90))
    assert later.analysis is not None
    assert later.analysis.eta_seconds == 90
    assert look(later, 2, report(Verdict.INCONCLUSIVE, canary=1, eta=80)) == later
    assert look(later, 3) == later, "a passing doubt about it is no news"


def test_once_a_minute_it_is_written_all_the_same() -> None:
    first = look(status(Phase.PROGRESSING, step=1), 0)
    later = look(first, 60, report(Verdict.INCONCLUSIVE, canary=2))
    assert later.analysis is not None
    assert later.analysis.canary_requests == 2


def test_another_verdict_is_written_at_once() -> None:
    first = look(status(Phase.PROGRESSING, step=1), 0)
    later = look(first, 1, report(canary=2))
    assert later.analysis is not None
    assert later.analysis.verdict is Verdict.PASS
