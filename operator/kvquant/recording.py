"""Write what was decided into the rollout's record, a ConfigMap that goes with the rollout."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout
from kvquant.archiving import Archivist, Whose
from kvquant.core import record
from kvquant.core.ownership import owners_of
from kvquant.errors import ClusterError
from kvquant.ports import Cluster, Object
from kvquant.world import World, annotations_of, labels_of

logger = logging.getLogger(__name__)


class Recorder:
    """Keeps records complete. Safe to share between threads."""

    def __init__(self, cluster: Cluster, archivist: Archivist | None = None) -> None:
        self._cluster = cluster
        self._archivist = archivist
        self._said: dict[tuple[str, str], str] = {}

    def keep(self, world: World) -> None:
        """Add the persisted decisions that the record does not hold yet; usually there are none.

        Idempotent, and no reason to stop: what cannot be written now is written by a later pass,
        while the rollout goes on. It is logged once.
        """
        rollout = world.rollout
        key = rollout.metadata.namespace, rollout.metadata.name
        try:
            problem = self._add(rollout, world.record)
        except ClusterError as error:
            problem = str(error)
        if problem is None:
            self._said.pop(key, None)
        elif self._said.get(key) != problem:
            self._said[key] = problem
            logger.warning("The record of %s/%s cannot be written yet: %s", *key, problem)

    def forget(self, namespace: str, name: str) -> None:
        """Drop what is remembered of a rollout that is gone."""
        self._said.pop((namespace, name), None)
        if self._archivist is not None:
            self._archivist.forget(namespace, name)

    def _add(self, rollout: KVQuantRollout, found: Object | None) -> str | None:
        """Write; return why it must not be written, if so.

        Raises:
            ClusterError: The API server did not do it.
        """
        metadata = rollout.metadata
        namespace, name = metadata.namespace, record.name_of(metadata.name)
        if found is not None and names.LABEL_RECORD not in labels_of(found):
            return f"there is a ConfigMap {name} of somebody else's: rename it"
        mine = found is not None and metadata.uid in owners_of(found)
        recorded = _number(found, names.ANNOTATION_RECORDED) if mine else 0
        changes = record.additions(rollout, recorded)
        if not changes:
            self._archive(rollout, found if mine else None, recorded, {})
            return None
        if found is None:
            self._cluster.apply(_empty(rollout))
        elif not mine:
            # It is of a rollout that had this name before, and was left behind.
            empty = _empty(rollout)["metadata"]
            self._cluster.patch(
                "ConfigMap",
                namespace,
                name,
                {"metadata": {"ownerReferences": empty["ownerReferences"]}, "data": None},
            )
        newest = max(d.number or 0 for d in rollout.status.decisions)
        mark = {names.ANNOTATION_RECORDED: str(newest), **self._archived(rollout)}
        self._cluster.patch(
            "ConfigMap", namespace, name, {"metadata": {"annotations": mark}, "data": dict(changes)}
        )
        self._archive(rollout, found if mine else None, newest, changes)
        return None

    def _archive(
        self,
        rollout: KVQuantRollout,
        found: Object | None,
        recorded: int,
        changes: Mapping[str, str | None],
    ) -> None:
        """Have what is in the record written to the archive, too, if there is one."""
        if self._archivist is not None and recorded:
            lines = {int(key): text for key, text in changes.items() if text is not None}
            mark = _number(found, names.ANNOTATION_ARCHIVED)
            self._archivist.offer(_whose(rollout), min(mark, recorded), recorded, lines)

    def _archived(self, rollout: KVQuantRollout) -> dict[str, str]:
        """Return how far the archive is, so that the next process need not begin at the first."""
        done = None if self._archivist is None else self._archivist.done(_whose(rollout))
        return {} if done is None else {names.ANNOTATION_ARCHIVED: str(done)}


def _whose(rollout: KVQuantRollout) -> Whose:
    metadata = rollout.metadata
    return Whose(metadata.namespace, metadata.name, metadata.uid)


def _empty(rollout: KVQuantRollout) -> Object:
    """Return a record without decisions, which is deleted with its rollout."""
    metadata = rollout.metadata
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": record.name_of(metadata.name),
            "namespace": metadata.namespace,
            "labels": {names.LABEL_RECORD: "true", names.LABEL_ROLLOUT: metadata.name},
            "ownerReferences": [rollout.owner_reference],
        },
    }


def _number(found: Object | None, mark: str) -> int:
    """Return the number in a mark on a record; 0 when there is none, or somebody has spoilt it."""
    text = annotations_of(found).get(mark, "")
    return int(text) if text.isascii() and text.isdigit() else 0
