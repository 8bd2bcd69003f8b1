"""What the analysis says of canaries whose right verdict is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.random import default_rng

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Report, Settings
from kvquant.core.analysis.samples import Tick
from tests.fakes.arms import (
    EPOCH,
    Array,
    Stage,
    Traffic,
    Work,
    arrivals,
    guilty,
    split,
    watch,
    when,
    work,
)

SEEDS = pytest.mark.parametrize("seed", [1, 2])

BEGIN = 600.0
"""When the canary gets traffic; before that, the baseline serves alone."""

HALF = (Stage(0, 0, 0, 50, 1), Stage(BEGIN, 1, 50))


def pair(seed: int, *, end: float = 2400, rate: float = 4.0, pods: int = 1) -> Traffic:
    """Two identical arms of which neither is near its limit."""
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, end, rate), HALF)
    return Traffic(work(rng, base, pods=pods), work(rng, ours, pods=pods), HALF, end)


def never_fails(reports: list[Report]) -> bool:
    assert guilty(reports) == set()
    return when(reports, Verdict.FAIL) is None


def evidence(report: Report, name: str) -> tuple[float, float]:
    """Return a signal's values of both arms."""
    found = next(s for s in report.signals if s.name == name)
    assert found.baseline is not None
    assert found.canary is not None
    return found.baseline, found.canary


# --- Identical arms, and plain harm -----------------------------------------------------------


@SEEDS
def test_an_identical_canary_passes_after_its_shortest_evidence_and_not_before(seed: int) -> None:
    reports = watch(pair(seed).ticks())

    assert never_fails(reports)
    passed = when(reports, Verdict.PASS)
    settings = Settings()
    assert passed is not None
    assert passed >= BEGIN + settings.warm_up + settings.min_seconds
    assert passed <= BEGIN + settings.warm_up + settings.min_seconds + 300
    assert reports[-1].verdict is Verdict.PASS
    assert not reports[-1].provisional
    assert reports[-1].load.ratio == pytest.approx(1, abs=0.1)


def test_what_is_reported_is_what_was_there() -> None:
    traffic = pair(3)
    report = watch(traffic.ticks())[-1]

    # All that ended since the first batch of the step began.
    for done, told in (
        (traffic.baseline, report.baseline_requests),
        (traffic.canary, report.canary_requests),
    ):
        ended = done.at + done.seconds
        assert told == ((ended > BEGIN + 60) & (ended <= traffic.end)).sum()
    assert report.seconds == traffic.end - BEGIN - 60
    assert report.canary_p99 is not None
    sound = traffic.canary.seconds[traffic.canary.at > BEGIN + 60]
    assert report.canary_p99 == pytest.approx(float(np.quantile(sound, 0.99)), rel=0.1)
    base, canary = evidence(report, "tokenTime")
    for arm, value in ((traffic.baseline, base), (traffic.canary, canary)):
        assert value == pytest.approx(float(arm.token_time.mean()), rel=0.02)


@SEEDS
@pytest.mark.parametrize(
    ("family", "signals"),
    [
        ("slow", {"latencyP50", "latencyP90", "tokenTime"}),
        # Who gets no answer waits for ever.
        ("failing", {"failures", "latencyP99"}),
        ("thrashing", {"pageFaults"}),
    ],
)
def test_each_kind_of_harm_is_found_by_its_own_signals(
    family: str, signals: set[str], seed: int
) -> None:
    traffic, rng = pair(seed), default_rng(seed)
    done = traffic.canary
    if family == "slow":
        traffic.canary = done.slowed(1.6)
    elif family == "failing":
        traffic.canary = replace(done, failed=rng.random(len(done.at)) < 0.06)
    else:
        traffic.canary = replace(done, preempted=rng.poisson(0.3, len(done.at)).astype(float))

    reports = watch(traffic.ticks())

    failed = when(reports, Verdict.FAIL)
    assert failed is not None
    assert failed <= BEGIN + 900
    assert when(reports, Verdict.PASS) is None
    assert guilty(reports) & signals
    if family != "slow":
        assert guilty(reports) <= signals
    first = next(r for r in reports if r.verdict is Verdict.FAIL)
    assert any(name in first.message for name in signals)


