"""What the analysis says of signals of the user's, whose right verdict is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from numpy.random import default_rng

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import CustomSignal, Report, Settings
from kvquant.core.analysis.report import Evidence
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, Share, Tick
from tests.fakes.arms import Stage, Traffic, arrivals, guilty, split, watch, when, work

BEGIN = 600.0
END = 2700.0
STAGES = (Stage(0, 0, 0, 50, 1), Stage(BEGIN, 1, 50))

ERRORS = Settings(custom=(CustomSignal("toolErrors", 0.02),))
HITS = Settings(custom=(CustomSignal("hits", 0.05, higher_is_worse=False),))
RERANK = Settings(custom=(CustomSignal("rerank", 0.2, quantile=0.9),))

Told = Callable[[EngineSample, bool, int], EngineSample]
"""Of an engine's sample, whether it is the canary's, and the tick's number."""


def ticks(told: Told, *, seed: int = 1) -> Iterator[Tick]:
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, END, 4.0), STAGES)
    traffic = Traffic(work(rng, base), work(rng, ours), STAGES, END)

    def arm(arm: Arm, index: int, *, canary: bool) -> Arm:
        engines = {name: told(one, canary, index) for name, one in arm.engines.items()}
        return replace(arm, engines=engines)

    for index, tick in enumerate(traffic.ticks()):
        yield replace(
            tick,
            baseline=arm(tick.baseline, index, canary=False),
            canary=arm(tick.canary, index, canary=True),
        )


def shared(name: str, baseline: float, canary: float) -> Told:
    """Let an engine count such a share of its requests."""

    def told(engine: EngineSample, canary_: bool, _: int) -> EngineSample:
        total = engine.finished or 0.0
        share = canary if canary_ else baseline
        return replace(engine, custom={name: Share(math.floor(share * total), total)})

    return told


def reranked(slowdown: float) -> Told:
    """Let an engine show a histogram that is slower by so much at the canary."""

    def told(engine: EngineSample, canary: bool, _: int) -> EngineSample:
        assert engine.e2e is not None
        factor = slowdown if canary else 1.0
        bounds = tuple(bound * factor for bound in engine.e2e.bounds)
        # Read off at the bounds that the baseline has, as the analysis does.
        return replace(engine, custom={"rerank": Bins(bounds, engine.e2e.counts)})

    return told


def last(reports: list[Report], name: str) -> Evidence:
    return next(s for s in reports[-1].signals if s.name == name)


def test_a_share_that_rises_at_the_canary_alone_rolls_back() -> None:
    reports = watch(ticks(shared("toolErrors", 0.05, 0.15)), ERRORS)

    assert guilty(reports) == {"toolErrors"}
    found = last(reports, "toolErrors")
    assert found.family == "custom"
    assert found.tolerance == "2 % more"
    assert found.baseline == pytest.approx(0.05, abs=0.01)
    assert found.canary == pytest.approx(0.15, abs=0.01)
    assert "toolErrors: 1" in reports[-1].message


def test_of_a_good_share_less_is_harm_and_it_is_told_as_it_was_asked_for() -> None:
    worse = watch(ticks(shared("hits", 0.6, 0.4)), HITS)
    better = watch(ticks(shared("hits", 0.4, 0.6)), HITS)

    assert guilty(worse) == {"hits"}
    assert guilty(better) == set()
    assert when(better, Verdict.PASS) is not None
    found = last(worse, "hits")
    assert found.tolerance == "5 % less"
    assert found.baseline == pytest.approx(0.6, abs=0.02)
    assert found.canary == pytest.approx(0.4, abs=0.02)


def test_a_slower_histogram_rolls_back_beyond_its_own_tolerance_and_not_within() -> None:
    slow = watch(ticks(reranked(1.6)), RERANK)
    within = watch(ticks(reranked(1.1)), RERANK)
    tolerated = replace(RERANK, custom=(replace(RERANK.custom[0], tolerance=0.9),))

    assert guilty(slow) == {"rerank"}
    assert last(slow, "rerank").tolerance == "20 % slower"
    assert "of canary observations took longer than" in last(slow, "rerank").message
    assert guilty(within) == set()
    assert guilty(watch(ticks(reranked(1.6)), tolerated)) == set()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("told", "settings"),
    [
        (shared("toolErrors", 0.05, 0.05), ERRORS),
        (shared("hits", 0.6, 0.6), HITS),
        (reranked(1.0), RERANK),
    ],
    ids=["errors", "hits", "rerank"],
)
def test_an_identical_canary_passes(told: Told, settings: Settings, seed: int) -> None:
    reports = watch(ticks(told, seed=seed), settings)

    assert guilty(reports) == set()
    assert when(reports, Verdict.PASS) is not None


