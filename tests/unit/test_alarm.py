"""What alerts do to decisions, in every phase and whatever else is seen."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api.v1alpha1 import AlertPolicy, AlertSource, DecisionKind, Phase, Status
from kvquant.core.alerts import Alert, Heard
from kvquant.core.machine import decide
from kvquant.core.observation import Problem, Requests
from tests.unit.test_alerts import BURN, WATCH
from tests.unit.test_machine import CANDIDATE, NOW, PLAN, seen, status

PHASES = [
    (Phase.PENDING, 0),
    (Phase.PROVISIONING, 0),
    (Phase.VERIFYING, 0),
    *((Phase.PROGRESSING, step) for step in (1, 2, 3, 4)),
    (Phase.PROMOTED, 4),
    (Phase.ROLLING_BACK, 0),
    (Phase.ROLLED_BACK, 0),
]


def heard(*alerts: tuple[float, dict[str, str]], **fields: Any) -> Heard:
    firing = tuple(
        Alert.of({**BURN, **labels}, NOW + timedelta(seconds=since), AlertSource.WEBHOOK, NOW)
        for since, labels in alerts
    )
    return Heard(WATCH, firing, **fields)


def begun(phase: Phase, step: int, **fields: Any) -> Status:
    known = {"canary_since": NOW - timedelta(seconds=100) if step else None}
    return status(phase, step=step, **{**known, **fields})


alerts = st.lists(
    st.tuples(
        st.integers(-300, 0),
        st.fixed_dictionaries(
            {"severity": st.sampled_from(["critical", "warning", "info"])},
            optional={"alertname": st.sampled_from(["A", "B"])},
        ),
    ),
    max_size=4,
)


@given(
    st.sampled_from(PHASES),
    alerts,
    st.sampled_from([None, "true"]),
    st.sampled_from([None, Problem("RefusedByAPIServer", "no")]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([False, True]),
)
def test_in_every_phase_no_alert_lets_weight_rise_and_a_new_one_takes_it_all(
    place: tuple[Phase, int],
    told: list[tuple[float, dict[str, str]]],
    paused: str | None,
    problem: Problem | None,
    metrics: bool,
    baseline: bool,
    polls: bool,
) -> None:
    before = begun(*place)
    world = seen(
        alerts=heard(*told, polls=polls, polled=False),
        requests=Requests(paused=paused),
        problem=problem,
        candidate=CANDIDATE if place[0] is Phase.PENDING else None,
    )
    if not metrics:
        world = replace(world, evidence=None, metrics_problem="no answer")
    if not baseline:
        world = replace(world, baseline_pods=())
    after = decide(PLAN, before, world, NOW).status
    Status.model_validate(after.model_dump())
    acts = [a for a in after.alerts if a.policy is not AlertPolicy.IGNORE]
    assert len(acts) == len({str(sorted(x.items())) for _, x in told if x["severity"] != "info"})
    guilty = [a for a in after.alerts if a.policy is AlertPolicy.ROLLBACK and not a.before_traffic]
    exposed = before.phase in (Phase.PROGRESSING, Phase.PROMOTED)
    if guilty and baseline and exposed:
        assert (after.phase, after.weights.canary) == (Phase.ROLLING_BACK, 0)
        assert after.decisions[-1].reason == "AlertFiring"
    elif acts or polls:
        assert after.weights.canary <= before.weights.canary
        assert after.step <= before.step
        if before.phase is Phase.PENDING:
            assert after.phase is Phase.PENDING
    if not guilty:
        reasons = {d.reason for d in after.decisions if d.kind is DecisionKind.ROLL_BACK}
        assert "AlertFiring" not in reasons


def test_a_person_may_go_on_in_spite_of_an_alert_that_began_before() -> None:
    before = begun(Phase.PROGRESSING, 1)
    world = seen(alerts=heard((-200, {})), requests=Requests(promote="Ada"))
    after = decide(PLAN, before, world, NOW).status
    assert after.next_step == 2


@pytest.mark.parametrize(("alerts", "named"), [(1, "A0"), (5, "and 2 more")])
def test_the_sentence_is_short_whatever_fires(alerts: int, named: str) -> None:
    told = [(-200.0, {"alertname": f"A{n}"}) for n in range(alerts)]
    after = decide(PLAN, begun(Phase.PROGRESSING, 1), seen(alerts=heard(*told)), NOW).status
    held = after.condition("Held")
    assert held is not None
    assert held.reason == "AlertFiring"
    assert named in held.message
    assert "policy: ignore" in held.message


def test_the_time_of_waiting_for_an_alert_is_not_held_against_the_deadline() -> None:
    before = begun(Phase.VERIFYING, 0, age=7200)
    waiting = decide(PLAN, before, seen(alerts=heard((-10, {}))), NOW).status
    assert waiting.phase is Phase.VERIFYING
    unready = replace(seen(alerts=heard()), canary_pods=())
    over = Alert.of(BURN, NOW, AlertSource.WEBHOOK, NOW).fingerprint
    ended = replace(unready, alerts=Heard(WATCH, ended={over: NOW}))
    after = decide(PLAN, waiting, ended, NOW + timedelta(seconds=5)).status
    assert after.alerts == ()
    assert after.phase is Phase.VERIFYING, "its pods get the time that they would have had"
