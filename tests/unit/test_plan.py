from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api.v1alpha1 import Spec, parse_duration
from kvquant.core.plan import Plan, replicas_for, spec_hash


def a_spec(**changes: object) -> Spec:
    document = {
        "targetRef": {"name": "llama"},
        "kvCache": {"dtype": "int8"},
        "traffic": {"router": {}},
        **changes,
    }
    return Spec.model_validate(document)


def test_defaults_are_fit_for_production() -> None:
    plan = Plan.of(a_spec())
    assert [step.weight for step in plan.steps] == [10, 25, 50, 95], "5 % are held back"
    assert all(step.soak >= timedelta(minutes=10) for step in plan.steps)
    assert plan.analysis.min_requests >= 100
    assert plan.rollback_window >= timedelta(minutes=10)


def test_spelling_out_a_default_is_no_new_spec() -> None:
    assert spec_hash(a_spec()) == spec_hash(a_spec(analysis={"interval": "15s"}))
    assert spec_hash(a_spec()) != spec_hash(a_spec(analysis={"interval": "16s"}))


@pytest.mark.parametrize(
    ("weight", "baseline", "replicas"),
    [(10, 2, 1), (25, 2, 1), (50, 2, 2), (100, 2, 2), (10, 8, 1), (25, 8, 3), (50, 8, 8)],
)
def test_replicas_match_the_load_per_pod(weight: int, baseline: int, replicas: int) -> None:
    assert replicas_for(weight, baseline) == replicas


@given(st.integers(1, 100), st.integers(0, 200))
def test_no_canary_pod_gets_more_load_than_a_baseline_pod_had(weight: int, baseline: int) -> None:
    replicas = replicas_for(weight, baseline)
    pods = max(1, baseline)
    assert 1 <= replicas <= pods
    assert weight * pods <= 100 * replicas


def topped(**shadow: object) -> Plan:
    return Plan.of(a_spec(shadow={"matchLoad": True, **shadow}))


@pytest.mark.parametrize(
    ("pods", "copied"), [(1, [80, 50, 0, 0]), (4, [12, 0, 0, 0]), (10, [0, 0, 0, 0])]
)
def test_a_canary_is_topped_up_to_the_load_of_a_baseline_pod(pods: int, copied: list[int]) -> None:
    # 10 % for one pod of the canary, 90 % for four of the baseline: 12.5 % are lacking.
    plan = topped()
    assert [plan.top_up(step, pods) for step in (1, 2, 3, 4)] == copied
    assert plan.top_up(0, pods) == 0
    # Whether requests are compared beforehand is another matter.
    assert topped(percent=0).top_up(1, pods) == copied[0]
    assert Plan.of(a_spec()).top_up(1, pods) == 0


@given(st.integers(1, 4), st.integers(0, 200))
def test_no_canary_pod_is_topped_up_beyond_a_baseline_pod(step: int, baseline: int) -> None:
    plan, pods = topped(), max(1, baseline)
    weight, copies = plan.weight(step), plan.top_up(step, baseline)
    assert 0 <= copies <= 100 - weight
    if copies:
        theirs = (100 - weight) / pods
        assert (weight + copies) / replicas_for(weight, pods) <= theirs
    assert copies <= plan.most_topped_up(baseline) * (100 - weight) + 1e-9


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_durations_add_up(hours: int, minutes: int, seconds: int) -> None:
    text = f"{hours}h{minutes}m{seconds}s"
    assert parse_duration(text) == timedelta(hours=hours, minutes=minutes, seconds=seconds)


@pytest.mark.parametrize("text", ["", "10", "m", "10m 5s", "-5m", "1.5h", "10d"])
def test_a_bad_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 90s, 10m or 1h30m"):
        parse_duration(text)
