"""The operator's own metrics: one phase at a time, each decision once, nothing after the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from prometheus_client import REGISTRY

from kvquant import telemetry
from kvquant.api.v1alpha1 import Condition, DecisionKind, DecisionRecord, Phase, Status, Weights

AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAMESPACE, NAME = "inference", "telemetry-test"
NAMES = {"rollout_namespace": NAMESPACE, "rollout": NAME}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    telemetry.forget(NAMESPACE, NAME)


def value(metric: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(metric, labels)


def decision(reason: str, second: int) -> DecisionRecord:
    return DecisionRecord(
        at=AT.replace(second=second),
        kind=DecisionKind.ADVANCE,
        reason=reason,
        step=1,
        weight=10,
        message="m",
    )


def test_a_decision_is_counted_once_however_often_its_status_is_reported() -> None:
    def counted() -> float:
        labels = {"kind": "Advance", "reason": "TelemetryTest"}
        return value("kvquant_decisions_total", **labels) or 0.0

    first = Status(decisions=(decision("TelemetryTest", 1),))
    second = Status(decisions=(*first.decisions, decision("TelemetryTest", 2)))
    before = counted()
    telemetry.report(NAMESPACE, NAME, Status(), first)
    telemetry.report(NAMESPACE, NAME, first, first)
    assert counted() == before + 1
    telemetry.report(NAMESPACE, NAME, first, second)
    assert counted() == before + 2


def test_a_rollout_is_in_one_phase_and_its_weight_and_wait_are_seen() -> None:
    held = Condition(type="Held", status="True", reason="Soaking", last_transition_time=AT)
    status = Status(
        phase=Phase.PROGRESSING,
        step=2,
        weights=Weights(baseline=75, canary=25),
        conditions=(held,),
    )
    telemetry.report(NAMESPACE, NAME, Status(), Status(phase=Phase.VERIFYING))
    telemetry.report(NAMESPACE, NAME, Status(), status)
    phases = {p: value("kvquant_rollout_phase", **NAMES, phase=p.value) for p in Phase}
    assert [phase for phase, is_in in phases.items() if is_in] == [Phase.PROGRESSING]
    assert value("kvquant_rollout_canary_weight_percent", **NAMES) == 25
    assert value("kvquant_rollout_step", **NAMES) == 2
    assert value("kvquant_rollout_held", **NAMES) == 1
    telemetry.report(NAMESPACE, NAME, status, status.model_copy(update={"conditions": ()}))
    assert value("kvquant_rollout_held", **NAMES) == 0


def test_no_series_outlives_its_rollout_and_forgetting_twice_is_no_error() -> None:
    telemetry.report(NAMESPACE, NAME, Status(), Status())
    telemetry.forget(NAMESPACE, NAME)
    telemetry.forget(NAMESPACE, NAME)
    assert value("kvquant_rollout_step", **NAMES) is None
    assert value("kvquant_rollout_phase", **NAMES, phase="Pending") is None


def test_kopfs_own_story_of_every_event_is_left_out_of_the_log() -> None:
    root, objects = logging.getLogger(), logging.getLogger("kopf.objects")
    levels, handlers = (root.level, objects.level), list(root.handlers)
    try:
        telemetry.configure_logging("INFO")
        assert root.level == logging.INFO
        assert objects.level == logging.WARNING
    finally:
        root.setLevel(levels[0])
        objects.setLevel(levels[1])
        root.handlers[:] = handlers
