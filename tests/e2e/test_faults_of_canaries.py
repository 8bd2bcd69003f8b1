"""Canaries that fail, each in its own way: rolled back, the cause named, the baseline untouched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from kvdemo.load import Load
from kvlocal.cluster import Cluster
from kvquant.adapters.connection import Connection
from kvquant.api.v1alpha1 import Phase, Status
from tests.e2e.stage import QUICK, ROUTER, Stage, cause_of, failures

pytestmark = [pytest.mark.node, pytest.mark.timeout(300)]

OOM, SILENT, STILLBORN = "fp8", "fp8_e4m3", "int4"
FAULTS = f"{OOM}:oom_after=20;{SILENT}:hang_after=20;int4_per_token_head:fail_start"
PATIENCE = 5.0
"""Seconds that the router waits for an answer."""
TIMED_OUT = ("HTTP 504", "ClientPayloadError", "the stream ended")


@pytest.fixture(scope="module")
def pool(cluster: Cluster, connection: Connection) -> Iterator[Stage]:
    """A baseline from which every canary inherits faults of its own."""
    stage = Stage(cluster, connection, "e2e-bad-canaries")
    stage.open()
    stage.serve(faults=FAULTS, memory="192Mi")
    yield stage
    stage.close()


def rolled_back(stage: Stage, name: str, dtype: str, **spec: Any) -> tuple[Status, Load]:
    """Roll out a dtype under load, and see it end in a rollback."""
    stage.weights.clear()
    stage.roll_out(
        name,
        dtype,
        **spec,
        traffic={
            "router": {
                "name": ROUTER,
                "replicas": 1,
                "drainTimeout": "20s",
                "requestTimeout": f"{PATIENCE:g}s",
            }
        },
    )
    load = stage.send()
    status = stage.until_settled(name, Phase.ROLLED_BACK)
    # What was sent before the traffic had left may end later.
    back = time.time()
    load.stop()
    assert status.weights.canary == 0
    assert load.outcomes
    assert not [o for o in failures(load) if o.began >= back]
    return status, load


def test_one_that_the_kernel_kills_for_its_memory(pool: Stage) -> None:
    # One death would be bad luck, unless the spec says that none is.
    status, load = rolled_back(
        pool,
        "oom",
        OOM,
        analysis={**QUICK["analysis"], "oomRetries": {"maxRestarts": 0, "tolerancePercent": 3}},
    )
    cause = cause_of(status)
    assert cause.reason in ("EngineKeepsDying", "AnalysisFailed")
    assert "OOMKilled" in cause.message
    assert pool.weights == [0, 40, 0]
    assert not [o for o in failures(load) if o.began > cause.at.timestamp() + 2]


def test_one_that_answers_nothing_and_calls_itself_healthy(pool: Stage) -> None:
    status, load = rolled_back(pool, "silent", SILENT)
    cause = cause_of(status)
    assert cause.reason == "AnalysisFailed"
    assert pool.weights == [0, 40, 0]
    lost = failures(load)
    assert lost, "a request that hangs is lost: it may have been answered in part"
    # Before its first byte a request that takes too long is answered with 504, then it breaks off.
    assert not [o for o in lost if not o.problem.startswith(TIMED_OUT)]
    assert not [o for o in lost if o.seconds < PATIENCE - 0.5]
    assert not [o for o in lost if o.began > cause.at.timestamp() + 2]


def test_one_that_never_starts(pool: Stage) -> None:
    status, load = rolled_back(pool, "stillborn", STILLBORN)
    cause = cause_of(status)
    assert cause.reason == "EngineFailsToStart"
    assert "exit code 1" in cause.message
    assert pool.weights == [0], "what has never started never gets a request"
    assert not failures(load)
