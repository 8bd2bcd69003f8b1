"""kopf, and nothing else: when a pass runs. What a pass does is in `reconciler`.

One daemon a rollout runs passes in a thread; event handlers only wake it. There are no timers and
no delete handlers, because both overlap with a daemon's pass.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import kopf

from kvquant import telemetry
from kvquant.api import names
from kvquant.config import OperatorConfig
from kvquant.notifying import Notifier
from kvquant.reconciler import Reconciler, Ref, Result
from kvquant.world import kill_switch

logger = logging.getLogger(__name__)

PASSES_AT_ONCE = 64
"""Passes that may wait for a server at the same time; each is a thread, made when it is needed."""

FIRST_BACKOFF, LONGEST_BACKOFF = 2.0, 60.0
"""Seconds between passes that fail: the first wait, doubled up to the longest."""


@dataclass(slots=True)
class Loop:
    """One rollout's daemon: how to wake it, and when it must have finished a pass."""

    wake: asyncio.Event = field(default_factory=asyncio.Event)
    due: float = field(default_factory=time.monotonic)
    seen: tuple[Any, ...] = ()


@dataclass(slots=True)
class Loops:
    """All daemons of this process, and what concerns them all."""

    by_ref: dict[Ref, Loop] = field(default_factory=dict)
    cluster_kill: str | None = None
    kill_is_known: bool = False
    """Whether the kill switch was read. No pass may run before: it would take it for lifted."""
    event_loop: asyncio.AbstractEventLoop | None = None
    """Where the daemons run, once kopf has started."""

    def of(self, ref: Ref) -> Loop:
        """Return the loop of a rollout, made on first use."""
        return self.by_ref.setdefault(ref, Loop())

    def wake(self, ref: Ref) -> None:
        """Let a rollout's next pass begin now."""
        if ref in self.by_ref:
            self.by_ref[ref].wake.set()

    def wake_soon(self, ref: Ref) -> None:
        """Let a rollout's next pass begin now; for callers in any thread."""
        if self.event_loop is not None:
            # A loop that is closed has no daemon that could be woken.
            with suppress(RuntimeError):
                self.event_loop.call_soon_threadsafe(self.wake, ref)

    def wake_all(self) -> None:
        """Let every rollout's next pass begin now."""
        for loop in self.by_ref.values():
            loop.wake.set()

    def stuck(self, after: float) -> list[Ref]:
        """Return the rollouts whose pass is overdue by that many seconds."""
        now = time.monotonic()
        return [ref for ref, loop in self.by_ref.items() if now > loop.due + after]


