"""The analysis against pairs of real vLLM servers, whose right verdict is known.

The recordings are minutes long; the analysis is told that time was compressed. They show that it
neither blames a cache that is as good or better nor overlooks one that is three to ten times
slower; how often it errs is measured on the simulated fleet (`bench/decisions`).
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Analysis, Settings
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Tick
from tests import recordings
from tests.recordings import RECORDINGS, ROUTER_BOUNDS, Pair, pair, solo

COMPRESSION = 12
"""Five recorded seconds stand for a minute: four minutes for the better part of an hour."""

SOLO_COMPRESSION = 30
"""The solo recordings are less than a minute long and stand for half an hour."""

ALIKE = (
    "auto-auto-calm",
    "auto-auto-even",
    "auto-auto-ladder",
    "auto-auto-saturated",
    "auto-auto-saturated-2",
)
BETTER = ("auto-fp8-calm", "auto-fp8-even", "auto-fp8-ladder", "auto-fp8-saturated")
WORSE = ("auto-int8-calm", "auto-int8-ladder", "auto-int8-light", "auto-int8-saturated")
PAIRS = (*ALIKE, *BETTER, *WORSE)

SIGHTS = pytest.mark.parametrize("routers", [False, True], ids=["engines", "routers"])
ROLES = pytest.mark.parametrize("swap", [False, True], ids=["as recorded", "swapped"])


def verdicts(ticks: Iterable[Tick], compression: float = COMPRESSION) -> set[Verdict]:
    analysis = Analysis(Settings(time_scale=compression))
    return {analysis.observe(tick).verdict for tick in ticks}


# --- What the analysis says -------------------------------------------------------------------


@SIGHTS
@ROLES
@pytest.mark.parametrize("name", ALIKE)
def test_an_identical_canary_is_never_rolled_back(name: str, swap: bool, routers: bool) -> None:
    assert Verdict.FAIL not in verdicts(pair(name).ticks(routers=routers, swap=swap))


@SIGHTS
@pytest.mark.parametrize("name", BETTER)
def test_an_fp8_canary_is_never_rolled_back(name: str, routers: bool) -> None:
    assert Verdict.FAIL not in verdicts(pair(name).ticks(routers=routers))


@SIGHTS
@pytest.mark.parametrize("name", ["auto-fp8-calm", "auto-fp8-even", "auto-fp8-ladder"])
def test_a_canary_without_fp8_is_not_rolled_back_where_its_cache_suffices(
    name: str, routers: bool
) -> None:
    # Where it does not suffice it truly is the worse one, and whichever verdict is fair.
    assert Verdict.FAIL not in verdicts(pair(name).ticks(routers=routers, swap=True))


@SIGHTS
@pytest.mark.parametrize("name", ["auto-int8-calm", "auto-int8-ladder", "auto-int8-saturated"])
def test_an_int8_canary_that_cannot_keep_up_is_rolled_back(name: str, routers: bool) -> None:
    said = verdicts(pair(name).ticks(routers=routers))

    assert Verdict.FAIL in said
    assert Verdict.PASS not in said


def test_an_int8_canary_that_keeps_up_but_is_slow_is_rolled_back_by_what_routers_see() -> None:
    said = verdicts(pair("auto-int8-light").ticks(routers=True))

    assert Verdict.FAIL in said
    assert Verdict.PASS not in said


def test_an_int8_canary_that_keeps_up_but_is_slow_does_not_pass_without_routers_either() -> None:
    # A hundred requests in the engines' wide buckets are too few to be sure of it.
    assert Verdict.PASS not in verdicts(pair("auto-int8-light").ticks())


@SIGHTS
@pytest.mark.parametrize("name", WORSE)
def test_a_canary_that_is_much_better_than_int8_is_never_rolled_back(
    name: str, routers: bool
) -> None:
    assert Verdict.FAIL not in verdicts(pair(name).ticks(routers=routers, swap=True))


@pytest.mark.parametrize(
    ("baseline", "canary"),
    [
        ("auto", "auto"),
        ("auto", "fp8"),
        ("int8_per_token_head", "auto"),
        ("int8_per_token_head", "fp8"),
    ],
)
def test_of_engines_recorded_alone_none_that_is_alike_or_better_is_rolled_back(
    baseline: str, canary: str
) -> None:
    said = verdicts(solo(baseline, canary).ticks(), SOLO_COMPRESSION)

    assert Verdict.FAIL not in said


@pytest.mark.parametrize("baseline", ["auto", "fp8"])
def test_of_engines_recorded_alone_int8_is_rolled_back(baseline: str) -> None:
    said = verdicts(solo(baseline, "int8_per_token_head").ticks(), SOLO_COMPRESSION)

    assert Verdict.FAIL in said
    assert Verdict.PASS not in said


# --- What it is fed ---------------------------------------------------------------------------


def engine(arm: Arm) -> EngineSample:
    return arm.engines["engine-0"]


def router(arm: Arm) -> RouterSample:
    return arm.routers["router-0"]


def bins(histogram: Bins | None) -> Bins:
    assert histogram is not None
    return histogram


def number(value: float | None) -> float:
    assert value is not None
    return value


def rises(values: Sequence[float | None]) -> bool:
    numbers = [number(value) for value in values]
    return all(one <= other for one, other in pairwise(numbers))


def test_every_recording_is_told_of_and_replayed() -> None:
    files = {file.name for file in RECORDINGS.glob("*.gz")}
    readme = (RECORDINGS / "README.md").read_text()

    for name in PAIRS:
        assert f"| {name} |" in readme
    assert files == {
        f"{name}.{kind}.gz"
        for name in PAIRS
        for kind in ("baseline.metrics", "canary.metrics", "requests.json")
    } | {f"solo-{dtype}.metrics.gz" for dtype in ("auto", "fp8", "int8_per_token_head")}
    assert sum(file.stat().st_size for file in RECORDINGS.glob("*.gz")) < 1_500_000


@pytest.mark.parametrize("name", PAIRS)
def test_the_engines_of_a_pair_are_told_whole_and_in_order(name: str) -> None:
    ticks = list(pair(name).ticks())

    assert len(ticks) > 60
    assert rises([tick.at for tick in ticks])
    assert max(after.at - before.at for before, after in pairwise(ticks)) < 3
    for role in ("baseline", "canary"):
        arms: list[Arm] = [getattr(tick, role) for tick in ticks]
        assert {frozenset(arm.routers) for arm in arms} == {frozenset()}
        assert len({engine(arm).process_started for arm in arms}) == 1
        for counter in ("finished", "preemptions", "prompt_tokens", "generated_tokens"):
            assert rises([getattr(engine(arm), counter) for arm in arms])
        assert {number(engine(arm).running) for arm in arms} != {0.0}
        for histogram in ("e2e", "queue", "prefill", "ttft", "itl"):
            told = [bins(getattr(engine(arm), histogram)) for arm in arms]
            assert len({one.bounds for one in told}) == 1
            assert told[0].bounds[-1] == math.inf
            assert all(rises(one.counts) for one in told)
            assert rises([one.counts[-1] for one in told])
            assert rises([one.sum for one in told])


@pytest.mark.parametrize("name", PAIRS)
def test_a_router_that_was_made_up_agrees_with_the_engine(name: str) -> None:
    recorded = pair(name)
    ticks = list(recorded.ticks(routers=True, drain=True))
    for role in ("baseline", "canary"):
        first, last = (getattr(ticks[i], role) for i in (0, -1))
        sent = [one for one in recorded.requests if one.arm == role]
        ended = [one for one in sent if one.end <= ticks[-1].at]
        answered = sum(1 for one in ended if one.error is None)

        assert router(first).started == router(first).active == 0
        assert router(last).started == sum(1 for one in sent if one.at <= ticks[-1].at)
        assert router(last).failed == router(last).unanswered == len(ended) - answered
        assert bins(router(last).latency).counts[-1] == answered
        assert bins(router(last).latency).bounds == ROUTER_BOUNDS
        # The engine counts one that was given up as finished too, only for another reason.
        finished = number(engine(last).finished) - number(engine(first).finished)
        assert answered - 1 <= finished <= len(ended) + 1
        for tick in ticks:
            seen = router(getattr(tick, role))
            over = bins(seen.latency).counts[-1] + number(seen.unanswered)
            assert number(seen.started) == over + number(seen.active)


def test_the_steps_of_a_ladder_are_told_as_they_were_taken() -> None:
    ticks = list(pair("auto-fp8-ladder").ticks())

    assert {(tick.step, tick.weight, tick.next_weight) for tick in ticks} == {
        (0, 0.0, 10.0),
        (1, 10.0, 25.0),
        (2, 25.0, 50.0),
        (3, 50.0, None),
    }
    assert rises([tick.step for tick in ticks])


def test_swapped_roles_exchange_the_arms_and_the_weight() -> None:
    recorded = pair("auto-int8-calm")
    for tick, other in zip(
        recorded.ticks(routers=True), recorded.ticks(routers=True, swap=True), strict=True
    ):
        assert engine(tick.baseline) == engine(other.canary)
        assert engine(tick.canary) == engine(other.baseline)
        assert tick.step == other.step
        assert tick.step == 0 or tick.weight == 100 - other.weight
        assert abs(tick.at - other.at) < 0.1


def test_the_load_ends_before_the_engines_are_empty() -> None:
    recorded = pair("auto-int8-saturated")
    loaded, drained = list(recorded.ticks()), list(recorded.ticks(drain=True))

    assert drained[: len(loaded)] == loaded
    assert loaded[-1].at <= recorded.end < drained[len(loaded)].at


def test_engines_recorded_alone_are_laid_over_one_another() -> None:
    ticks = list(solo("auto", "int8_per_token_head").ticks())

    assert [tick.step for tick in ticks[:2]] == [0, 1]
    assert {tick.weight for tick in ticks[1:]} == {50.0}
    # Both were sent the same requests, and by the same second about as much was asked of them.
    assert engine(ticks[0].baseline).finished == engine(ticks[0].canary).finished
    assert number(engine(ticks[-1].canary).waiting) > number(engine(ticks[-1].baseline).waiting)


def test_a_scrape_that_failed_is_an_engine_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gzip.open(tmp_path / "solo-odd.metrics.gz", "wt") as file:
        file.write(
            "# SCRAPE 10.000\n"
            "# TYPE vllm:request_success counter\n"
            'vllm:request_success_total{finished_reason="stop"} 2.0\n'
            'vllm:request_success_total{finished_reason="length"} 3.0\n'
            "# SCRAPE 12.000 ERROR TimeoutError()\n"
        )
    monkeypatch.setattr(recordings, "RECORDINGS", tmp_path)

    told: Pair = solo("odd", "odd")

    seen, missed = told.ticks()
    assert engine(seen.baseline) == EngineSample(finished=5.0)
    assert missed.canary.engines == {}
    assert missed.canary.replicas == 1
