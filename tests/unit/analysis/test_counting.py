"""From cumulative counts to increases: resets, restarts, gaps, and pods that come and go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvquant.core.analysis.counting import FORGOTTEN, Counting, Increase
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, RouterSample, Share

INF = math.inf
BOUNDS = (0.5, 1.0, 2.0, INF)


def bins(*counts: float, total: float | None = 0.0) -> Bins:
    return Bins(BOUNDS, tuple(counts), total)


def engine(
    finished: float | None, *, e2e: Bins | None = None, process: float | None = 100.0
) -> EngineSample:
    return EngineSample(process_started=process, finished=finished, e2e=e2e)


def router(started: float | None, *, latency: Bins | None = None) -> RouterSample:
    return RouterSample(started=started, failed=0, unanswered=0, active=0, latency=latency)


def of(*, e: EngineSample | None = None, r: RouterSample | None = None) -> Arm:
    return Arm(
        routers={} if r is None else {"router": r}, engines={} if e is None else {"engine": e}
    )


def follow(arms: Sequence[Arm]) -> list[Increase]:
    counting = Counting({})
    return [
        counting.advance(arm, None if i == 0 else 1000.0 + 15 * (i - 1))
        for i, arm in enumerate(arms)
    ]


def test_what_was_counted_before_the_first_instant_is_no_increase() -> None:
    first, second = follow([of(e=engine(500)), of(e=engine(507))])

    assert first.counts["finished"] == 0
    assert second.counts["finished"] == 7
    assert second.whole
    assert second.deaths == 0


def test_a_router_that_begins_anew_adds_what_it_has_counted_since_and_killed_nobody() -> None:
    *_, last = follow(
        [
            of(r=router(500, latency=bins(100, 200, 300, 400, total=None))),
            of(r=router(20, latency=bins(5, 6, 7, 8, total=None))),
        ]
    )

    assert last.counts["started"] == 20
    assert last.bins["latency"][:4].tolist() == [5, 6, 7, 8]
    assert last.deaths == 0
    assert not last.whole


@pytest.mark.parametrize("process", [None, 1010.0])
def test_an_engine_that_begins_anew_has_died(process: float | None) -> None:
    before = engine(500, e2e=bins(1, 2, 3, 4), process=None if process is None else 100.0)
    *_, last = follow([of(e=before), of(e=engine(20, e2e=bins(1, 1, 1, 1), process=process))])

    assert last.counts["finished"] == 20
    assert last.bins["e2e"][:4].tolist() == [1, 1, 1, 1]
    assert last.deaths == 1
    assert not last.whole


def test_an_engine_that_begins_anew_has_died_even_if_it_has_counted_more_since() -> None:
    *_, last = follow([of(e=engine(5)), of(e=engine(20, process=1010.0))])

    assert (last.deaths, last.counts["finished"]) == (1, 20)


def test_a_start_that_is_told_a_second_apart_is_the_same() -> None:
    *_, last = follow([of(e=engine(5)), of(e=engine(8, process=100.9))])

    assert (last.deaths, last.counts["finished"]) == (0, 3)


def test_a_death_that_kubernetes_tells_of_as_well_counts_once() -> None:
    arms = [replace(of(e=engine(5)), deaths=2), replace(of(e=engine(0, process=1010)), deaths=3)]

    assert [one.deaths for one in follow(arms)] == [0, 1]


def test_a_death_that_only_kubernetes_tells_of_counts() -> None:
    arms = [
        Arm(deaths=2),
        Arm(deaths=4),
        Arm(deaths=None),
        Arm(deaths=4),
        Arm(deaths=1),
        Arm(deaths=4),
    ]

    assert [one.deaths for one in follow(arms)] == [0, 2, 0, 0, 0, 0]


def test_a_pod_that_is_known_to_be_new_adds_all_that_it_has_counted() -> None:
    counting = Counting({})
    counting.advance(of(e=engine(500)), None)
    new = engine(9, process=1010.0, e2e=bins(1, 2, 3, 9))
    old = engine(7000, process=100.0, e2e=bins(1, 2, 3, 7000))

    found = counting.advance(Arm(engines={"engine": engine(501), "new": new, "old": old}), 1000.0)

    assert found.counts["finished"] == 1 + 9
    assert found.bins["e2e"][3] == 9
    assert found.deaths == 0


def test_a_pod_that_was_away_adds_what_it_has_counted_meanwhile_and_leaves_a_hole() -> None:
    _, away, back, after = follow([of(e=engine(5)), of(), of(e=engine(50)), of(e=engine(60))])

    assert not away.whole
    assert not back.whole
    assert after.whole
    assert back.counts["finished"] == 45
    assert after.counts["finished"] == 10


def test_a_pod_that_was_long_gone_is_not_expected_any_more() -> None:
    counting = Counting({})
    counting.advance(Arm(engines={"a": engine(5), "b": engine(5)}), None)
    found = [
        counting.advance(Arm(engines={"a": engine(5.0 + i)}), 1000.0 + i)
        for i in range(FORGOTTEN + 3)
    ]
    back = counting.advance(Arm(engines={"a": engine(99), "b": engine(9999)}), 2000.0)

    assert [one.whole for one in found] == [False] + [True] * (FORGOTTEN + 2)
    # It is a stranger by now, of whom nobody knows how much is new.
    assert back.counts["finished"] == 99 - (5 + FORGOTTEN + 2)


@pytest.mark.parametrize("odd", [None, math.nan, INF, -INF, -1.0])
def test_a_count_that_is_none_is_not_known_and_nothing_else_suffers(odd: float | None) -> None:
    *_, last = follow(
        [
            Arm(engines={"engine": EngineSample(finished=5, preemptions=1)}),
            Arm(engines={"engine": EngineSample(finished=odd, preemptions=3)}),
        ]
    )

    assert math.isnan(last.counts["finished"])
    assert last.counts["preemptions"] == 2


def test_an_arm_of_which_one_pod_does_not_tell_is_not_known() -> None:
    one, other = EngineSample(finished=5), EngineSample(finished=None)
    *_, last = follow([Arm(engines={"a": one, "b": other})] * 2)

    assert math.isnan(last.counts["finished"])


def test_a_histogram_that_was_not_shown_before_had_counted_nothing() -> None:
    *_, last = follow([of(e=engine(0)), of(e=engine(3, e2e=bins(1, 2, 3, 3, total=2.5)))])

    assert last.bins["e2e"].tolist() == [1, 2, 3, 3, 2.5]


def test_a_histogram_that_is_not_shown_any_more_is_not_known() -> None:
    *_, last = follow([of(e=engine(3, e2e=bins(1, 2, 3, 3))), of(e=engine(4))])

    assert np.isnan(last.bins["e2e"]).all()


@pytest.mark.parametrize(
    "odd",
    [
        Bins((), ()),
        Bins((1.0,), (1.0,)),
        Bins((0.5, 1.0), (1.0, 2.0)),
        Bins((1.0, 0.5, INF), (1.0, 2.0, 3.0)),
        Bins((0.5, 1.0, INF), (3.0, 2.0, 1.0)),
        Bins((0.5, 1.0, INF), (1.0, math.nan, 3.0)),
        Bins((0.5, 1.0, INF), (-1.0, 1.0, 3.0)),
        Bins((math.nan, 1.0, INF), (1.0, 2.0, 3.0)),
        Bins((0.5, 1.0, INF), (1.0, 2.0)),
    ],
)
def test_a_histogram_that_is_none_is_not_known_and_is_not_learnt_from(odd: Bins) -> None:
    bounds: dict[str, tuple[float, ...]] = {}
    counting = Counting(bounds)

    counting.advance(of(e=engine(1, e2e=odd)), None)
    counting.advance(of(e=engine(1, e2e=odd)), 1000.0)

    assert bounds == {}


def test_histograms_of_other_bounds_are_read_off_at_those_seen_first() -> None:
    bounds: dict[str, tuple[float, ...]] = {}
    coarse = Bins((1.0, 3.0, INF), (10.0, 30.0, 40.0), 50.0)
    counting = Counting(bounds)
    counting.advance(Arm(engines={"a": engine(0, e2e=bins(0, 0, 0, 0))}), None)
    counting.advance(
        Arm(
            engines={
                "a": engine(0, e2e=bins(0, 0, 0, 0)),
                "b": engine(0, e2e=Bins(coarse.bounds, (0.0, 0.0, 0.0), 0.0)),
            }
        ),
        1000.0,
    )

    found = counting.advance(
        Arm(engines={"a": engine(0, e2e=bins(0, 0, 0, 0)), "b": engine(40, e2e=coarse)}), 1015.0
    )

    assert bounds == {"engine.e2e": BOUNDS}
    assert found.bins["e2e"].tolist() == [5, 10, 20, 40, 50]


def test_gauges_are_added_up_over_the_pods_and_one_unknown_makes_all_unknown() -> None:
    told = EngineSample(running=3, waiting=2)
    both, part = follow(
        [
            Arm(engines={"a": told, "b": told}),
            Arm(engines={"a": told, "b": EngineSample(running=1)}),
        ]
    )

    assert (both.running, both.waiting, both.active) == (6, 4, 10)
    assert part.running == 4
    assert math.isnan(part.waiting)


def test_a_router_tells_what_is_in_flight_rather_than_the_engines() -> None:
    arm = Arm(
        routers={"r": RouterSample(active=9)}, engines={"a": EngineSample(running=3, waiting=2)}
    )

    assert follow([arm])[0].active == 9


def test_a_users_signals_are_followed_by_pod_and_for_the_arm() -> None:
    def arm(events: float, total: float) -> Arm:
        share = Share(events, total)
        return Arm(
            engines={
                "a": EngineSample(custom={"refusals": share}),
                "b": EngineSample(custom={"refusals": share}),
            },
            custom={"drift": share},
        )

    *_, last = follow([arm(5, 50), arm(7, 60)])

    assert last.counts["custom.refusals.events"] == 4
    assert last.counts["custom.refusals.total"] == 20
    assert last.counts["custom.drift.events"] == 2


def test_a_users_counter_that_begins_anew_adds_nothing_and_killed_nobody() -> None:
    arms = [Arm(custom={"drift": Share(*counts)}) for counts in ((5, 50), (1, 2), (3, 10))]
    _, reset, after = follow(arms)

    assert reset.counts.get("custom.drift.total", 0.0) == 0
    assert reset.deaths == 0
    assert after.counts["custom.drift.total"] == 8


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60)
def test_nothing_is_lost_or_counted_twice_over_any_restarts(
    spans: list[tuple[int, bool]],
) -> None:
    # What a process has counted is shown by the time it ends, so that each increase is seen.
    counting = Counting({})
    process, shown = 100.0, 0.0
    counting.advance(of(e=engine(0, process=process, e2e=bins(0, 0, 0, 0))), None)
    seen = deaths = 0.0
    for i, (more, restarts) in enumerate(spans):
        at = 1000.0 + 15 * i
        if restarts:
            process, shown = at - 5, 0.0
        shown += more
        told = engine(shown, process=process, e2e=bins(0, 0, shown, shown))
        found = counting.advance(of(e=told), at - 15)
        assert found.counts["finished"] == found.bins["e2e"][3] == more
        seen += found.counts["finished"]
        deaths += found.deaths
    assert seen == sum(more for more, _ in spans)
    assert deaths == sum(restarts for _, restarts in spans)


def test_increases_add_up_and_gauges_are_averaged() -> None:
    total = Increase()
    for count, running in ((2.0, 4.0), (3.0, 8.0), (5.0, 6.0)):
        total.add(
            Increase(
                counts={"finished": count},
                bins={"e2e": np.array([count])},
                running=running,
                waiting=0.0,
                active=running,
                replicas=2.0,
                instants=1,
                deaths=1,
            )
        )

    assert total.counts == {"finished": 10}
    assert total.bins["e2e"].tolist() == [10]
    assert (total.running, total.active, total.replicas) == (6, 6, 2)
    assert (total.instants, total.deaths) == (3, 3)
    total.add(Increase(whole=False, instants=1))
    assert not total.whole
