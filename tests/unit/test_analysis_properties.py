"""What holds for every evidence, and how often identical arms are told apart by mistake."""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api.v1alpha1 import AnalysisSettings, Verdict
from kvquant.core.analysis import Replicas, Restarts, judge
from kvquant.core.analysis.intervals import Z, least_excess, rate, share
from kvquant.core.evidence import ArmSample, Evidence, Histogram
from tests.fakes.metrics import BOUNDS, arm

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
CALM = Restarts(baseline=0, canary=0)
SETTINGS = AnalysisSettings(min_requests=50)
PODS = Replicas(baseline=1, canary=1)
HARM = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL)

garbage = st.sampled_from([None, math.nan, math.inf, -math.inf, -1.0, 0.0])
histograms = st.none() | st.builds(
    Histogram,
    st.lists(st.floats(), max_size=4).map(tuple),
    st.lists(st.floats(), max_size=4).map(tuple),
)
empty_arms = st.builds(
    ArmSample,
    completed=garbage,
    errors_5xx=garbage,
    timeouts=garbage,
    resets=garbage,
    active=garbage,
    latency=histograms,
    preemptions=garbage,
    finished=garbage,
)


@st.composite
def arms(draw: st.DrawFn, most: int = 3000) -> ArmSample:
    requests = draw(st.integers(0, most))
    timeouts = draw(st.integers(0, requests))
    resets = draw(st.integers(0, requests - timeouts))
    completed = requests - timeouts - resets
    return arm(
        requests,
        errors=draw(st.integers(0, completed)),
        timeouts=timeouts,
        resets=resets,
        slow=draw(st.integers(0, completed)),
        preemptions=draw(st.integers(0, 5000)),
    )


def verdict(baseline: ArmSample, canary: ArmSample) -> Verdict:
    return judge(SETTINGS, Evidence(AT, baseline, canary), CALM, PODS, AT).verdict


@given(empty_arms, empty_arms | arms())
def test_an_arm_without_samples_neither_passes_nor_fails(one: ArmSample, other: ArmSample) -> None:
    for pair in ((one, other), (other, one)):
        assert verdict(*pair) in (Verdict.INCONCLUSIVE, Verdict.ERROR)


@given(arms(), st.sampled_from([f.name for f in fields(ArmSample)]), garbage, st.booleans())
def test_garbage_never_turns_into_a_pass_that_the_rest_would_not_give(
    sample: ArmSample, field: str, value: float | None, canary_is_spoiled: bool
) -> None:
    if field in ("active", "healthy", "seconds"):
        return  # Judged by no signal: the gates look at them.
    change: dict[str, Any] = {field: None if field == "latency" else value}
    spoiled = replace(sample, **change)
    healthy = arm(1000)
    pair = (healthy, spoiled) if canary_is_spoiled else (spoiled, healthy)
    if value != 0.0 or field == "latency":
        assert verdict(*pair) is not Verdict.PASS


@given(arms(), arms(), st.data())
def test_more_harm_never_makes_the_verdict_milder(
    baseline: ArmSample, canary: ArmSample, data: st.DataObject
) -> None:
    assert canary.completed is not None
    assert canary.latency is not None
    assert canary.errors_5xx is not None
    assert canary.preemptions is not None
    kind = data.draw(st.sampled_from(["errors", "slow", "preemptions"]))
    if kind == "errors":
        more = data.draw(st.integers(0, int(canary.completed - canary.errors_5xx)))
        worse = replace(canary, errors_5xx=canary.errors_5xx + more)
    elif kind == "slow":
        top = canary.latency.counts[-1]
        fewer = data.draw(st.floats(0, 1))
        counts = [fewer * count for count in canary.latency.counts[:-1]]
        worse = replace(canary, latency=Histogram(BOUNDS, (*counts, top)))
    else:
        worse = replace(canary, preemptions=canary.preemptions + data.draw(st.integers(0, 5000)))
    assert HARM.index(verdict(baseline, worse)) >= HARM.index(verdict(baseline, canary))


@given(arms(), arms())
def test_a_pass_needs_the_minimum_of_requests_in_both_arms(
    baseline: ArmSample, canary: ArmSample
) -> None:
    if verdict(baseline, canary) is Verdict.PASS:
        for sample in (baseline, canary):
            assert sample.completed is not None
            assert sample.timeouts is not None
            assert sample.resets is not None
            assert sample.completed + sample.timeouts + sample.resets >= 50