@SEEDS
@pytest.mark.parametrize(("theirs", "passes"), [(0.0, False), (0.012, True)])
def test_a_cache_that_overflows_where_the_baselines_does_not_is_not_promoted_for_being_within(
    theirs: float, passes: bool, seed: int
) -> None:
    traffic, rng = pair(seed, end=7200), default_rng(seed)

    def preempted(work: Work, share: float) -> Work:
        return replace(work, preempted=rng.poisson(share, len(work.at)).astype(float))

    traffic.canary = preempted(traffic.canary, 0.015)
    traffic.baseline = preempted(traffic.baseline, theirs)

    climbing = replace(HALF[1], next_weight=100, next_replicas=1)
    reports = watch(replace(traffic, stages=(HALF[0], climbing)).ticks())
    assert never_fails(reports)
    assert (reports[-1].verdict is Verdict.PASS) is passes
    if not passes:
        assert "its KV cache is the fuller one" in reports[-1].message
    # In the last step there is no baseline of like load that could have overflowed.
    assert watch(traffic.ticks())[-1].verdict is Verdict.PASS


@pytest.mark.parametrize("harm", [0.8, 0.5])
def test_a_canary_that_is_faster_passes(harm: float) -> None:
    traffic = pair(1)
    traffic.canary = traffic.canary.slowed(harm)

    reports = watch(traffic.ticks())

    assert never_fails(reports)
    assert when(reports, Verdict.PASS) is not None


def test_what_is_tolerated_is_what_was_asked_for() -> None:
    traffic = pair(1)
    traffic.canary = traffic.canary.slowed(1.6)
    lenient = Settings(slowdown=1.5, first_token_slowdown=1.5, token_slowdown=1.5)

    assert never_fails(watch(traffic.ticks(), lenient))


def test_nothing_of_before_a_change_of_the_weight_counts_for_the_step() -> None:
    # The weight changes in the midst of a batch.
    stages = (Stage(0, 0, 0, 50, 1), Stage(615, 1, 50), Stage(1020, 2, 50))
    rng = default_rng(1)
    base, ours = split(rng, arrivals(rng, 0, 1500, 4), stages)
    traffic = Traffic(work(rng, base), work(rng, ours), stages, 1500)
    reports = {r.at - EPOCH: r for r in watch(traffic.ticks())}

    ended = traffic.canary.at + traffic.canary.seconds
    for begin, end in ((615 + 60, 1005), (1020 + 60, 1500)):
        assert reports[end].canary_requests == ((ended > begin) & (ended <= end)).sum()
        assert reports[end].seconds == end - begin


def test_harm_that_is_likely_is_believed_after_a_long_wait_only() -> None:
    traffic = pair(1, end=2400, rate=1.0)
    traffic.canary = traffic.canary.slowed(1.3)
    patient, endless = (
        watch(traffic.ticks(), Settings(patience=seconds)) for seconds in (600.0, math.inf)
    )

    early, late = when(patient, Verdict.FAIL), when(endless, Verdict.FAIL)
    assert early is not None
    assert early >= BEGIN + 60 + 600
    assert late is None or late > early
    first = next(r for r in patient if r.verdict is Verdict.FAIL)
    assert "likely, though not certain" in first.message


# --- Noise that is not independent ------------------------------------------------------------


def wandering(rng: np.random.Generator, at: Array) -> Work:
    """Requests of an engine that is now faster, now slower, for half a minute each time."""
    length = int(at.max(initial=0)) + 2
    kept = math.exp(-1 / 30)
    shocks = rng.normal(0, 0.4 * math.sqrt(1 - kept * kept), length)
    log = np.zeros(length)
    for i in range(1, length):
        log[i] = kept * log[i - 1] + shocks[i]
    return work(rng, at).slowed(np.exp(log[at.astype(int)]))


def test_identical_engines_that_wander_each_for_itself_are_seldom_rolled_back() -> None:
    runs, failed = 12, 0
    for seed in range(runs):
        rng = default_rng(seed)
        base, ours = split(rng, arrivals(rng, 0, 2100, 4), HALF)
        traffic = Traffic(wandering(rng, base), wandering(rng, ours), HALF, 2100)
        failed += when(watch(traffic.ticks()), Verdict.FAIL) is not None

    # The budget is one in twenty. Were requests taken for independent, it would be five.
    assert failed <= 2


