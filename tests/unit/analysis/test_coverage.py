"""How often the whole analysis errs, by a small simulation. `make bench-decisions` is a large one.

The pool serves a few dozen requests at once of which none waits, and each arm has its own luck with
them: medium load. What is promised is one false roll-back in twenty, and we ask for far less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.random import default_rng

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Analysis
from kvquant.core.analysis.samples import Tick
from tests.fakes.arms import EPOCH, Array, Stage, Traffic, Work, arrivals, split, work

RUNS = 60
BEGIN = 150.0
STAGES = (Stage(0, 0, 0, 50, 1), Stage(BEGIN, 1, 50))


def busy(done: Work) -> Work:
    """Return the requests as an engine serves them that is the slower, the more it serves at once.

    Neighbouring requests share that, so that they are alike.
    """
    begun = np.arange(len(done.at))
    over = np.searchsorted(np.sort(done.at + done.seconds), done.at)
    at_once: Array = (begun - over).astype(np.float64)
    return done.slowed(1 + at_once / 20)


def run(seed: int, slow: float, end: float) -> Traffic:
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, end, 4), STAGES)
    return Traffic(busy(work(rng, base)), busy(work(rng, ours).slowed(slow)), STAGES, end)


def first_fail(ticks: Iterable[Tick]) -> float:
    """Return the seconds after the canary's begin at which it is rolled back, if it is."""
    analysis = Analysis()
    for tick in ticks:
        if analysis.observe(tick).verdict is Verdict.FAIL:
            return tick.at - EPOCH - BEGIN
    return math.inf


def test_an_identical_canary_is_hardly_ever_rolled_back() -> None:
    found = [first_fail(run(seed, 1.0, BEGIN + 780).ticks()) for seed in range(RUNS)]

    assert sum(map(math.isfinite, found)) <= 2


def test_a_canary_that_takes_twice_as_long_is_always_rolled_back_within_minutes() -> None:
    found = [first_fail(run(seed, 2.0, BEGIN + 900).ticks()) for seed in range(RUNS)]

    assert max(found) <= 600
    assert float(np.median(found)) <= 360


def test_a_canary_that_takes_a_third_longer_is_rolled_back_within_twenty_minutes() -> None:
    found = [first_fail(run(seed, 1.35, BEGIN + 1200).ticks()) for seed in range(10)]

    assert sum(map(math.isfinite, found)) >= 9
