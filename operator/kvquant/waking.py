"""Which rollouts a change in the cluster concerns, so that a hand edit is undone at once.

Only a wake: a rollout that is told nothing finds out by itself, in its next pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvquant.api import names
from kvquant.ports import Object
from kvquant.reconciler import Ref
from kvquant.world import labels_of


class Waker:
    """Wakes rollouts for what others change. Safe to call from any thread."""

    def __init__(
        self,
        rollouts: Callable[[str], Sequence[Object]],
        doubt: Callable[[Object], None],
        wake: Callable[[Ref], None],
    ) -> None:
        """Make a waker.

        Args:
            rollouts: Returns the rollouts in a namespace, without asking anybody.
            doubt: Has an object of ours applied again in the next pass.
            wake: Begins a rollout's next pass.
        """
        self._rollouts = rollouts
        self._doubt = doubt
        self._wake = wake

    def __call__(self, obj: Object, touched: bool) -> None:
        """Wake the rollouts that a change concerns.

        Args:
            obj: The object after the change; before it, when it is gone.
            touched: Whether more has changed than what controllers report.
        """
        # Of what controllers report, only pods make passes, which become ready and die, Jobs, which
        # end, and routes, which Gateways take.
        if not touched and obj["kind"] not in ("HTTPRoute", "Job", "Pod"):
            return
        if names.LABEL_ROUTER in labels_of(obj):
            self._doubt(obj)
        namespace = obj["metadata"]["namespace"]
        for name in concerned(obj, lambda: self._rollouts(namespace)):
            self._wake(Ref(namespace, name))


def concerned(obj: Object, rollouts: Callable[[], Iterable[Object]]) -> set[str]:
    """Return the names of the rollouts that an object concerns.

    Args:
        obj: The object.
        rollouts: Returns the rollouts of its namespace; called only when that takes a look.
    """
    kind, name, labels = obj["kind"], obj["metadata"]["name"], labels_of(obj)
    if kind == names.KIND:
        return {name}
    if names.LABEL_ROLLOUT in labels:
        return {labels[names.LABEL_ROLLOUT]}
    if kind == "Pod":
        return set()
    if kind == "HTTPRoute":
        return {one["metadata"]["name"] for one in rollouts() if name == _route(one)}
    if kind == "HorizontalPodAutoscaler":
        name = obj.get("spec", {}).get("scaleTargetRef", {}).get("name", "")
    pool = kind in ("Deployment", "HorizontalPodAutoscaler")
    router = labels.get(names.LABEL_ROUTER)
    if not pool and router is None:
        return set()
    return {
        rollout["metadata"]["name"]
        for rollout in rollouts()
        if (pool and name in _pools(rollout))
        or (router is not None and router == (rollout.get("status") or {}).get("router"))
    }


def _pools(rollout: Object) -> tuple[str | None, ...]:
    status = rollout.get("status") or {}
    return (
        rollout.get("spec", {}).get("targetRef", {}).get("name"),
        (status.get("canary") or {}).get("deployment"),
    )


def _route(rollout: Object) -> str | None:
    traffic = rollout.get("spec", {}).get("traffic") or {}
    route: str | None = (traffic.get("gatewayAPI") or {}).get("httpRoute")
    return route
