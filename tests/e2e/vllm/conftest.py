"""A cluster of its own for real vLLM, whose installation is made before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kvlocal import product, vllm_cpu
from kvlocal.cluster import Cluster
from kvlocal.vllm_cpu import VllmCpu


@pytest.fixture(scope="session")
def vllm() -> VllmCpu:
    """Real vLLM on the machine's disk, to be mounted into pods."""
    return vllm_cpu.ensure()


@pytest.fixture(scope="session")
def cluster(vllm: VllmCpu) -> Iterator[Cluster]:
    """A fresh cluster with Prometheus and the operator; KEEP=1 leaves it up to look at."""
    cluster = product.start("e2e-vllm")
    yield cluster
    if os.environ.get("KEEP", "") in ("", "0"):
        cluster.down()
