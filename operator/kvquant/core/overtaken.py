"""What makes an attempt void from outside. It says nothing against the spec, which starts over."""

from __future__ import annotations

from kvquant.core.baseline import template_changed
from kvquant.core.turn import Turn

STARTS_OVER = frozenset(
    {"SpecChanged", "StatusDamaged", "RouterBusy", "TargetBusy", "BaselineChanged"}
)
"""The reasons that `overtaken` gives."""


def overtaken(turn: Turn) -> tuple[str, str] | None:
    """Return why an attempt that is on its way is void, as reason and sentence; None if it is not.

    Args:
        turn: A turn of an attempt that has begun and is not promoted.
    """
    seen, status = turn.seen, turn.status
    if seen.spec_hash != status.spec_hash:
        return (
            "SpecChanged",
            "The spec was changed while the rollout was on its way: traffic goes back to the "
            "baseline, then the new spec starts over.",
        )
    if max(status.step, status.next_step or 0) > len(turn.plan.steps):
        return (
            "StatusDamaged",
            f"The status speaks of step {status.step}, which the spec does not have: somebody has "
            "edited it. This one starts over.",
        )
    if seen.router_taken_by is not None:
        return (
            "RouterBusy",
            f"Rollout {seen.router_taken_by!r} drives router {status.router} now: nothing is "
            "measured or moved on another rollout's traffic. This one starts over when the router "
            "is free.",
        )
    if seen.target_taken_by is not None:
        return (
            "TargetBusy",
            f"Rollout {seen.target_taken_by!r} works on {turn.baseline.deployment}, too, and is "
            "older: this one starts over when that one has ended.",
        )
    if template_changed(turn):
        return (
            "BaselineChanged",
            f"The pod template of {turn.baseline.deployment} was changed while the rollout was on "
            "its way, so that the canary is no longer compared with what it was derived from: "
            "this one starts over from the new template.",
        )
    return None
