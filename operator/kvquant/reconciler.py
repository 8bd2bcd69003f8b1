"""One pass over one rollout: act on what is persisted, observe, decide, persist.

Synchronous and idempotent. A crash between any two calls costs a repetition and nothing else,
because the status is written last and everything before it repeats safely.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError

from kvquant.acting import Actor
from kvquant.analysing import Analyses
from kvquant.api import names
from kvquant.api.conditions import Standing, set_standing
from kvquant.api.v1alpha1 import Condition, KVQuantRollout, Phase, Status
from kvquant.archiving import Archivist
from kvquant.core.alerts import Heard
from kvquant.core.machine import decide
from kvquant.core.observation import Problem
from kvquant.core.plan import Plan
from kvquant.core.ticking import GRID
from kvquant.core.turn import Announcement
from kvquant.errors import Conflict, Refused, TemplateError
from kvquant.observing import alert_watch, observe, requests
from kvquant.patience import Questions, SomethingCameUp
from kvquant.ports import Alerts, Clock, Cluster, Metrics, Object, Traffic
from kvquant.recording import Recorder
from kvquant.world import World, identity, kill_switch, read

logger = logging.getLogger(__name__)

INVALID_RETRY = 60.0
"""Seconds until a rollout that this version cannot read is looked at again."""


HAND_OVER_GRACE = timedelta(seconds=60)
"""Time beyond the drain for which the deletion of a rollout waits while traffic is handed over."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Which rollout."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Result:
    """Outcome of a pass.

    Attributes:
        requeue_after: Seconds until the next pass.
        announcements: Events to post.
        done: Whether the rollout is gone, or may go.
        before: Status at the beginning of the pass, once it could be read.
        after: Status at its end, as persisted.
    """

    requeue_after: float
    announcements: tuple[Announcement, ...] = ()
    done: bool = False
    before: Status | None = None
    after: Status | None = None


