"""What happens to a rollout, read from its status and printed as it happens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import click

from kvquant.adapters.connection import Connection
from kvquant.api import names
from kvquant.api.v1alpha1 import (
    DecisionKind,
    DecisionRecord,
    KVQuantRollout,
    Phase,
    ShadowReport,
    Status,
)
from kvquant.core.record import fingerprint
from kvquant.errors import ClusterError

NAMESPACE = "inference"
POLL = 0.5
"""Seconds between two looks."""

COLOURS = {"Promote": "green", "RollBack": "red", "Advance": "cyan", "Kill": "red"}


@dataclass(frozen=True, slots=True)
class Stage:
    """What the committed status was from an instant on.

    Attributes:
        since: When it was first seen, in seconds of `time.time`.
        rollout: Name of the rollout.
        label: Phase and step for people.
        weight: The canary's weight in per cent.
        mark: Fingerprint in the answers of this attempt's canary.
        mirror: Share of the requests that is copied, in per cent.
    """

    since: float
    rollout: str
    label: str
    weight: int
    mark: str = ""
    mirror: int = 0


@dataclass(slots=True)
class Watch:
    """Follows rollouts, one after the other, and prints what is new.

    Attributes:
        stages: Every stage seen, in order.
    """

    connection: Connection
    stages: list[Stage] = field(default_factory=list)
    _pairs: dict[str, ShadowReport | None] = field(default_factory=dict)
    _printed: set[tuple[str, datetime, str]] = field(default_factory=set)

    def until(
        self,
        rollout: str,
        ended: Callable[[Status], bool],
        timeout: float,
        *meanwhile: Callable[[Status], None],
    ) -> Status:
        """Follow a rollout until its status satisfies `ended`, and return that status.

        Raises:
            TimeoutError: It did not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            seen = self._look(rollout)
            status = seen.status if seen is not None else None
            if seen is not None and status is not None:
                self._tell(seen)
                for each in meanwhile:
                    each(status)
                if ended(status):
                    return status
            if time.monotonic() > deadline:
                last = status.verdict if status is not None else "it could not be read"
                raise TimeoutError(f"rollout {rollout} did not end in {timeout:g} s: {last}")
            time.sleep(POLL)

    def _look(self, rollout: str) -> KVQuantRollout | None:
        path = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}/{rollout}"
        try:
            raw: dict[str, Any] = self.connection.expect("GET", path, subject=rollout)
        except ClusterError:
            return None
        return KVQuantRollout.parse(raw)

    def _tell(self, seen: KVQuantRollout) -> None:
        rollout, status = seen.metadata.name, seen.status
        mark = fingerprint(seen.metadata.uid, status.attempt)
        weights = status.weights
        stage = Stage(time.time(), rollout, _label(status), weights.canary, mark, weights.mirror)
        last = self.stages[-1] if self.stages else None
        if last is None or (last.rollout, last.label, last.weight) != (
            rollout,
            stage.label,
            stage.weight,
        ):
            self.stages.append(stage)
        if status.shadow is not None and status.shadow != self._pairs.get(rollout):
            self._pairs[rollout] = status.shadow
            _print_pairs(status.shadow)
        for decision in status.decisions:
            key = (rollout, decision.at, decision.reason)
            if key not in self._printed:
                self._printed.add(key)
                _print_decision(decision)


def _label(status: Status) -> str:
    if status.phase is Phase.PROGRESSING:
        return f"step {status.step_label}"
    return status.phase.value


def _print_pairs(shadow: ShadowReport) -> None:
    at = shadow.at.astimezone().strftime("%H:%M:%S")
    wanted = "" if shadow.min_pairs is None else f" of {shadow.min_pairs}"
    told = f"{shadow.pairs}{wanted} pairs compared, {shadow.replaced or 0} values replaced"
    click.echo(click.style(f"  {at}   copies: {told}: {shadow.verdict.value}", dim=True))


def _print_decision(decision: DecisionRecord) -> None:
    at = decision.at.astimezone().strftime("%H:%M:%S")
    if decision.kind is DecisionKind.HOLD:
        click.echo(click.style(f"  {at}   waits: {decision.message}", dim=True))
        return
    reason = click.style(f"{decision.reason:<20}", fg=COLOURS.get(decision.kind.value), bold=True)
    click.echo(f"  {at} {reason} canary {decision.weight:>3} %  {decision.message}")
