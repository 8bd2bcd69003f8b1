"""What is missing, late, repeated or absurd: it is never evidence, and nothing is lost by it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Analysis, CustomSignal, Settings
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Share, Tick
from tests.fakes.arms import (
    EPOCH,
    Stage,
    Traffic,
    arrivals,
    guilty,
    split,
    watch,
    when,
    work,
)

BEGIN = 300.0
STAGES = (Stage(0, 0, 0, 25, 1), Stage(BEGIN, 1, 25, 50, 1), Stage(1050, 2, 50))


def rollout(seed: int = 1, *, slow: float = 1.0, end: float = 2100) -> Traffic:
    rng = default_rng(seed)
    base, ours = split(rng, arrivals(rng, 0, end, 6), STAGES)
    return Traffic(work(rng, base), work(rng, ours).slowed(slow), STAGES, end)


SOUND = tuple(rollout().ticks())
SLOW = tuple(rollout(slow=1.8).ticks())
TRACES = pytest.mark.parametrize("ticks", [SOUND, SLOW], ids=["sound", "slow"])


def arms_of(tick: Tick) -> tuple[tuple[str, Arm], tuple[str, Arm]]:
    return ("baseline", tick.baseline), ("canary", tick.canary)


def with_arms(tick: Tick, arms: Mapping[str, Arm]) -> Tick:
    return replace(
        tick,
        baseline=arms.get("baseline", tick.baseline),
        canary=arms.get("canary", tick.canary),
    )


def test_the_two_traces_have_the_verdicts_that_they_are_named_after() -> None:
    assert when(watch(SOUND), Verdict.FAIL) is None
    assert when(watch(SOUND), Verdict.PASS) is not None
    assert when(watch(SLOW), Verdict.FAIL) is not None
    assert when(watch(SLOW), Verdict.PASS) is None


# --- The order of things ----------------------------------------------------------------------


@TRACES
def test_the_same_ticks_give_the_same_reports_to_whoever_begins_anew(
    ticks: Sequence[Tick],
) -> None:
    reports = watch(ticks)

    assert watch(ticks) == reports
    # An operator that was restarted reads all again, at once, and goes on.
    for cut in (7, 33, len(ticks) - 1):
        again = Analysis()
        for tick in ticks[:cut]:
            again.take(tick)
        assert again.report() == reports[cut - 1]
        assert again.observe(ticks[cut]) == reports[cut]


@TRACES
def test_looking_changes_nothing(ticks: Sequence[Tick]) -> None:
    looked, blind = Analysis(), Analysis()
    for tick in ticks:
        looked.observe(tick)
        looked.report()
        blind.take(tick)

    assert looked.report() == blind.report()


def test_without_any_tick_there_is_no_report() -> None:
    with pytest.raises(ValueError, match="nothing"):
        Analysis().report()


@TRACES
def test_ticks_that_are_repeated_or_come_late_are_ignored(ticks: Sequence[Tick]) -> None:
    def disordered() -> Iterator[Tick]:
        for index, tick in enumerate(ticks):
            yield tick
            yield tick
            # Another step, from before: were it taken in, it would end the batch.
            yield replace(ticks[index // 2], step=9, weight=99.0, canary=Arm())

    reports = watch(disordered())

    assert reports[::3] == watch(ticks)


def test_a_report_is_as_of_the_latest_tick() -> None:
    assert [r.at for r in watch(SOUND)] == [tick.at for tick in SOUND]
    assert [r.step for r in watch(SOUND)][-1] == 2


@pytest.mark.parametrize("factor", [10.0, 0.5])
@TRACES
def test_compressed_time_gives_the_same_verdicts_at_the_same_instants(
    ticks: Sequence[Tick], factor: float
) -> None:
    def bins(one: Bins | None) -> Bins | None:
        if one is None:
            return None
        total = None if one.sum is None else one.sum / factor
        return Bins(tuple(bound / factor for bound in one.bounds), one.counts, total)

    def compressed(arm: Arm) -> Arm:
        return replace(
            arm,
            routers={
                name: replace(one, latency=bins(one.latency)) for name, one in arm.routers.items()
            },
            engines={
                name: replace(
                    one,
                    process_started=EPOCH - 1000,
                    e2e=bins(one.e2e),
                    queue=bins(one.queue),
                    prefill=bins(one.prefill),
                    ttft=bins(one.ttft),
                    itl=bins(one.itl),
                )
                for name, one in arm.engines.items()
            },
        )

    shorter = [
        replace(
            tick,
            at=EPOCH + (tick.at - EPOCH) / factor,
            baseline=compressed(tick.baseline),
            canary=compressed(tick.canary),
        )
        for tick in ticks
    ]

    for one, other in zip(watch(ticks), watch(shorter, Settings(time_scale=factor)), strict=True):
        assert one.verdict is other.verdict
        assert other.seconds * factor == pytest.approx(one.seconds)
        for mine, theirs in zip(one.signals, other.signals, strict=True):
            assert (mine.name, mine.verdict) == (theirs.name, theirs.verdict)
            if mine.effect is None:
                assert theirs.effect is None
            else:
                assert theirs.effect == pytest.approx(mine.effect, rel=1e-6, abs=1e-9)


# --- Gaps -------------------------------------------------------------------------------------

Fault = Callable[[list[Tick]], list[Tick]]
GAP = (660.0, 960.0)


def within(tick: Tick) -> bool:
    return GAP[0] <= tick.at - EPOCH < GAP[1]


def no_ticks(ticks: list[Tick]) -> list[Tick]:
    return [tick for tick in ticks if not within(tick)]


def nothing_scraped(ticks: list[Tick]) -> list[Tick]:
    gone = Arm(replicas=1)
    return [replace(t, baseline=gone, canary=gone) if within(t) else t for t in ticks]


def only_the_canary_scraped(ticks: list[Tick]) -> list[Tick]:
    return [replace(t, baseline=Arm()) if within(t) else t for t in ticks]


def only_the_baseline_scraped(ticks: list[Tick]) -> list[Tick]:
    return [replace(t, canary=Arm()) if within(t) else t for t in ticks]


def _unknown(arm: Arm) -> Arm:
    return replace(
        arm,
        routers=dict.fromkeys(arm.routers, RouterSample(math.nan, math.nan, math.nan, math.nan)),
        engines=dict.fromkeys(arm.engines, EngineSample(finished=math.nan, running=math.nan)),
    )


def not_a_number(ticks: list[Tick]) -> list[Tick]:
    return [
        replace(t, baseline=_unknown(t.baseline), canary=_unknown(t.canary)) if within(t) else t
        for t in ticks
    ]


def frozen(ticks: list[Tick]) -> list[Tick]:
    """Prometheus repeats what it knew last, for as long as it looks back."""
    last = next(t for t in ticks if t.at - EPOCH >= GAP[0])
    return [
        replace(t, baseline=last.baseline, canary=last.canary) if within(t) else t for t in ticks
    ]


def canary_frozen(ticks: list[Tick]) -> list[Tick]:
    last = next(t for t in ticks if t.at - EPOCH >= GAP[0])
    return [replace(t, canary=last.canary) if within(t) else t for t in ticks]


def late(ticks: list[Tick]) -> list[Tick]:
    """One scrape in five comes an instant late, each target for itself."""
    rng = default_rng(1)
    shown = [ticks[0]]
    for before, now in pairwise(ticks):
        arms = {}
        for role in ("baseline", "canary"):
            old, new = getattr(before, role), getattr(now, role)
            arms[role] = replace(
                new,
                routers=old.routers if rng.random() < 0.2 else new.routers,
                engines=old.engines if rng.random() < 0.2 else new.engines,
            )
        shown.append(with_arms(now, arms))
    return shown


FAULTS = pytest.mark.parametrize(
    "fault",
    [
        no_ticks,
        nothing_scraped,
        only_the_canary_scraped,
        only_the_baseline_scraped,
        not_a_number,
        frozen,
        canary_frozen,
        late,
    ],
)


@FAULTS
def test_a_sound_canary_is_not_blamed_for_a_gap_and_passes_after_it(fault: Fault) -> None:
    reports = watch(fault(list(SOUND)))

    assert guilty(reports) == set()
    assert reports[-1].verdict is Verdict.PASS


@FAULTS
def test_a_slow_canary_is_found_in_spite_of_a_gap(fault: Fault) -> None:
    reports = watch(fault(list(SLOW)))

    assert when(reports, Verdict.PASS) is None
    assert reports[-1].verdict is Verdict.FAIL


@pytest.mark.parametrize(
    "fault", [no_ticks, nothing_scraped, only_the_canary_scraped, not_a_number]
)
def test_a_gap_from_the_first_batch_on_is_no_evidence(fault: Fault) -> None:
    def longer(ticks: list[Tick]) -> list[Tick]:
        moved = [replace(t, at=t.at + GAP[0] - BEGIN - 60) for t in ticks]
        return [replace(t, at=t.at - GAP[0] + BEGIN + 60) for t in fault(moved)]

    reports = watch(longer(list(SLOW)))

    inside = [r for r in reports if BEGIN + 60 <= r.at - EPOCH < BEGIN + 360]
    assert {r.verdict for r in inside} <= {Verdict.INCONCLUSIVE}
    assert all(not r.canary_requests for r in inside)


@pytest.mark.parametrize(
    "fault", [no_ticks, nothing_scraped, only_the_canary_scraped, only_the_baseline_scraped]
)
def test_the_time_of_a_gap_is_no_evidence(fault: Fault) -> None:
    # A step may not pass the sooner, because time went by of which nothing is known.
    whole = watch(t for t in SOUND if t.at - EPOCH < 1050)[-1]
    holed = watch(t for t in fault(list(SOUND)) if t.at - EPOCH < 1050)[-1]

    assert whole.seconds - 420 <= holed.seconds <= whole.seconds - 300
    assert (holed.canary_requests or 0) < 0.65 * (whole.canary_requests or 0)


def test_a_router_that_begins_anew_changes_no_verdict() -> None:
    traffic = rollout()
    traffic.router_restarts = (700.0, 707.0, 1400.0)
    reports = watch(traffic.ticks())

    assert guilty(reports) == set()
    assert reports[-1].verdict is Verdict.PASS
    deaths = next(s for s in reports[-1].signals if s.name == "deaths")
    assert deaths.canary == deaths.baseline == 0


def without_routers(tick: Tick) -> Tick:
    return replace(
        tick, baseline=replace(tick.baseline, routers={}), canary=replace(tick.canary, routers={})
    )


def test_engines_stand_in_for_routers_that_are_not_scraped() -> None:
    assert watch(map(without_routers, SOUND))[-1].verdict is Verdict.PASS
    assert watch(map(without_routers, SLOW))[-1].verdict is Verdict.FAIL


def without_engines(tick: Tick) -> Tick:
    return replace(
        tick, baseline=replace(tick.baseline, engines={}), canary=replace(tick.canary, engines={})
    )


def test_routers_alone_suffice() -> None:
    assert watch(map(without_engines, SOUND))[-1].verdict is Verdict.PASS
    assert watch(map(without_engines, SLOW))[-1].verdict is Verdict.FAIL


# --- Signals of the user's --------------------------------------------------------------------


def with_shares(canary: float, baseline: float = 0.1) -> Iterator[Tick]:
    """The sound trace, of which a share of the answers is called bad by the user."""
    for tick in SOUND:
        arms = {}
        for role, share in (("baseline", baseline), ("canary", canary)):
            arm: Arm = getattr(tick, role)
            total = sum(engine.finished or 0 for engine in arm.engines.values())
            arms[role] = replace(arm, custom={"refusals": Share(share * total, total)})
        yield with_arms(tick, arms)


REFUSALS = CustomSignal("refusals", tolerance=0.05)


def test_a_signal_of_the_users_joins_the_tests() -> None:
    asked = Settings(custom=(REFUSALS,))

    assert guilty(watch(with_shares(0.4), asked)) == {"refusals"}
    assert guilty(watch(with_shares(0.12), asked)) == set()
    assert watch(with_shares(0.1), asked)[-1].verdict is Verdict.PASS


def test_a_signal_of_the_users_may_be_one_of_which_more_is_better() -> None:
    asked = Settings(custom=(replace(REFUSALS, higher_is_worse=False),))

    assert guilty(watch(with_shares(0.4, baseline=0.9), asked)) == {"refusals"}
    assert guilty(watch(with_shares(0.9, baseline=0.4), asked)) == set()


def test_a_signal_of_the_users_that_nobody_tells_blames_nobody() -> None:
    reports = watch(SOUND, Settings(custom=(REFUSALS,)))

    assert guilty(reports) == set()
    assert "refusals" in {s.name for s in reports[-1].signals}


# --- Anything at all --------------------------------------------------------------------------

odd = st.one_of(
    st.none(),
    st.sampled_from([math.nan, math.inf, -math.inf, -1.0, -0.0, 0.0, 1e308, 5e-324]),
    st.floats(),
    st.integers(0, 1000).map(float),
)
sane_bounds = st.sampled_from([(0.5, 1.0, math.inf), (1.0, 2.0, 5.0, math.inf), (math.inf,)])
any_bins = st.one_of(
    st.none(),
    st.builds(
        Bins,
        bounds=st.one_of(sane_bounds, st.lists(st.floats(), max_size=4).map(tuple)),
        counts=st.lists(st.one_of(st.floats(), st.integers(0, 99).map(float)), max_size=4).map(
            tuple
        ),
        sum=odd,
    ),
    st.lists(st.integers(0, 99), min_size=3, max_size=3).map(
        lambda counts: Bins(
            (0.5, 1.0, math.inf), tuple(float(c) for c in sorted(counts)), float(sum(counts))
        )
    ),
)
any_custom = st.dictionaries(
    st.sampled_from(["refusals", "other"]),
    st.one_of(st.builds(Share, odd, odd), any_bins.filter(lambda one: one is not None)),
    max_size=2,
)
any_router = st.builds(RouterSample, odd, odd, odd, odd, any_bins)
any_engine = st.builds(
    EngineSample,
    *([odd] * 7),
    *([any_bins] * 5),
    custom=any_custom,
)
names = st.sampled_from(["a", "b"])
any_arm = st.builds(
    Arm,
    routers=st.dictionaries(names, any_router, max_size=2),
    engines=st.dictionaries(names, any_engine, max_size=2),
    replicas=st.integers(0, 3),
    deaths=st.one_of(st.none(), st.just(0)),
    custom=any_custom,
)


arms_to_pick = st.lists(any_arm, min_size=1, max_size=4)
picks = st.lists(
    st.tuples(
        st.sampled_from([1.0, 15.0, 30.0, 400.0, 1e9]),
        st.integers(0, 2),
        st.sampled_from([0.0, 10.0, 50.0, 100.0]),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=25,
)


@given(arms_to_pick, picks)
@settings(max_examples=80)
def test_whatever_is_fed_there_is_a_report(
    arms: list[Arm], spans: list[tuple[float, int, float, int, int]]
) -> None:
    at, ticks = EPOCH, []
    for passed, step, weight, base, canary in spans:
        at += passed
        pair = arms[base % len(arms)], arms[canary % len(arms)]
        ticks.append(Tick(at, step, weight, *pair, 50.0, 1))

    for report in watch(ticks, Settings(custom=(REFUSALS,))):
        assert report.message
        assert 0 <= report.budget_spent <= 1
        assert report.seconds >= 0
        for signal in report.signals:
            assert signal.message
            assert 0 <= signal.spent <= 1


NOTHING = (None, math.nan, math.inf, -math.inf, -1.0, 1e300)


def muted(arm: Arm, value: float | None) -> Arm:
    """Return the arm with every number replaced by one that is none."""
    odd = math.nan if value is None else value

    def bins(one: Bins | None) -> Bins | None:
        if one is None or value is None:
            return None
        return Bins(one.bounds, (odd,) * len(one.bounds), odd)

    return replace(
        arm,
        routers={
            name: RouterSample(value, value, value, value, bins(one.latency))
            for name, one in arm.routers.items()
        },
        engines={
            name: EngineSample(
                *(value,) * 7,
                e2e=bins(one.e2e),
                queue=bins(one.queue),
                prefill=bins(one.prefill),
                ttft=bins(one.ttft),
                itl=bins(one.itl),
                custom={"refusals": Share(value, value)},
            )
            for name, one in arm.engines.items()
        },
    )


@pytest.mark.parametrize("value", NOTHING)
@pytest.mark.parametrize("silent", [("baseline",), ("canary",), ("baseline", "canary")])
def test_an_arm_of_which_nothing_is_known_neither_passes_nor_fails(
    silent: Sequence[str], value: float | None
) -> None:
    ticks = [
        with_arms(tick, {role: muted(arm, value) for role, arm in arms_of(tick) if role in silent})
        for tick in SLOW
    ]

    reports = watch(ticks, Settings(custom=(REFUSALS,)))

    assert {r.verdict for r in reports} == {Verdict.INCONCLUSIVE}
    assert guilty(reports) == set()


@pytest.mark.parametrize("value", NOTHING)
def test_what_is_known_in_part_is_judged_by_that_part(value: float | None) -> None:
    # One of two pods tells nothing: what the engines say is not known, what the router says is.
    def beside_a_mute(arm: Arm) -> Arm:
        (name, engine), *_ = arm.engines.items()
        mute = muted(arm, value).engines[name]
        return replace(arm, engines={name: engine, "mute": mute}, replicas=2)

    reports = watch(
        replace(t, baseline=beside_a_mute(t.baseline), canary=beside_a_mute(t.canary)) for t in SLOW
    )

    assert when(reports, Verdict.PASS) is None
    assert reports[-1].verdict is Verdict.FAIL
    assert guilty(reports) & {"latencyP50", "latencyP90", "latencyP99"}


@given(
    st.lists(
        st.tuples(st.integers(0, 119), st.sampled_from(["baseline", "canary"]), odd), max_size=40
    )
)
@example([(i, "canary", math.nan) for i in range(20, 119)])
@settings(max_examples=6)
def test_what_a_sound_pair_fails_to_tell_at_times_makes_nobody_guilty(
    holes: list[tuple[int, str, float | None]],
) -> None:
    ticks = list(SOUND)
    for index, role, value in holes:
        if value is not None and math.isfinite(value) and value >= 0:
            # This would be no hole but a lie.
            continue
        arm: Arm = getattr(ticks[index], role)
        hole = replace(
            arm,
            routers={
                name: replace(one, started=value, failed=value, unanswered=value, active=value)
                for name, one in arm.routers.items()
            },
            engines={
                name: replace(one, finished=value, preemptions=value, running=value)
                for name, one in arm.engines.items()
            },
        )
        ticks[index] = with_arms(ticks[index], {role: hole})

    assert guilty(watch(ticks)) == set()


# --- What every report keeps to ---------------------------------------------------------------


@TRACES
def test_a_report_agrees_with_its_own_evidence(ticks: Sequence[Tick]) -> None:
    for report in watch(ticks):
        failed = [signal for signal in report.signals if signal.verdict is Verdict.FAIL]
        assert (report.verdict is Verdict.FAIL) == bool(failed)
        assert all(signal.message in report.message for signal in failed)
        assert report.budget_spent == max(signal.spent for signal in report.signals)
        assert len({signal.name for signal in report.signals}) == len(report.signals)
        if report.verdict is Verdict.PASS:
            assert report.eta_seconds is None
            assert not report.load.message
        for signal in report.signals:
            if signal.effect is None or signal.lower is None or signal.relaxed is None:
                continue
            assert signal.lower <= signal.effect
            assert signal.relaxed <= signal.effect
            assert signal.upper is not None
            assert signal.upper >= signal.relaxed
            if signal.lower > 0:
                assert signal.spent == 1


@TRACES
def test_a_report_can_be_written_down(ticks: Sequence[Tick]) -> None:
    # Numbers of numpy, which simulators like to feed, are none to those who write JSON.
    deaths: Callable[[int], int] = np.int64  # type: ignore[assignment]
    dying = [
        replace(tick, canary=replace(tick.canary, deaths=deaths(index // 30)))
        for index, tick in enumerate(ticks)
    ]

    for report in (watch(ticks)[-1], watch(dying)[-1]):
        told = json.loads(json.dumps(asdict(report)))
        assert told["verdict"] == report.verdict.value