@given(arms())
def test_an_arm_never_fails_against_itself(sample: ArmSample) -> None:
    assert verdict(sample, sample) is not Verdict.FAIL


@given(arms(), arms(), st.integers(1, 5))
def test_restarts_fail_whatever_else_was_measured(
    baseline: ArmSample, canary: ArmSample, deaths: int
) -> None:
    for evidence in (None, Evidence(AT, baseline, canary), Evidence(AT, baseline, canary, ("x",))):
        report = judge(SETTINGS, evidence, Restarts(0, deaths), PODS, AT)
        assert report.verdict is Verdict.FAIL


@given(st.integers(0, 2000), st.integers(1, 2000))
def test_limits_enclose_the_estimate(hits: int, trials: int) -> None:
    for one in (share(min(hits, trials), trials, 4), rate(hits, trials, 4)):
        assert 0 <= one.lower <= one.value <= one.upper


def test_the_difference_of_two_shares_has_its_published_limit() -> None:
    # Newcombe 1998, example (a), method 10: 56 of 70 against 48 of 80 has the lower 95 % limit
    # 0.0524. Counts are scaled so that our Z stands for the 1.96 of the paper.
    p, n = 0.8, 70.0
    scale = (Z / 1.959964) ** 2
    one = share(p * n * scale, n * scale)
    other = share(0.6 * 80 * scale, 80 * scale)
    assert least_excess(one, other) == pytest.approx(0.0524, abs=1e-4)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_rate_limits_are_where_the_score_test_is_just_significant(events: int, n: int) -> None:
    one = rate(events, n)
    for limit in (one.lower * n, one.upper * n):
        assert (events - limit) ** 2 / limit == pytest.approx(Z**2, rel=1e-6)


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_share_limits_are_where_the_score_test_is_just_significant(hits: int, n: int) -> None:
    one = share(min(hits, n), n)
    for limit in (one.lower, one.upper):
        if 0 < limit < 1:
            excess = (one.value - limit) ** 2 * n / (limit * (1 - limit))
            assert excess == pytest.approx(Z**2, rel=1e-6)


def test_identical_arms_are_hardly_ever_told_apart_although_looked_at_all_the_time() -> None:
    """Half an hour at weight 10, looked at every 15 seconds: a failure in at most 1 of 100."""
    dice = random.Random(7)
    failures = sum(_identical_run(dice) for _ in range(150))
    assert failures <= 1


def test_a_canary_with_mostly_slow_requests_is_found_within_a_few_dozen_requests() -> None:
    dice = random.Random(11)
    needed = [_requests_to_failure(dice) for _ in range(20)]
    assert max(needed) <= 150


def _identical_run(dice: random.Random) -> bool:
    baseline, canary = _Counts(), _Counts()
    for _ in range(120):
        baseline.serve(dice, 27, tail=0.005)
        canary.serve(dice, 3, tail=0.005)
        if verdict(baseline.sample(), canary.sample()) is Verdict.FAIL:
            return True
    return False


def _requests_to_failure(dice: random.Random) -> int:
    baseline, canary = _Counts(), _Counts()
    for _ in range(200):
        baseline.serve(dice, 27, tail=0.005)
        canary.serve(dice, 3, tail=0.6)
        if verdict(baseline.sample(), canary.sample()) is Verdict.FAIL:
            return canary.requests
    return 10_000


class _Counts:
    """Requests of one arm, alike but for their luck: slow in bursts, as when queues build up."""

    def __init__(self) -> None:
        self.requests = self.slow = self.errors = self.preemptions = 0

    def serve(self, dice: random.Random, requests: int, tail: float) -> None:
        burst = dice.random() < 0.2
        for _ in range(requests):
            self.requests += 1
            self.slow += dice.random() < tail * (3 if burst else 0.5)
            self.errors += dice.random() < 0.005
            self.preemptions += dice.random() < 0.05 * (3 if burst else 0.5)

    def sample(self) -> ArmSample:
        return arm(self.requests, slow=self.slow, errors=self.errors, preemptions=self.preemptions)