def test_identical_engines_in_bursts_are_seldom_rolled_back() -> None:
    runs, failed = 8, 0
    for seed in range(runs):
        rng = default_rng(seed)
        bursts = [arrivals(rng, at, at + 20, 12) for at in arrivals(rng, 0, 2080, 1 / 100)]
        at = np.sort(np.concatenate((arrivals(rng, 0, 2100, 6), *bursts)))
        base, ours = split(rng, at, HALF)
        traffic = Traffic(work(rng, base).queued(14), work(rng, ours).queued(14), HALF, 2100)
        failed += when(watch(traffic.ticks()), Verdict.FAIL) is not None

    assert failed <= 1


def test_both_arms_slowing_down_together_is_nobodys_fault() -> None:
    # The canary gets most of its requests late, when both are slow: pooled, it would look guilty.
    stages = (Stage(0, 0, 0, 10, 1), Stage(BEGIN, 1, 10, 50, 1), Stage(1800, 2, 50))
    rng = default_rng(1)
    base, ours = split(rng, arrivals(rng, 0, 3000, 6), stages)

    def slower(done: Work) -> Work:
        return done.slowed(1 + 3 * np.clip((done.at - 1200) / 1200, 0, 1))

    traffic = Traffic(slower(work(rng, base)), slower(work(rng, ours)), stages, 3000)
    reports = watch(traffic.ticks())

    assert never_fails(reports)
    assert reports[-1].verdict is Verdict.PASS
    p99 = [r.canary_p99 for r in reports if r.canary_p99 is not None]
    assert p99[-1] > 2 * p99[0]


# --- Queues -----------------------------------------------------------------------------------


@SEEDS
def test_identical_engines_of_which_one_happens_to_queue_are_not_judged_by_it(seed: int) -> None:
    rng = default_rng(seed)
    base = arrivals(rng, 0, 2400, 1.9)
    # A burst at its begin, which an engine that is offered what it can just serve never gets over.
    ours = np.sort(np.concatenate((arrivals(rng, 600, 2400, 2.05), arrivals(rng, 605, 620, 12))))
    traffic = Traffic(work(rng, base).queued(5), work(rng, ours).queued(5), HALF, 2400)

    reports = watch(traffic.ticks())

    late = [
        float(np.median(arm.seconds[arm.at > 900])) for arm in (traffic.baseline, traffic.canary)
    ]
    assert late[1] > 5 * late[0]
    assert never_fails(reports)
    assert reports[-1].load.queueing
    assert "backlog" in reports[-1].message


@SEEDS
def test_a_canary_that_queues_at_a_load_that_the_baseline_carries_is_worse(seed: int) -> None:
    # Each request is served as fast as the baseline's; only fewer at once.
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, 2400, 4), HALF)
    traffic = Traffic(work(rng, base).queued(16), work(rng, ours).queued(4), HALF, 2400)

    reports = watch(traffic.ticks())

    assert when(reports, Verdict.FAIL) is not None
    assert when(reports, Verdict.PASS) is None
    assert guilty(reports) == {"delivered"}
    base_value, canary_value = evidence(reports[-1], "delivered")
    assert canary_value < 0.92 * base_value


# --- Requests that have not ended -------------------------------------------------------------


@SEEDS
def test_requests_that_have_not_ended_are_told_by_their_age(seed: int) -> None:
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, 900, 4), HALF)
    baseline = work(rng, base, seconds=60, prompt=1)
    # Whatever they would take: none of them has ended before the verdict.
    canary = work(rng, ours, seconds=60, prompt=1).slowed(5)
    canary = replace(canary, prefill=canary.prefill + 200)
    traffic = Traffic(baseline, canary, HALF, 790)
    first_evidence = BEGIN + 60 + 30

    reports = watch(traffic.ticks())

    assert float((canary.at + canary.seconds).min()) > 790
    failed = when(reports, Verdict.FAIL)
    assert failed is not None
    assert failed <= first_evidence + 120
    assert "latencyP50" in guilty(reports)


def test_an_engine_that_answers_nobody_any_more_is_found() -> None:
    traffic = pair(1)
    done = traffic.canary
    traffic.canary = replace(done, prefill=np.where(done.at >= 1000, 1e6, done.prefill))

    failed = when(watch(traffic.ticks()), Verdict.FAIL)

    assert failed is not None
    assert 1000 < failed <= 1000 + 300


