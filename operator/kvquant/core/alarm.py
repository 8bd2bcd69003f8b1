"""What alerts do in a turn: keep them in the status, roll back, or keep everything where it is."""

from __future__ import annotations

from collections.abc import Sequence

from kvquant.api.v1alpha1 import AlertPolicy, AlertReport, Phase
from kvquant.core.alerts import blamed, sentence, standing
from kvquant.core.turn import Turn

REASON = "AlertFiring"

NAMED = 3
"""Alerts that a sentence names; the others are in status.alerts."""


def hear(turn: Turn) -> None:
    """Keep in the status which alerts fire."""
    heard = turn.seen.alerts
    if heard is None:
        return
    alerts = standing(turn.status, heard, turn.now)
    if alerts != turn.status.alerts:
        turn.set(alerts=alerts)
    before = turn.status.condition("Held")
    waited = before is not None and before.status == "True" and before.reason == REASON
    if waited and not alerts and turn.status.phase in (Phase.VERIFYING, Phase.PROGRESSING):
        # The time for which an alert kept the rollout waiting does not count against its deadline.
        turn.set(phase_started_at=turn.now)


def raised(turn: Turn) -> str | None:
    """Return why an alert takes the traffic from the canary; None when none does.

    Where no pod of the baseline is ready there is nowhere to go back to: taking the traffic there
    would turn an alert into an outage.
    """
    guilty = blamed(turn.status, turn.status.alerts)
    if not guilty or not any(pod.ready for pod in turn.seen.baseline_pods):
        return None
    since = turn.status.canary_since or turn.status.step_started_at or turn.now
    return f"{_told(guilty)}. The canary has had traffic since {since:%H:%M:%S} UTC."


def why_not(turn: Turn) -> tuple[str, str] | None:
    """Return why alerts, or not knowing of them, keep everything where it is; None if they do not.

    Also called for rollouts that have not begun: nothing begins while an alert fires.
    """
    alerts = turn.status.alerts
    if alerts:
        remedy = f"{{match: {{alertname: {alerts[0].name}}}, policy: ignore}}"
        return (
            REASON,
            f"{_why(turn)}: {_told(alerts)}. To go on all the same, add to spec.alerts: {remedy}.",
        )
    heard = turn.seen.alerts
    if heard is not None and heard.polls and not heard.polled:
        return (
            "MetricsUnavailable",
            "Whether an alert fires is not known: Prometheus does not tell. Nothing moves until "
            "it does; KVQUANT_ALERTS_POLL=0 stops asking.",
        )
    return None


def holds(turn: Turn) -> bool:
    """Tell whether alerts keep everything where it is, and say so on the turn."""
    why = why_not(turn)
    if why is not None:
        turn.hold(*why)
    return why is not None


def _why(turn: Turn) -> str:
    first = turn.status.alerts[0]
    if first.policy is AlertPolicy.PAUSE:
        return "Paused while an alert fires"
    if not first.before_traffic:
        return "An alert fires, and no pod of the baseline is ready to go back to"
    return "An alert fires that began before the canary had traffic, and is not held against it"


def _told(alerts: Sequence[AlertReport]) -> str:
    more = f"; and {len(alerts) - NAMED} more" if len(alerts) > NAMED else ""
    return "; ".join(sentence(alert) for alert in alerts[:NAMED]) + more
