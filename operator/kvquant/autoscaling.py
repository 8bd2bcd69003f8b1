"""Hold still the autoscaler of a target while its rollout is on its way, and give it back after.

An autoscaler that goes on scaling would take pods from the baseline in proportion to the traffic
that moves to the canary: the comparison would be void, and a rollback would meet too few pods.
What its bounds were stands in an annotation of the autoscaler itself, written in one patch with the
pin, so that no crash and no forced removal of a rollout can lose it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from kvquant.api import names
from kvquant.core.manifests import replicas_of
from kvquant.ports import Cluster, Object
from kvquant.world import World, annotations_of, identity

KIND = "HorizontalPodAutoscaler"


@dataclass(frozen=True, slots=True)
class Pin:
    """What the annotation of a pinned autoscaler says.

    Attributes:
        by: `name/uid` of the rollout that pinned it.
        at: Pods that both bounds were set to.
        lowest: The owner's minReplicas.
        highest: The owner's maxReplicas.
    """

    by: str
    at: int
    lowest: int
    highest: int

    @classmethod
    def of(cls, autoscaler: Object) -> Pin | None:
        """Read an autoscaler's annotation; None when it is not pinned, or nobody can read it."""
        text = annotations_of(autoscaler).get(names.ANNOTATION_PINNED)
        try:
            told = json.loads(text or "")
            by, at = str(told["by"]), int(told["at"])
            return cls(by, at, int(told["minReplicas"]), int(told["maxReplicas"]))
        except (KeyError, TypeError, ValueError):
            return None

    def __str__(self) -> str:
        bounds = {"minReplicas": self.lowest, "maxReplicas": self.highest}
        return json.dumps({"by": self.by, "at": self.at, **bounds})


def pin(cluster: Cluster, world: World) -> None:
    """Pin the autoscalers of the target at the pods that it has.

    Bounds that the owner has edited meanwhile are the ones to give back, and are pinned anew.

    Raises:
        ClusterError: The API server did not do what was asked.
    """
    target, mine = world.target, identity(world.rollout)
    if target is None or replicas_of(target) == 0:
        return
    for autoscaler in _autoscalers(cluster, world.rollout.metadata.namespace):
        reference = autoscaler["spec"].get("scaleTargetRef") or {}
        if (reference.get("kind"), reference.get("name")) != (
            "Deployment",
            target["metadata"]["name"],
        ):
            continue
        lowest, highest = _bounds(autoscaler)
        known = Pin.of(autoscaler)
        if known is not None and lowest == highest == known.at:
            if known.by != mine:
                # The rollout that pinned it was removed by force.
                _write(cluster, autoscaler, Pin(mine, known.at, known.lowest, known.highest))
            continue
        at = replicas_of(target)
        if lowest == highest == at:
            continue
        _write(cluster, autoscaler, Pin(mine, at, lowest, highest), (at, at))


def release(cluster: Cluster, namespace: str, holder: str) -> None:
    """Give back the bounds of every autoscaler that a rollout has pinned.

    Args:
        cluster: Where they are.
        namespace: Namespace of the rollout.
        holder: `name/uid` of the rollout.

    Raises:
        ClusterError: The API server did not do what was asked.
    """
    for autoscaler in _autoscalers(cluster, namespace):
        known = Pin.of(autoscaler)
        if known is None or known.by != holder:
            continue
        lowest, highest = _bounds(autoscaler)
        untouched = lowest == highest == known.at
        # Bounds that somebody has set since are theirs already.
        _write(cluster, autoscaler, None, (known.lowest, known.highest) if untouched else None)


def _autoscalers(cluster: Cluster, namespace: str) -> Iterator[Object]:
    yield from cluster.list(KIND, namespace, {})


def _bounds(autoscaler: Object) -> tuple[int, int]:
    spec = autoscaler["spec"]
    lowest = spec.get("minReplicas")
    return 1 if lowest is None else int(lowest), int(spec["maxReplicas"])


def _write(
    cluster: Cluster, autoscaler: Object, known: Pin | None, bounds: tuple[int, int] | None = None
) -> None:
    metadata = autoscaler["metadata"]
    patch: Object = {
        "metadata": {
            # What the owner writes at the same moment must not be overwritten.
            "resourceVersion": metadata["resourceVersion"],
            "annotations": {names.ANNOTATION_PINNED: None if known is None else str(known)},
        }
    }
    if bounds is not None:
        patch["spec"] = {"minReplicas": bounds[0], "maxReplicas": bounds[1]}
    cluster.patch(KIND, metadata["namespace"], metadata["name"], patch)
