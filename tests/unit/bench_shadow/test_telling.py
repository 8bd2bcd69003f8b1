"""What the last line of the shadow benchmark says, and when the command fails."""

from __future__ import annotations

import random

import pytest

from bench.router import Times
from bench.shadow import AGAIN, CONDITIONS, NONE, Measured, Seen, tell

SEED = 1


def _measured(**factors: float) -> dict[str, Measured]:
    """All conditions with the same latencies, but for those named (blanks as underscores)."""
    return {
        name: Measured([_times(number, round_, factors) for round_ in range(3)])
        for number, name in enumerate(CONDITIONS)
    }


def _times(number: int, round_: int, factors: dict[str, float]) -> Times:
    chance = random.Random(100 * number + round_)
    factor = factors.get(list(CONDITIONS)[number].replace(" ", "_"), 1.0)
    return Times(last=[factor * chance.lognormvariate(-1.5, 0.1) for _ in range(60)], late=[0.0])


def test_nothing_felt_is_within_noise() -> None:
    line, good = tell(_measured(), 10, SEED)
    assert good
    assert "0 failed, p50 and p99 within noise" in line


def test_a_slower_condition_is_named() -> None:
    line, good = tell(_measured(shadow_hung=1.5), 10, SEED)
    assert good, "a measured effect is a result and no failure of the command"
    assert "beyond noise: shadow hung p50 1.5" in line
    assert "shadow dead" not in line


def test_one_failed_request_fails_the_command() -> None:
    measured = _measured()
    measured["shadow dead"].rounds[2].failed = 1
    line, good = tell(measured, 10, SEED)
    assert not good
    assert "1 failed" in line


def test_a_condition_that_was_not_there_fails_the_command() -> None:
    measured = _measured()
    measured["shadow flooded"].seen.must("without room", 7)
    measured["shadow flooded"].seen.must("without room", 0)
    line, good = tell(measured, 10, SEED)
    assert not good
    assert "it did not happen: shadow flooded: no without room" in line


def test_a_client_that_was_late_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    measured = _measured()
    for times in measured[NONE].rounds + measured[AGAIN].rounds:
        times.late = [0.2]
    tell(measured, 10, SEED)
    assert "this machine was busy" in capsys.readouterr().out


def test_what_need_not_happen_is_told_and_missed_by_nobody() -> None:
    seen = Seen()
    seen.may("not sent any more", 0)
    assert not seen.missing
    assert str(seen) == "0 not sent any more"