@pytest.mark.parametrize("settings", [ERRORS, RERANK], ids=["ratio", "latency"])
def test_what_was_asked_for_and_is_not_there_holds_the_step_and_is_named(
    settings: Settings,
) -> None:
    (asked,) = settings.custom
    reports = watch(ticks(lambda engine, *_: engine), settings)

    assert when(reports, Verdict.PASS) is None
    assert guilty(reports) == set()
    assert f"{asked.name}: not measured yet" in reports[-1].message
    assert "export it" in reports[-1].message
    assert reports[-1].eta_seconds is None


def test_a_canary_that_shows_nothing_holds_the_step_though_the_baseline_does() -> None:
    def told(engine: EngineSample, canary: bool, index: int) -> EngineSample:
        return engine if canary else shared("toolErrors", 0.05, 0.05)(engine, canary, index)

    reports = watch(ticks(told), ERRORS)

    assert when(reports, Verdict.PASS) is None
    assert "toolErrors: not measured yet" in reports[-1].message


def test_a_handful_of_observations_holds_the_step_and_says_how_many() -> None:
    def told(engine: EngineSample, _: bool, index: int) -> EngineSample:
        # One of something each ten minutes, and nothing bad.
        return replace(engine, custom={"toolErrors": Share(0.0, float(index // 40))})

    reports = watch(ticks(told), ERRORS)

    assert when(reports, Verdict.PASS) is None
    assert guilty(reports) == set()
    assert " of 20 canary observations" in reports[-1].message
    assert reports[-1].eta_seconds is not None


@pytest.mark.parametrize("name", ["toolErrors", "rerank"])
def test_an_exporter_that_begins_anew_makes_nobody_guilty(name: str) -> None:
    usual = shared(name, 0.05, 0.05) if name == "toolErrors" else reranked(1.0)
    lost: dict[str, Share | Bins] = {}

    def told(engine: EngineSample, canary: bool, index: int) -> EngineSample:
        now = usual(engine, canary, index)
        if not canary or index < 80:
            return now
        lost.setdefault(name, now.custom[name])
        own, before = now.custom[name], lost[name]
        if isinstance(own, Bins) and isinstance(before, Bins):
            counts = tuple(one - two for one, two in zip(own.counts, before.counts, strict=True))
            return replace(engine, custom={name: replace(own, counts=counts)})
        assert isinstance(own, Share)
        assert isinstance(before, Share)
        assert own.events is not None
        assert own.total is not None
        assert before.events is not None
        assert before.total is not None
        share = Share(own.events - before.events, own.total - before.total)
        return replace(engine, custom={name: share})

    reports = watch(ticks(told), ERRORS if name == "toolErrors" else RERANK)

    assert guilty(reports) == set()
    assert when(reports, Verdict.PASS) is not None


def test_a_histogram_that_is_unreadable_at_first_is_judged_once_it_is_sound() -> None:
    usual = reranked(1.6)

    def told(engine: EngineSample, canary: bool, index: int) -> EngineSample:
        now = usual(engine, canary, index)
        if index >= 50:
            return now
        assert isinstance(now.custom["rerank"], Bins)
        odd = Bins((1.0, 2.0), (3.0, 1.0))
        return replace(engine, custom={"rerank": odd})

    assert guilty(watch(ticks(told), RERANK)) == {"rerank"}


def test_eight_signals_of_which_nothing_is_known_delay_a_failure_by_little() -> None:
    # Of the eight nothing is known, which must not keep a failure from being one.
    many = Settings(custom=tuple(CustomSignal(f"own{i}", 0.02) for i in range(8)))
    rng = default_rng(1)
    base, ours = split(rng, arrivals(rng, 0, END, 4.0), STAGES)
    slow = Traffic(work(rng, base), work(rng, ours).slowed(1.6), STAGES, END)

    alone, beside = watch(slow.ticks()), watch(slow.ticks(), many)

    first, later = when(alone, Verdict.FAIL), when(beside, Verdict.FAIL)
    assert first is not None
    assert later is not None
    assert first <= later <= first + 120
