"""Setting conditions, and the three that kstatus reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from kvquant.api.conditions import Standing, set_condition, set_standing
from kvquant.api.v1alpha1 import CONDITION_MESSAGE_LENGTH, Condition

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=7)


def by_type(conditions: tuple[Condition, ...]) -> dict[str, Condition]:
    return {condition.type: condition for condition in conditions}


def test_a_new_condition_is_appended_with_its_generation() -> None:
    first = set_condition((), "Held", "True", "Soaking", "2 s left", NOW, 3)
    both = set_condition(first, "Paused", "False", "NotRequested", "", LATER, 4)

    assert [c.type for c in both] == ["Held", "Paused"]
    assert both[0] == first[0]
    assert both[1].last_transition_time == LATER
    assert both[1].observed_generation == 4


def test_the_transition_time_stays_while_only_the_words_change() -> None:
    before = set_condition((), "Held", "True", "Soaking", "2 s left", NOW, 3)
    after = set_condition(before, "Held", "True", "InsufficientEvidence", "12 of 300", LATER, 5)

    (held,) = after
    assert (held.reason, held.message, held.observed_generation) == (
        "InsufficientEvidence",
        "12 of 300",
        5,
    )
    assert held.last_transition_time == NOW


def test_the_transition_time_changes_when_the_status_flips() -> None:
    before = set_condition((), "Held", "True", "Soaking", "", NOW, 3)
    (held,) = set_condition(before, "Held", "False", "Moving", "", LATER, 3)
    assert held.last_transition_time == LATER


def test_setting_a_condition_keeps_its_place_and_the_input() -> None:
    conditions: tuple[Condition, ...] = ()
    for type_ in ("Ready", "Reconciling", "Stalled"):
        conditions = set_condition(conditions, type_, "False", "Pending", "", NOW, 1)
    after = set_condition(conditions, "Reconciling", "True", "Progressing", "", LATER, 1)

    assert [c.type for c in after] == ["Ready", "Reconciling", "Stalled"]
    assert by_type(conditions)["Reconciling"].status == "False"


def test_a_message_longer_than_the_crd_admits_is_cut() -> None:
    (held,) = set_condition((), "Held", "True", "Long", "x" * 9000, NOW, 1)
    assert len(held.message) == CONDITION_MESSAGE_LENGTH


@pytest.mark.parametrize(
    ("standing", "ready", "reconciling", "stalled"),
    [
        (Standing.IN_PROGRESS, "False", "True", "False"),
        (Standing.DONE, "True", "False", "False"),
        (Standing.FAILED, "False", "False", "True"),
    ],
)
def test_kstatus_reads_each_standing(
    standing: Standing, ready: str, reconciling: str, stalled: str
) -> None:
    seen = by_type(set_standing((), standing, "AnalysisFailed", "p99 is worse", NOW, 2))
    assert seen["Ready"].status == ready
    assert seen["Reconciling"].status == reconciling
    assert seen["Stalled"].status == stalled
    assert {c.reason for c in seen.values()} == {"AnalysisFailed"}