class Reconciler:
    """Runs passes. Safe to share between threads, one rollout being in one thread at a time."""

    def __init__(
        self,
        cluster: Cluster,
        metrics: Metrics,
        traffic: Traffic,
        clock: Clock,
        actor: Actor,
        alerts: Alerts | None = None,
        grid: timedelta = GRID,
        archivist: Archivist | None = None,
    ) -> None:
        """Make it ready for passes.

        Args:
            cluster: The Kubernetes API.
            metrics: Prometheus.
            traffic: The data plane's weights.
            clock: The present instant.
            actor: What does to the cluster what statuses say.
            alerts: What is heard of alerts; None where nobody listens.
            grid: Time between two ticks of the evidence.
            archivist: Writes decisions to an archive; None where there is none.
        """
        self._cluster = cluster
        self._analyses = Analyses(grid)
        self._metrics = metrics
        self._questions = Questions(metrics)
        self._traffic = traffic
        self._clock = clock
        self._actor = actor
        self._recorder = Recorder(cluster, archivist)
        self._alerts = alerts

    def reconcile(
        self,
        ref: Ref,
        cluster_kill: str | None = None,
        came_up: Callable[[], bool] | None = None,
    ) -> Result:
        """Run one pass.

        Args:
            ref: The rollout.
            cluster_kill: Who pulled the cluster-wide kill switch, if it is pulled.
            came_up: Tells whether there is something new to look at, for which a pass that waits
                for Prometheus is given up; without it, passes wait to the end.

        Raises:
            ClusterError: The API server did not do what was asked; try again later.
        """
        raw = self._cluster.get(names.KIND, ref.namespace, ref.name)
        if raw is None:
            self._forget(ref)
            return Result(0, done=True)
        try:
            world = read(self._cluster, raw)
        except ValidationError as error:
            return self._unreadable(raw, error)
        metrics = self._metrics if came_up is None else self._questions.until(came_up)
        try:
            return self._pass(world, metrics, cluster_kill, deleting=False)
        except SomethingCameUp:
            return Result(0)

    def finalize(self, ref: Ref) -> Result:
        """Run one pass of the end of a deleted rollout; `done` when it may vanish.

        A rollout on its way is rolled back first. A promoted pool keeps serving, and so does a
        target that has adopted its dtype: only the rollout goes, not what it has brought.

        Raises:
            ClusterError: The API server did not do what was asked; try again later.
        """
        raw = self._cluster.get(names.KIND, ref.namespace, ref.name)
        if raw is None:
            self._forget(ref)
            return Result(0, done=True)
        try:
            world = read(self._cluster, raw)
        except ValidationError as error:
            status = raw.get("status") or {}
            shifted = (status.get("weights") or {}).get("canary", 0) > 0
            if shifted and status.get("phase") != Phase.PROMOTED:
                # Were it to vanish now, nobody would ever take the traffic back.
                return self._unreadable(raw, error)
            logger.exception("A deleted rollout cannot be read; only its autoscaler is given back")
            holder = f"{ref.name}/{raw['metadata'].get('uid', '')}"
            try:
                self._actor.release_autoscalers(ref.namespace, holder)
            except Conflict:
                return Result(0)
            return Result(0, done=True)
        if world.rollout.status.phase not in (Phase.PENDING, Phase.PROMOTED, Phase.ROLLED_BACK):
            return self._pass(world, self._metrics, None, deleting=True)
        if _hands_over(world.rollout, self._clock()):
            return self._pass(world, self._metrics, None, deleting=True)
        self._deaf(ref)
        try:
            if world.rollout.status.phase is Phase.PROMOTED:
                self._actor.hand_over(world, self._clock())
            else:
                # A rollout that waits to be tried again has a pool from the time before.
                self._actor.give_back(world, self._clock())
            self._actor.release(world)
            self._actor.release_autoscalers(ref.namespace, identity(world.rollout))
        except Conflict:
            return Result(0)
        return Result(0, done=True)

    def kill_switch(self, namespace: str) -> str | None:
        """Return who pulled the cluster-wide kill switch and why; None when it is not pulled.

        Args:
            namespace: The operator's own.

        Raises:
            ClusterError: The API server did not answer.
        """
        return kill_switch(self._cluster.get("ConfigMap", namespace, names.KILL_SWITCH_CONFIGMAP))

    def _pass(
        self, world: World, metrics: Metrics, cluster_kill: str | None, *, deleting: bool
    ) -> Result:
        rollout = world.rollout
        problem = None
        try:
            self._actor.act(world, self._clock())
        except Conflict:
            # What was read is no longer so, such as a pod that is gone by now.
            return Result(0)
        except (TemplateError, Refused) as error:
            # What cannot be done must not keep a rollback from being decided.
            logger.warning("Cannot do what the status says: %s", error)
            reason = error.reason if isinstance(error, TemplateError) else "RefusedByAPIServer"
            problem = Problem(reason, str(error))
        problem = problem or world.route_problem
        # After the weights, which must not wait for it.
        self._recorder.keep(world)
        now = self._clock()
        asked = requests(world, cluster_kill, deleting=deleting)
        alerts = self._heard(world)
        seen = observe(
            world,
            asked,
            self._cluster,
            metrics,
            self._traffic,
            now,
            self._analyses,
            problem,
            alerts,
        )
        decision = decide(Plan.of(rollout.spec), rollout.status, seen, now)
        if decision.status != rollout.status:
            document = rollout.model_copy(update={"status": decision.status}).status_document()
            try:
                self._cluster.replace_status({**world.raw, "status": document})
            except Conflict:
                # Somebody else wrote first: what was decided here is void.
                return Result(0)
        if self._alerts is not None and alerts is not None:
            self._alerts.stored(alerts.watch, alerts.mark)
        # Weights are served by the next pass. Until then they are but words: a kill switch, above
        # all, must not wait for whatever this phase waits for.
        if decision.status.settled:
            self._analyses.forget(rollout.metadata.namespace, rollout.metadata.name)
        moved = decision.status.weights != rollout.status.weights
        return Result(
            0.0 if moved else decision.requeue_after.total_seconds(),
            decision.announcements,
            before=rollout.status,
            after=decision.status,
        )

    def _forget(self, ref: Ref) -> None:
        """Drop what is remembered of a rollout that is gone."""
        self._deaf(ref)
        self._analyses.forget(ref.namespace, ref.name)
        self._recorder.forget(ref.namespace, ref.name)

    def _heard(self, world: World) -> Heard | None:
        """Return what is known of alerts; None for a rollout that has nothing to go back to."""
        if self._alerts is None:
            return None
        status, watch = world.rollout.status, alert_watch(world)
        if status.settled and status.phase is Phase.PROMOTED:
            self._alerts.forget(watch.namespace, watch.rollout)
            return None
        return self._alerts.heard(watch)

    def _deaf(self, ref: Ref) -> None:
        """Hear no more of alerts for a rollout that is gone or about to go."""
        if self._alerts is not None:
            self._alerts.forget(ref.namespace, ref.name)

    def _unreadable(self, raw: Object, error: ValidationError) -> Result:
        """Say once, in a condition and an Event, why it cannot be read; touch nothing else."""
        self._deaf(Ref(raw["metadata"]["namespace"], raw["metadata"]["name"]))
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problem = Problem("InvalidSpec", f"{where or 'status'}: {first['msg']}")
        logger.error("Rollout cannot be read: %s", problem.message)
        status = raw.get("status") or {}
        try:
            known = tuple(Condition.model_validate(c) for c in status.get("conditions") or ())
        except (TypeError, ValidationError):
            known = ()
        generation = raw["metadata"].get("generation", 0)
        conditions = set_standing(
            known, Standing.FAILED, problem.reason, problem.message, self._clock(), generation
        )
        if conditions == known:
            return Result(INVALID_RETRY)
        told = [c.model_dump(mode="json", by_alias=True, exclude_none=True) for c in conditions]
        try:
            self._cluster.replace_status({**raw, "status": {**status, "conditions": told}})
        except Conflict:
            return Result(0)
        except Refused:
            # An object that the CRD has outgrown takes no status any more: the Event has to do.
            logger.warning("The condition that tells it is refused")
        return Result(INVALID_RETRY, (Announcement("Warning", problem.reason, problem.message),))


def _hands_over(rollout: KVQuantRollout, now: datetime) -> bool:
    """Tell whether the traffic is on its way to the target and soon done.

    When routers or pods take longer, both pools stay as they are: a deletion must come to an end.
    """
    adoption = rollout.status.adoption
    if adoption is None or not (rollout.status.adopting and rollout.status.handed_back):
        return False
    allowed = Plan.of(rollout.spec).drain_timeout + HAND_OVER_GRACE
    return adoption.since <= now < adoption.since + allowed