def test_requests_whose_clients_gave_up_are_told_by_what_is_missing() -> None:
    # They are started, never end, and are in flight no longer: nothing counts them but that.
    traffic = pair(1, end=1500)
    done = traffic.canary
    given_up = (done.at >= 800) & (np.arange(len(done.at)) % 3 == 0)
    traffic.canary = replace(done, prefill=np.where(given_up, 1e6, done.prefill))

    def without_them(tick: Tick) -> Tick:
        router = tick.canary.routers["router-0"]
        assert router.active is not None
        gone = float((done.at[given_up] < tick.at - EPOCH - 1).sum())
        routers = {"router-0": replace(router, active=router.active - gone)}
        return replace(tick, canary=replace(tick.canary, routers=routers))

    failed = when(watch(map(without_them, traffic.ticks())), Verdict.FAIL)

    assert failed is not None
    assert 800 < failed <= 800 + 400


# --- Load per pod -----------------------------------------------------------------------------


def loaded(
    seed: int,
    *,
    rate: float,
    weight: float,
    pods: tuple[int, int],
    worse_when_loaded: float = 1.0,
    alone_first: bool = True,
) -> Traffic:
    """Engines that take the longer, the more requests a pod gets."""
    stages = [Stage(0, 0, 0, weight, pods[1]), Stage(BEGIN, 1, weight)]
    if not alone_first:
        stages = [Stage(0, 1, weight)]
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, 2100, rate), stages)
    alone = (base < BEGIN) & alone_first
    load = np.where(alone, rate, rate * (1 - weight / 100)) / pods[0]
    heavy = 1 + 0.25 * rate * weight / 100 / pods[1]
    return Traffic(
        work(rng, base, pods=pods[0]).slowed(1 + 0.25 * load),
        work(rng, ours, pods=pods[1]).slowed(heavy * worse_when_loaded),
        stages,
        2100,
    )


@SEEDS
def test_a_pass_with_less_load_per_pod_than_the_baselines_is_provisional(seed: int) -> None:
    reports = watch(loaded(seed, rate=4, weight=20, pods=(2, 2)).ticks())

    assert reports[-1].verdict is Verdict.PASS
    assert reports[-1].provisional
    assert reports[-1].load.ratio == pytest.approx(0.25, abs=0.05)
    assert "Provisional" in reports[-1].message


@SEEDS
@pytest.mark.parametrize("alone_first", [True, False], ids=["with a past", "without"])
@pytest.mark.parametrize("weight", [40, 60])
def test_a_canary_with_more_load_per_pod_is_never_guilty_for_it(
    seed: int, weight: float, alone_first: bool
) -> None:
    traffic = loaded(seed, rate=6, weight=weight, pods=(3, 1), alone_first=alone_first)
    reports = watch(traffic.ticks())

    assert reports[-1].load.ratio is not None
    assert reports[-1].load.ratio > 1.6
    assert never_fails(reports)


@SEEDS
def test_a_canary_that_is_bad_at_more_load_is_compared_with_the_baselines_past(seed: int) -> None:
    traffic = loaded(seed, rate=6, weight=40, pods=(3, 1), worse_when_loaded=2.2)

    reports = watch(traffic.ticks())

    assert when(reports, Verdict.FAIL) is not None
    assert when(reports, Verdict.PASS) is None


def towards(seed: int, replicas: int) -> Traffic:
    """A step that is in order, before one that doubles the canary's traffic."""
    stages = (Stage(0, 0, 0, 33, 1), Stage(BEGIN, 1, 33, 66, replicas))
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, 2100, 6), stages)
    return Traffic(work(rng, base, pods=3), work(rng, ours, pods=1), stages, 2100)


def test_a_next_step_of_too_few_replicas_is_refused_with_the_number_that_would_do() -> None:
    refused = watch(towards(1, 1).ticks())

    assert when(refused, Verdict.PASS) is None
    assert never_fails(refused)
    assert refused[-1].load.replicas_needed == 2
    assert "needs 2 canary pods instead of 1" in refused[-1].message
    assert refused[-1].load.next == pytest.approx(6 * 0.66, rel=0.1)

    would_do = watch(towards(1, 2).ticks())
    assert would_do[-1].verdict is Verdict.PASS
    assert would_do[-1].load.replicas_needed is None