def register(
    registry: kopf.OperatorRegistry,
    reconciler: Reconciler,
    config: OperatorConfig,
    notifier: Notifier | None = None,
) -> Loops:
    """Register every handler and return the loops that they drive.

    Args:
        registry: Where to register them.
        reconciler: What a pass does.
        config: The operator's configuration.
        notifier: Whom to tell besides what is posted as Events; None: nobody.
    """
    loops = Loops()
    resource = (names.GROUP, names.VERSION, names.PLURAL)

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # A registry of our own has no default way to log in. A token that was rotated is read
        # again, because kopf logs in anew when the API server no longer takes the old one.
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        loops.event_loop = asyncio.get_running_loop()
        # By default there are four threads more than cores: a few rollouts whose pass waits for a
        # server that hangs would keep everybody else's kill switch from being seen.
        loops.event_loop.set_default_executor(
            ThreadPoolExecutor(PASSES_AT_ONCE, thread_name_prefix="pass")
        )
        settings.persistence.finalizer = names.FINALIZER
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=names.GROUP)
        settings.peering.standalone = True
        settings.scanning.disabled = True
        settings.networking.request_timeout = 30
        settings.process.ultimate_exiting_timeout = 10
        settings.posting.reporting_component = names.FIELD_MANAGER
        settings.watching.label_selectors["", "v1", "pods"] = names.LABEL_POOL
        settings.watching.label_selectors["", "v1", "configmaps"] = names.LABEL_KILL_SWITCH

    @kopf.on.event(*resource, registry=registry)
    async def rollout_changed(namespace: str | None, name: str | None, meta: Any, **_: Any) -> None:
        # Our own status writes come back as events too; only what people change wakes the loop.
        asked = meta.get("annotations", {})
        seen = (
            meta.get("generation"),
            meta.get("deletionTimestamp"),
            *(asked.get(annotation) for annotation in names.REQUEST_ANNOTATIONS),
        )
        # Only a daemon makes a loop: the last event of a rollout comes when its daemon is gone.
        loop = loops.by_ref.get(Ref(str(namespace), str(name)))
        if loop is not None and loop.seen != seen:
            loop.seen = seen
            loop.wake.set()

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod_changed(namespace: str | None, labels: Any, **_: Any) -> None:
        rollout = labels.get(names.LABEL_ROLLOUT)
        if rollout:
            loops.wake(Ref(str(namespace), rollout))

    @kopf.on.event("", "v1", "configmaps", registry=registry)
    async def kill_switch_changed(
        type: str | None,  # noqa: A002 - kopf's own name for it
        namespace: str | None,
        name: str | None,
        body: Any,
        **_: Any,
    ) -> None:
        if namespace != config.namespace or name != names.KILL_SWITCH_CONFIGMAP:
            return
        loops.cluster_kill = None if type == "DELETED" else kill_switch(dict(body))
        loops.kill_is_known = True
        loops.wake_all()

    # A deleted rollout vanishes when kopf next looks whether its daemon has ended: by default, that
    # is a minute later.
    @kopf.daemon(*resource, registry=registry, cancellation_polling=1.0)
    async def run(
        namespace: str | None,
        name: str | None,
        body: kopf.Body,
        stopped: kopf.DaemonStopped,
        **_: Any,
    ) -> None:
        ref = Ref(str(namespace), str(name))
        loop = loops.of(ref)
        backoff = FIRST_BACKOFF

        def reconcile(ref: Ref) -> Result:
            if not loops.kill_is_known:
                pulled = reconciler.kill_switch(config.namespace)
                if not loops.kill_is_known:  # else an event brought something newer meanwhile
                    loops.cluster_kill, loops.kill_is_known = pulled, True
            # A loop that is woken in mid-pass does not let somebody wait who pulls a kill switch.
            return reconciler.reconcile(ref, loops.cluster_kill, loop.wake.is_set)

        try:
            while not stopped:
                loop.wake.clear()
                result = await _pass(reconcile, ref, body, notifier)
                if result is None:
                    wait = backoff * random.uniform(0.8, 1.2)  # noqa: S311 - jitter, not secrecy
                    backoff = min(backoff * 2, LONGEST_BACKOFF)
                else:
                    wait, backoff = result.requeue_after, FIRST_BACKOFF
                loop.due = time.monotonic() + wait
                await _first_of(loop.wake, stopped, wait)
            reason = stopped.reason
            if reason is not None and kopf.DaemonStoppingReason.RESOURCE_DELETED in reason:
                await _finalize(reconciler, ref, body, loop, notifier)
                telemetry.forget(ref.namespace, ref.name)
        finally:
            # A loop that is left behind would count as stuck for ever.
            loops.by_ref.pop(ref, None)

    @kopf.on.probe(registry=registry)
    async def every_loop_turns(**_: Any) -> int:
        stuck = loops.stuck(config.stuck_after)
        if stuck:
            raise kopf.PermanentError(f"no pass for {config.stuck_after:g} s beyond due: {stuck}")
        return len(loops.by_ref)

    return loops


async def _pass(
    function: Callable[[Ref], Result], ref: Ref, body: kopf.Body, notifier: Notifier | None
) -> Result | None:
    """Run one pass in a thread and post its Events; None when it failed and was logged."""
    try:
        with telemetry.PASS_SECONDS.time():
            result = await asyncio.to_thread(function, ref)
        _tell(ref, body, result, notifier)
    except Exception as error:
        # Nothing may end the daemon: kopf would not start it again in this process.
        telemetry.PASS_ERRORS.labels(type(error).__name__).inc()
        logger.exception("Pass over %s/%s failed", ref.namespace, ref.name)
        return None
    return result


def _tell(ref: Ref, body: kopf.Body, result: Result, notifier: Notifier | None) -> None:
    """Export what a pass has changed, post its Events and have them told."""
    if result.before is not None and result.after is not None:
        telemetry.report(ref.namespace, ref.name, result.before, result.after)
    for told in result.announcements:
        kopf.event(body, type=told.type, reason=told.reason, message=told.message)
        if notifier is not None and result.after is not None:
            notifier.tell(ref.namespace, ref.name, told, result.after)
        logger.info(
            "%s/%s %s: %s",
            ref.namespace,
            ref.name,
            told.reason,
            told.message,
            extra={"rollout": f"{ref.namespace}/{ref.name}", "reason": told.reason},
        )


async def _finalize(
    reconciler: Reconciler, ref: Ref, body: kopf.Body, loop: Loop, notifier: Notifier | None
) -> None:
    """Run the end of a deleted rollout until it may vanish; traffic leaves before pods do."""
    while True:
        result = await _pass(reconciler.finalize, ref, body, notifier)
        if result is not None and result.done:
            return
        wait = FIRST_BACKOFF if result is None else result.requeue_after
        loop.due = time.monotonic() + wait
        await asyncio.sleep(wait)


async def _first_of(wake: asyncio.Event, stopped: kopf.DaemonStopped, wait: float) -> None:
    """Wait for a wake, for the daemon's end or for the time to pass, whichever comes first."""
    waiters = [
        asyncio.create_task(wake.wait()),
        asyncio.create_task(_stop(stopped, wait)),
    ]
    _, pending = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    for waiter in pending:
        waiter.cancel()


async def _stop(stopped: kopf.DaemonStopped, wait: float) -> None:
    await stopped.wait(wait)
