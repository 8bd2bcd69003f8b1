"""When passes run: what wakes a rollout's loop, what it survives, and how it ends.

The registered handlers are called as kopf calls them; kopf itself is tried against a real API
server elsewhere.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import kopf
import pytest

from kvquant import handlers, telemetry
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, Status
from kvquant.config import OperatorConfig
from kvquant.core.turn import Announcement
from kvquant.errors import Unavailable
from kvquant.reconciler import Ref, Result

REF = Ref("inference", "llama-fp8")
SOON = 5.0
"""Seconds in which anything must have happened; nothing takes that long."""


@dataclass
class FakeNotifier:
    """Remembers what it was to tell."""

    said: list[tuple[str, str, str, Phase]] = field(default_factory=list)

    def tell(self, namespace: str, name: str, told: Announcement, status: Status) -> None:
        self.said.append((namespace, name, told.reason, status.phase))


@dataclass
class FakeReconciler:
    """Passes as told: the next result or error of a list, then a long sleep."""

    results: list[Result | Exception] = field(default_factory=list)
    ends: list[Result | Exception] = field(default_factory=list)
    switch: list[str | Exception | None] = field(default_factory=list)
    calls: list[tuple[str, str | None]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    came_up: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    def reconcile(
        self,
        ref: Ref,
        cluster_kill: str | None = None,
        came_up: Callable[[], bool] | None = None,
    ) -> Result:
        self.came_up = came_up
        self.gate.wait(SOON)
        self.calls.append(("reconcile", cluster_kill))
        result: Result = _next(self.results, Result(3600))
        return result

    def finalize(self, ref: Ref) -> Result:
        self.calls.append(("finalize", None))
        result: Result = _next(self.ends, Result(0, done=True))
        return result

    def kill_switch(self, namespace: str) -> str | None:
        self.calls.append(("kill_switch", namespace))
        pulled: str | None = _next(self.switch, None)
        return pulled

    @property
    def passes(self) -> list[str | None]:
        return [kill for verb, kill in self.calls if verb == "reconcile"]


def _next(answers: list[Any], otherwise: Any) -> Any:
    answer = answers.pop(0) if answers else otherwise
    if isinstance(answer, Exception):
        raise answer
    return answer


class Stopped:
    """What kopf gives to a daemon to learn of its end."""

    def __init__(self) -> None:
        self.reason: kopf.DaemonStoppingReason | None = None
        self._event = asyncio.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    async def wait(self, seconds: float | None = None) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), seconds)

    def set(self, reason: kopf.DaemonStoppingReason) -> None:
        self.reason = reason
        self._event.set()


@dataclass
class Wiring:
    """The handlers by name, what they drive, and the Events that were posted."""

    reconciler: FakeReconciler
    registry: kopf.OperatorRegistry
    loops: handlers.Loops
    posted: list[str]
    told: FakeNotifier

    def handler(self, name: str) -> Callable[..., Any]:
        registries = (
            self.registry._activities,
            self.registry._watching,
            self.registry._spawning,
        )
        found = [
            h.fn for r in registries for h in r._handlers if getattr(h.fn, "__name__", "") == name
        ]
        assert len(found) == 1, name
        function: Callable[..., Any] = found[0]
        return function

    async def rollout_event(self, generation: int = 1, **annotations: str) -> None:
        meta = {
            "generation": generation,
            "annotations": {f"{names.GROUP}/{k}": v for k, v in annotations.items()},
        }
        await self.handler("rollout_changed")(namespace=REF.namespace, name=REF.name, meta=meta)

    async def kill_event(self, type_: str | None = "MODIFIED", **data: str) -> None:
        await self.handler("kill_switch_changed")(
            type=type_,
            namespace="kvquant-system",
            name=names.KILL_SWITCH_CONFIGMAP,
            body={"data": data},
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stopped]:
        """Run the daemon; end it as an operator's exit would, unless the test did before."""
        stopped = Stopped()
        daemon = asyncio.create_task(
            self.handler("run")(
                namespace=REF.namespace, name=REF.name, body=kopf.Body({}), stopped=stopped
            )
        )
        try:
            yield stopped
            if not stopped:
                assert not daemon.done(), "the daemon has ended by itself"
        finally:
            if not stopped:
                stopped.set(kopf.DaemonStoppingReason.OPERATOR_EXITING)
            self.reconciler.gate.set()
            await asyncio.wait_for(daemon, SOON)


async def until(condition: Callable[[], Any], message: str) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, message
        await asyncio.sleep(0.005)


async def settle() -> None:
    """Let everything that is ready to run have run, threads of passes included."""
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.to_thread(lambda: None)
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def wiring(monkeypatch: pytest.MonkeyPatch) -> Wiring:
    posted: list[str] = []
    monkeypatch.setattr(kopf, "event", lambda body, *, reason, **_: posted.append(reason))
    monkeypatch.setattr(handlers, "FIRST_BACKOFF", 0.001)
    reconciler, registry = FakeReconciler(), kopf.OperatorRegistry()
    told = FakeNotifier()
    loops = handlers.register(
        registry,
        reconciler,  # type: ignore[arg-type]
        OperatorConfig(),
        told,  # type: ignore[arg-type]
    )
    return Wiring(reconciler, registry, loops, posted, told)