# --- The last step ----------------------------------------------------------------------------


def to_the_end(seed: int, slow_at_the_end: float, *, past: bool = True) -> list[Report]:
    """A ladder to 95 %, and an engine whose harm only shows there."""
    stages = (Stage(0, 0, 0, 50, 2), Stage(600, 1, 50, 95, 2), Stage(1500, 2, 95))
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, 2700, 6), stages)
    load = np.select([base < 600, base < 1500], [3.0, 1.5], 0.15)
    heavy = np.where(ours < 1500, 1 + 0.15 * 1.5, (1 + 0.15 * 2.85) * slow_at_the_end)
    traffic = Traffic(
        work(rng, base, pods=2).slowed(1 + 0.15 * load),
        work(rng, ours, pods=2).slowed(heavy),
        stages,
        2700,
    )
    return watch(tick for tick in traffic.ticks() if past or tick.step == 2)


@SEEDS
def test_harm_at_full_weight_is_found_against_the_baselines_past(seed: int) -> None:
    reports = to_the_end(seed, 2.5)

    assert {r.verdict for r in reports if r.at - EPOCH < 1500} == {
        Verdict.INCONCLUSIVE,
        Verdict.PASS,
    }
    failed = when(reports, Verdict.FAIL)
    assert failed is not None
    assert 1500 < failed <= 1500 + 600


def test_without_that_past_nobody_would_be_blamed_nor_pass() -> None:
    # Five per cent of the traffic on as many pods are no control of the rest.
    for harm in (1.0, 2.5):
        reports = to_the_end(1, harm, past=False)

        assert {r.verdict for r in reports} == {Verdict.INCONCLUSIVE}


@SEEDS
def test_a_sound_canary_carries_the_full_weight_though_the_rest_of_the_baseline_is_faster(
    seed: int,
) -> None:
    reports = to_the_end(seed, 1.0)

    assert never_fails(reports)
    assert reports[-1].verdict is Verdict.PASS
    # By the look of it, it is slower than what is left of the baseline.
    base, canary = evidence(reports[-1], "tokenTime")
    assert canary == pytest.approx(base, rel=0.5)


# --- Some requests only -----------------------------------------------------------------------


@SEEDS
def test_a_regression_on_long_prompts_only_is_found_by_the_time_of_the_prefill(seed: int) -> None:
    traffic = pair(seed)
    done = traffic.canary
    traffic.canary = replace(
        done, prefill=np.where(done.prefill > 1, 3 * done.prefill, done.prefill)
    )

    reports = watch(traffic.ticks())

    assert when(reports, Verdict.FAIL) is not None
    assert when(reports, Verdict.PASS) is None
    assert guilty(reports) & {"firstTokenP90", "firstTokenP99"}
    assert "latencyP50" not in guilty(reports)


# --- Deaths -----------------------------------------------------------------------------------


def dying(seed: int, *at: float, told: bool = True, seen: bool = True) -> Traffic:
    """A canary whose engine dies, with all that it was working on, and is away for 20 seconds."""
    traffic = pair(seed, end=2700)
    done = traffic.canary
    lost = np.zeros(len(done.at), dtype=bool)
    prefill = done.prefill.copy()
    for death in at:
        cut = (done.at < death) & (done.at + done.seconds >= death)
        refused = (done.at >= death) & (done.at < death + 20)
        prefill[cut], prefill[refused] = death - done.at[cut], 1e-3
        lost |= cut | refused
    traffic.canary = replace(
        done, prefill=prefill, tokens=np.where(lost, 0, done.tokens), failed=lost
    )
    traffic.told_deaths = at if told else None
    traffic.restarts = at if seen else ()
    return traffic


SOURCES = pytest.mark.parametrize(
    ("told", "seen"),
    [(True, True), (True, False), (False, True)],
    ids=["told and seen", "told", "seen"],
)


