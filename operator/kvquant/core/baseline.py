"""What the owner of the baseline does to it while an attempt is on its way.

The baseline is what the canary is compared with and what a rollback goes back to. Another template
makes the comparison void, so that the attempt starts over; another number of pods is followed.
"""

from __future__ import annotations

from kvquant.api.v1alpha1 import DecisionKind
from kvquant.core.plan import replicas_for
from kvquant.core.turn import Turn


def template_changed(turn: Turn) -> bool:
    """Tell whether the target's pods are no longer those that the canary was derived from."""
    target, begun_with = turn.seen.target, turn.baseline.template_hash
    # An attempt that an older operator began does not know what it began with.
    return target is not None and begun_with is not None and target.template_hash != begun_with


def follow_replicas(turn: Turn) -> None:
    """Let the canary keep its share when the baseline's owner asks for more or fewer pods.

    Pods of the canary are only added within an attempt: traffic has to leave a pod before it goes.
    """
    target, baseline, canary = turn.seen.target, turn.baseline, turn.canary
    if target is None or target.replicas in (0, baseline.replicas):
        return
    weight = turn.plan.weight(turn.status.next_step or turn.status.step or 1)
    wanted = max(canary.replicas, replicas_for(weight, target.replicas))
    turn.set(baseline=baseline.model_copy(update={"replicas": target.replicas}))
    if wanted == canary.replicas:
        return
    turn.set(canary=canary.model_copy(update={"replicas": wanted}))
    turn.record(
        DecisionKind.PROVISION,
        "BaselineScaled",
        f"{baseline.deployment} has {target.replicas} pods instead of {baseline.replicas} now: "
        f"the canary gets {wanted} instead of {canary.replicas}.",
    )