# What a loop survives.


async def test_no_exception_ends_a_loop(wiring: Wiring) -> None:
    wiring.reconciler.results = [Unavailable("time-out"), RuntimeError("a bug"), ValueError("!")]
    async with wiring.running():
        await until(lambda: len(wiring.reconciler.passes) == 4, "it goes on after three errors")
    assert wiring.loops.by_ref == {}


async def test_an_event_that_cannot_be_posted_ends_no_loop(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise LookupError("no queue")

    monkeypatch.setattr(kopf, "event", fail)
    wiring.reconciler.results = [Result(0, (Announcement("Normal", "Started", "It begins."),))]
    async with wiring.running():
        await until(lambda: len(wiring.reconciler.passes) == 2, "it goes on")


async def test_failing_passes_come_less_and_less_often(
    wiring: Wiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def note(wake: asyncio.Event, stopped: Any, wait: float) -> None:
        waits.append(wait)
        if len(waits) == 20:
            stopped.set(kopf.DaemonStoppingReason.OPERATOR_EXITING)

    monkeypatch.setattr(handlers, "_first_of", note)
    monkeypatch.setattr(handlers, "FIRST_BACKOFF", 2.0)
    wiring.reconciler.results = [RuntimeError("x") for _ in range(10)]
    wiring.reconciler.results += [Result(7), *(RuntimeError("x") for _ in range(9))]
    async with wiring.running() as stopped:
        await until(lambda: bool(stopped), "twenty passes")
    assert 1.6 <= waits[0] <= 2.4
    assert max(waits) <= 1.2 * handlers.LONGEST_BACKOFF
    assert waits[9] >= 0.8 * handlers.LONGEST_BACKOFF
    assert waits[10] == 7
    assert waits[11] <= 2.4, "a pass that went well forgets the errors"


async def test_no_pass_runs_before_the_kill_switch_is_known(wiring: Wiring) -> None:
    wiring.reconciler.switch = [Unavailable("time-out"), "whole cluster: incident 7"]
    async with wiring.running():
        await until(lambda: wiring.reconciler.passes, "the first pass")
    assert wiring.reconciler.calls == [
        ("kill_switch", "kvquant-system"),
        ("kill_switch", "kvquant-system"),
        ("reconcile", "whole cluster: incident 7"),
    ]


# What wakes a loop.


async def test_what_people_change_wakes_a_loop_and_our_own_writes_do_not(wiring: Wiring) -> None:
    async with wiring.running():
        await until(lambda: len(wiring.reconciler.passes) == 1, "the first pass")
        await wiring.rollout_event()
        await until(lambda: len(wiring.reconciler.passes) == 2, "the first event may be news")
        for _ in range(3):
            await wiring.rollout_event()
            await settle()
        assert len(wiring.reconciler.passes) == 2
        await wiring.rollout_event(generation=2)
        await until(lambda: len(wiring.reconciler.passes) == 3, "an edit wakes it")
        await wiring.rollout_event(generation=2, abort="now")
        await until(lambda: len(wiring.reconciler.passes) == 4, "a request wakes it")
        await wiring.rollout_event(generation=2, abort="now", foreign="x")
        await settle()
        assert len(wiring.reconciler.passes) == 4


async def test_pods_wake_their_rollout_and_no_other(wiring: Wiring) -> None:
    changed = wiring.handler("pod_changed")
    async with wiring.running():
        await until(lambda: len(wiring.reconciler.passes) == 1, "the first pass")
        await changed(namespace=REF.namespace, labels={names.LABEL_ROLLOUT: "other"})
        await changed(namespace="elsewhere", labels={names.LABEL_ROLLOUT: REF.name})
        await changed(namespace=REF.namespace, labels={})
        await settle()
        assert len(wiring.reconciler.passes) == 1
        await changed(namespace=REF.namespace, labels={names.LABEL_ROLLOUT: REF.name})
        await until(lambda: len(wiring.reconciler.passes) == 2, "its own pod")


async def test_the_kill_switch_wakes_every_loop_with_the_reason(wiring: Wiring) -> None:
    async with wiring.running():
        await until(lambda: len(wiring.reconciler.passes) == 1, "the first pass")
        await wiring.kill_event(killed="true", by="Ada", reason="incident 7")
        await until(lambda: len(wiring.reconciler.passes) == 2, "pulled")
        await wiring.kill_event(type_="DELETED", killed="true")
        await until(lambda: len(wiring.reconciler.passes) == 3, "lifted")
        await wiring.handler("kill_switch_changed")(
            type="MODIFIED", namespace="other", name="any", body={"data": {"killed": "true"}}
        )
        await settle()
    assert wiring.reconciler.passes == [None, "whole cluster: incident 7 (by Ada)", None]


async def test_an_event_in_the_middle_of_a_pass_is_not_lost(wiring: Wiring) -> None:
    wiring.reconciler.gate.clear()
    async with wiring.running():
        await until(lambda: wiring.reconciler.calls, "the pass has begun")
        await wiring.rollout_event(generation=2)
        wiring.reconciler.gate.set()
        await until(lambda: len(wiring.reconciler.passes) == 2, "another pass follows")


async def test_a_pass_is_told_when_something_comes_up_that_it_should_not_wait_through(
    wiring: Wiring,
) -> None:
    wiring.reconciler.gate.clear()
    async with wiring.running():
        await until(lambda: wiring.reconciler.came_up, "the pass has begun")
        came_up = wiring.reconciler.came_up
        assert came_up is not None
        assert not came_up()
        await wiring.rollout_event(killed="by Ada")
        assert came_up()
        wiring.reconciler.gate.set()
        await until(lambda: len(wiring.reconciler.passes) == 2, "another pass follows")


# How a loop ends.


async def test_a_deleted_rollout_is_finalized_after_the_last_pass_until_it_may_go(
    wiring: Wiring,
) -> None:
    wiring.reconciler.ends = [Result(0), Unavailable("time-out"), Result(0, done=True)]
    async with wiring.running() as stopped:
        await until(lambda: wiring.reconciler.passes, "the first pass")
        stopped.set(kopf.DaemonStoppingReason.RESOURCE_DELETED)
    verbs = [verb for verb, _ in wiring.reconciler.calls]
    assert verbs == ["kill_switch", "reconcile", "finalize", "finalize", "finalize"]
    # The last event of the object comes when its daemon is gone, and must not bring a loop back.
    await wiring.handler("rollout_changed")(
        type="DELETED", namespace=REF.namespace, name=REF.name, meta={"generation": 3}
    )
    assert wiring.loops.by_ref == {}


async def test_an_operator_that_exits_finalizes_nothing(wiring: Wiring) -> None:
    async with wiring.running() as stopped:
        await until(lambda: wiring.reconciler.passes, "the first pass")
        stopped.set(kopf.DaemonStoppingReason.OPERATOR_EXITING)
    assert "finalize" not in [verb for verb, _ in wiring.reconciler.calls]


async def test_the_probe_fails_when_a_pass_hangs_and_not_while_it_sleeps(wiring: Wiring) -> None:
    probe = wiring.handler("every_loop_turns")
    assert await probe() == 0
    async with wiring.running():
        await until(lambda: wiring.reconciler.passes, "the first pass")
        await settle()
        assert await probe() == 1, "sleeping for an hour is no fault"
        wiring.reconciler.gate.clear()
        await wiring.rollout_event()
        wiring.loops.by_ref[REF].due = time.monotonic() - OperatorConfig().stuck_after - 1
        with pytest.raises(kopf.PermanentError, match="llama-fp8"):
            await probe()


# What is told.


async def test_decisions_become_events_and_metrics(wiring: Wiring) -> None:
    wiring.reconciler.results = [
        Result(
            3600,
            (Announcement("Normal", "Started", "It begins."),),
            before=Status(),
            after=Status(phase=Phase.PROVISIONING),
        )
    ]
    async with wiring.running() as stopped:
        await until(lambda: wiring.posted, "an Event")
        phase = telemetry.PHASE.labels(REF.namespace, REF.name, "Provisioning")
        assert phase._value.get() == 1
        stopped.set(kopf.DaemonStoppingReason.RESOURCE_DELETED)
    assert wiring.posted == ["Started"]
    assert wiring.told.said == [(REF.namespace, REF.name, "Started", Phase.PROVISIONING)]
    left = [
        s for m in telemetry.PHASE.collect() for s in m.samples if REF.name in s.labels.values()
    ]
    assert left == [], "no series outlives its rollout"


async def test_passes_that_wait_do_not_keep_others_from_theirs(wiring: Wiring) -> None:
    await wiring.handler("configure")(settings=kopf.OperatorSettings())
    # It opens only when that many have come, as no default number of threads on a small node would.
    together = threading.Barrier(handlers.PASSES_AT_ONCE, timeout=10)
    await asyncio.gather(
        *(asyncio.to_thread(together.wait) for _ in range(handlers.PASSES_AT_ONCE))
    )


async def test_kopf_is_set_up_to_watch_little_and_to_write_nothing(wiring: Wiring) -> None:
    settings = kopf.OperatorSettings()
    await wiring.handler("configure")(settings=settings)
    assert settings.persistence.finalizer == names.FINALIZER
    assert settings.peering.standalone
    assert settings.watching.label_selectors["", "v1", "configmaps"] == names.LABEL_KILL_SWITCH
    assert settings.watching.label_selectors["", "v1", "pods"] == names.LABEL_POOL
    assert wiring.registry._changing._handlers == [], "change handlers would race with the daemon"
    (daemon,) = wiring.registry._spawning._handlers
    assert getattr(daemon, "cancellation_timeout", 0) is None, (
        "else a rollout could vanish with shifted traffic"
    )