@SOURCES
def test_one_crash_is_bad_luck(told: bool, seen: bool) -> None:
    # So late in a batch that what it costs falls into the next one.
    reports = watch(dying(1, 1018.0, told=told, seen=seen).ticks())

    assert never_fails(reports)
    assert reports[-1].verdict is Verdict.PASS
    deaths = next(s for s in reports[-1].signals if s.name == "deaths")
    assert deaths.canary == 1
    assert "bad luck" in deaths.message
    # What it cost is not held against the canary a second time.
    assert evidence(reports[-1], "failures") == (0, 0)


@SOURCES
def test_a_crash_every_ten_minutes_is_none(told: bool, seen: bool) -> None:
    reports = watch(dying(1, 700.0, 1300.0, 1900.0, told=told, seen=seen).ticks())

    failed = when(reports, Verdict.FAIL)
    assert failed is not None
    assert failed <= 1900 + 60
    assert guilty(reports) == {"deaths"}


def test_a_number_of_deaths_that_was_ruled_out_needs_no_statistics() -> None:
    none_tolerated = watch(dying(1, 1000.0).ticks(), Settings(most_deaths=0))
    one_tolerated = watch(dying(1, 1000.0).ticks(), Settings(most_deaths=1))

    failed = when(none_tolerated, Verdict.FAIL)
    assert failed is not None
    assert 1000 <= failed <= 1060
    assert never_fails(one_tolerated)


def test_time_that_was_compressed_counts_in_full_for_deaths() -> None:
    ticks = list(dying(1, 700.0, 1300.0, 1900.0, seen=False).ticks())
    shorter = [replace(tick, at=EPOCH + (tick.at - EPOCH) / 10) for tick in ticks]

    (one,) = (s for s in watch(ticks)[-1].signals if s.name == "deaths")
    (other,) = (
        s for s in watch(shorter, Settings(time_scale=10))[-1].signals if s.name == "deaths"
    )
    assert "pod-hours" in one.message
    assert one == other


# --- Warm-up ----------------------------------------------------------------------------------


def cold(seed: int) -> Traffic:
    """A canary that is slow for the better part of a minute after each change of the weight."""
    stages = (Stage(0, 0, 0, 10, 1), Stage(600, 1, 10, 50, 1), Stage(1500, 2, 50))
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, 2400, 6), stages)
    fresh = ((ours - 600) % 900 < 50) & (ours < 2000)
    return Traffic(work(rng, base), work(rng, ours).slowed(np.where(fresh, 3.0, 1.0)), stages, 2400)


@SEEDS
def test_the_minute_after_a_change_of_the_weight_counts_for_nothing(seed: int) -> None:
    reports = watch(cold(seed).ticks())

    assert never_fails(reports)
    assert reports[-1].verdict is Verdict.PASS


def test_it_would_count_without_a_warm_up() -> None:
    assert when(watch(cold(1).ticks(), Settings(warm_up=0)), Verdict.FAIL) is not None


# --- Low traffic ------------------------------------------------------------------------------


@SEEDS
def test_low_traffic_is_told_how_long_it_will_take(seed: int) -> None:
    reports = watch(pair(seed, end=4200, rate=0.1).ticks())

    assert never_fails(reports)
    told = [r for r in reports if r.eta_seconds is not None and r.at - EPOCH > 900]
    assert told
    for report in told:
        assert report.verdict is Verdict.INCONCLUSIVE
        assert report.eta_seconds is not None
        assert report.eta_seconds > 0
        assert "to go at the present rate" in report.message
    early = next(r for r in told if (r.canary_requests or 0) < 50)
    assert f"{int(early.canary_requests or 0)} of 100 canary requests" in early.message
    # A twentieth of a request per second: a hundred take two thousand seconds, at least.
    missing = 100 - (early.canary_requests or 0)
    assert (early.eta_seconds or 0) > missing / 0.1


def test_a_handful_of_requests_an_hour_is_evidence_in_the_end() -> None:
    report = watch(pair(1, end=4200, rate=0.004).ticks())[-1]

    assert 0 < (report.canary_requests or 0) < 20
    assert report.seconds >= 2900


def test_no_traffic_at_all_is_waited_for_without_a_promise() -> None:
    traffic = pair(1)
    traffic.canary = traffic.canary.only(traffic.canary.at > 1e9)

    reports = watch(traffic.ticks())

    assert {r.verdict for r in reports} == {Verdict.INCONCLUSIVE}
    assert reports[-1].eta_seconds is None
    assert "0 of 100 canary requests" in reports[-1].message
