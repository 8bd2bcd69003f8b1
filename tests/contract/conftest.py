"""The targets of the contract suite: the fake, a real API server, and one read by watches."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from kvquant.adapters.cluster import RESOURCES, KubernetesCluster
from kvquant.adapters.connection import MERGE_PATCH, Connection
from kvquant.adapters.watching import WATCHED, WatchedCluster
from kvquant.ports import Cluster, Object
from tests.fakes.cluster import FakeCluster
from tests.fakes.merging import merge_patch
from tests.waiting import wait_until


class Target(Protocol):
    """A cluster with a namespace of the test's own."""

    namespace: str

    @property
    def cluster(self) -> Cluster:
        """The port under test."""

    def edit_as_other(self, kind: str, name: str, patch: Object) -> None:
        """Let another client change an object by a merge patch."""


class FakeTarget:
    """The fake, alone in the world."""

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.namespace = "contract"

    def edit_as_other(self, kind: str, name: str, patch: Object) -> None:
        def change(obj: Object) -> None:
            merged: dict[str, Any] = merge_patch(obj, patch)
            obj.clear()
            obj.update(merged)

        self.cluster.edit(kind, self.namespace, name, change)


class RealTarget:
    """A namespace of a real API server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.cluster: Cluster = KubernetesCluster(connection)
        self.namespace = f"contract-{uuid.uuid4().hex[:8]}"
        connection.expect(
            "POST",
            "/api/v1/namespaces",
            subject=f"namespace {self.namespace}",
            body={
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": self.namespace},
            },
        )

    def edit_as_other(self, kind: str, name: str, patch: Object) -> None:
        self.edited(kind, name, patch)

    def edited(self, kind: str, name: str, patch: Object) -> Object:
        return self._connection.expect(
            "PATCH",
            RESOURCES[kind].path(self.namespace, name),
            subject=f"{kind} {name}",
            query={"fieldManager": "somebody-else"},
            body=patch,
            content_type=MERGE_PATCH,
        )


class WatchedTarget(RealTarget):
    """The same, read by watches that have begun before the test does.

    What others change is seen a moment later, which is the one thing that differs from the others.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.cluster = self.watched = WatchedCluster(connection)
        for kind in WATCHED:
            self.watched.get(kind, self.namespace, "none")

    def edit_as_other(self, kind: str, name: str, patch: Object) -> None:
        after = self.edited(kind, name, patch)["metadata"]["resourceVersion"]

        def seen() -> bool:
            found = self.watched.get(kind, self.namespace, name)
            return found is not None and int(found["metadata"]["resourceVersion"]) >= int(after)

        wait_until(seen, 5, "the watch should tell of the edit", interval=0.005)


@pytest.fixture(
    params=[
        "fake",
        pytest.param("real", marks=pytest.mark.apiserver),
        pytest.param("watched", marks=pytest.mark.apiserver),
    ]
)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    if request.param != "fake":
        request.getfixturevalue("gateway_api")
    if request.param == "fake":
        yield FakeTarget()
    elif request.param == "real":
        yield RealTarget(request.getfixturevalue("connection"))
    else:
        watched = WatchedTarget(request.getfixturevalue("connection"))
        yield watched
        watched.watched.close()
