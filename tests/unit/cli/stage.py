"""A stage for the CLI: a cluster in memory, a clock that waits as it is told, an operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from click.testing import CliRunner, Result

from kvquant.cli.paint import Paint
from kvquant.cli.program import kvquant
from kvquant.cli.session import Access, Connected, Proxied, Surroundings
from kvquant.errors import ClusterError
from tests.fakes.cluster import FakeCluster
from tests.unit.cli import made

Operator = Callable[[dict[str, Any]], None]
"""Plays the operator: changes a rollout in place, as one pass would."""


def _nothing_there(*_: object) -> tuple[int, str]:
    return 404, ""


@dataclass(slots=True)
class Stage:
    """Runs the CLI against a cluster in memory.

    Attributes:
        cluster: The cluster.
        operator: Plays the operator whenever the CLI waits; None: there is none.
        refuses: What connecting raises instead.
        accesses: How the CLI asked to connect.
        answers: What a GET to the API server returns, by path.
        proxied: What a request through the API server's proxy returns.
        fetched: Paths and queries of these GETs.
        waited: Seconds that the CLI has waited.
        breaks_after: Waits after which the user presses Ctrl-C.
    """

    cluster: FakeCluster = field(default_factory=FakeCluster)
    operator: Operator | None = None
    refuses: ClusterError | None = None
    accesses: list[Access] = field(default_factory=list)
    answers: Callable[[str, Mapping[str, str]], tuple[int, str]] = lambda *_: (404, "")
    proxied: Proxied = _nothing_there
    fetched: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    waited: float = 0.0
    breaks_after: float = 1e9
    paint: Paint = field(default_factory=Paint)
    namespace: str = "inference"

    def put(self, *raws: dict[str, Any]) -> None:
        for raw in raws:
            self.cluster.put(raw)

    def run(self, *arguments: str, program: str = "kvquant") -> Result:
        """Run the program; stdout and stderr are apart."""
        around = Surroundings(
            connect=self._connect,
            now=self._now,
            sleep=self._sleep,
            monotonic=lambda: self.waited,
            user=lambda: "alice",
            environment={},
            paint=lambda: self.paint,
        )
        return CliRunner().invoke(kvquant, arguments, obj=around, prog_name=program)

    def rollout(self, name: str = "llama-fp8") -> dict[str, Any]:
        raw = self.cluster.get("KVQuantRollout", "inference", name)
        assert raw is not None
        return raw

    def annotations(self, name: str = "llama-fp8") -> dict[str, str]:
        return dict(self.rollout(name)["metadata"].get("annotations") or {})

    def _connect(self, access: Access) -> Connected:
        self.accesses.append(access)
        if self.refuses is not None:
            raise self.refuses
        return Connected(self.cluster, self.namespace, self._fetch, self.proxied)

    def _fetch(self, path: str, query: Mapping[str, str]) -> tuple[int, str]:
        self.fetched.append((path, query))
        return self.answers(path, query)

    def _now(self) -> datetime:
        return made.NOW + timedelta(seconds=self.waited)

    def _sleep(self, seconds: float) -> None:
        self.waited += seconds
        if self.waited >= self.breaks_after:
            raise KeyboardInterrupt
        if self.operator is not None:
            for raw in self.cluster.objects("KVQuantRollout"):
                meta = raw["metadata"]
                self.cluster.edit("KVQuantRollout", meta["namespace"], meta["name"], self.operator)
