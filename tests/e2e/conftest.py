"""One real node for the whole session, and a namespace with its own pools for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from kvlocal import product
from kvlocal.cluster import Cluster
from kvquant.adapters.connection import Connection
from tests.e2e.stage import Stage


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A fresh cluster with Prometheus and the operator; KEEP=1 leaves it up to look at.

    KVQUANT_E2E_CLUSTER gives it another name, so that two sessions may run beside each other.
    """
    cluster = product.start(os.environ.get("KVQUANT_E2E_CLUSTER", "e2e"))
    yield cluster
    if os.environ.get("KEEP", "") in ("", "0"):
        cluster.down()


@pytest.fixture(scope="session")
def connection(cluster: Cluster) -> Iterator[Connection]:
    """An administrator's connection."""
    connection = Connection.from_kubeconfig(str(cluster.kubeconfig))
    yield connection
    connection.close()


@pytest.fixture
def stage(cluster: Cluster, connection: Connection) -> Iterator[Stage]:
    """A namespace of the test's own, emptied after it: two cores hold few pods."""
    stage = Stage(cluster, connection, f"e2e-{uuid.uuid4().hex[:6]}")
    stage.open()
    yield stage
    stage.close()
