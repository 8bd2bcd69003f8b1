"""A canary that gets copies beside its users' requests: its load is all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from numpy.random import default_rng

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis.samples import Tick
from tests.fakes.arms import Stage, Traffic, arrivals, guilty, split, watch, when, work

BEGIN, END = 600.0, 3000.0
TENTH = (Stage(0, 0, 0, 10, 1), Stage(BEGIN, 1, 10, 25, 1))


def ticks(copies: float, *, slower: float = 1.0, seed: int = 1) -> Iterator[Tick]:
    """Yield two arms of one pod each, of which the canary gets so many copies per request."""
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, END, 8.0), TENTH)
    traffic = Traffic(work(rng, base), work(rng, ours).slowed(slower), TENTH, END)
    for tick in traffic.ticks():
        engines = {
            name: replace(
                engine,
                finished=None if engine.finished is None else engine.finished * (1 + copies),
            )
            for name, engine in tick.canary.engines.items()
        }
        yield replace(tick, canary=replace(tick.canary, engines=engines))


def test_without_copies_a_tenth_of_the_traffic_is_a_tenth_of_the_load() -> None:
    reports = watch(ticks(0))
    assert reports[-1].load.ratio == pytest.approx(1 / 9, rel=0.2)
    assert reports[-1].provisional
    assert guilty(reports) == set()


@pytest.mark.parametrize("seed", [1, 2])
def test_with_copies_the_load_is_the_baselines_and_the_pass_is_not_provisional(seed: int) -> None:
    reports = watch(ticks(8, seed=seed))
    assert reports[-1].load.ratio == pytest.approx(1, rel=0.2)
    assert not reports[-1].provisional
    assert guilty(reports) == set(), "copies are nobody's harm"
    assert when(reports, Verdict.PASS) is not None
    # What the next step brings is a share of the users' requests and not of the copies.
    assert reports[-1].load.next == pytest.approx(2.0, rel=0.2)


def test_a_canary_that_is_slow_under_that_load_fails() -> None:
    reports = watch(ticks(8, slower=1.6))
    assert when(reports, Verdict.FAIL) is not None


def test_a_probe_now_and_then_is_no_load() -> None:
    reports = watch(ticks(0.05))
    assert reports[-1].load.ratio == pytest.approx(1 / 9, rel=0.2)
