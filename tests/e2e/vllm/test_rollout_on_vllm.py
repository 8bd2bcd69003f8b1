"""Rollouts of real vLLM engines: the command, flags, metrics and answers are vLLM's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvdemo.load import Load, Recipe
from kvlocal.vllm_cpu import HEAD_SIZE, VllmCpu
from kvquant.api.v1alpha1 import Phase, Verdict
from kvquant.core.shadow_settings import DRIFT
from tests.e2e.stage import LADDER, ROUTER, Stage, cause_of, failures
from tests.e2e.vllm import pool
from tests.waiting import wait_until

# The first of them may have to install vLLM and to build the cluster's binaries and images.
pytestmark = [pytest.mark.node, pytest.mark.vllm, pytest.mark.timeout(1800)]

START = 300.0
"""Seconds that an engine may take to start: 40 on two idle cores, far more on busy ones."""


@pytest.fixture
def serving(stage: Stage, vllm: VllmCpu) -> Stage:
    """A stage on which one engine serves with a 16-bit cache."""
    stage.cluster.apply(pool.deployment(vllm, stage.namespace))
    stage.cluster.kubectl(
        *("rollout", "status", f"deployment/{pool.NAME}", "-n", stage.namespace),
        f"--timeout={START:.0f}s",
    )
    return stage


SHADOWED = {"percent": 50, "minPairs": 30, "soak": "5s", "noisePercent": 50, "driftPercent": 50}
"""Weights that nobody trained answer nothing sensible. The question is whether vLLM can be compared
at all, so that much more is allowed than of a model that somebody uses."""


def test_fp8_is_proved_compared_and_promoted(serving: Stage) -> None:
    _roll_out(serving, "fp8", shadow=SHADOWED)
    with _load(serving) as load:
        status = serving.until_settled("fp8", Phase.PROMOTED, timeout=START + 400)
        wait_until(
            lambda: serving.replicas_asked(pool.NAME) == 0, 30, "the old pool should be retired"
        )
    (proof,) = status.regime_proof
    assert (proof.verdict, proof.dtype) == (Verdict.PASS, "fp8")
    assert (proof.factor, proof.expected_factor) == ("2.00", "2.00")
    assert status.shadow is not None
    assert status.shadow.verdict is Verdict.PASS
    assert status.shadow.pairs >= 30
    assert status.shadow.noise_pairs > 0, "the baseline is asked twice, too"
    (drift,) = (one for one in status.shadow.signals if one.name == DRIFT)
    assert (drift.requests or 0) >= 30, "vLLM tells how likely an answer is"
    assert drift.verdict is Verdict.PASS
    assert serving.weights == LADDER, "no step is skipped, and none is taken back"
    assert not failures(load), "the client notices nothing"
    assert {o.from_canary for o in load.outcomes} == {True, False}


def test_int8_is_stopped_before_its_first_request(serving: Stage) -> None:
    _roll_out(serving, "int8")
    with _load(serving) as load:
        status = serving.until_settled("int8", Phase.ROLLED_BACK, timeout=START + 60)
    # The engine accepts the flag, reports the dtype and would crash on a longer prompt.
    cause = cause_of(status)
    assert cause.reason == "RegimeProofFailed"
    assert "2.00 times the baseline's (auto), expected 1.78" in cause.message
    assert serving.weights == [0]
    assert load.outcomes
    assert not any(o.from_canary for o in load.outcomes)
    assert not failures(load)


def _roll_out(stage: Stage, dtype: str, **spec: object) -> None:
    stage.roll_out(
        dtype,
        dtype,
        target=pool.NAME,
        kvCache={"dtype": dtype, "headDim": HEAD_SIZE},
        progressDeadline="5m",
        **spec,
    )


@contextmanager
def _load(stage: Stage) -> Iterator[Load]:
    """Send short prompts through the router, which two cores can answer."""
    wait_until(lambda: stage.replicas_ready(ROUTER) > 0, 90, "the router should be ready", 0.2)
    service = stage.port.get("Service", stage.namespace, ROUTER)
    assert service is not None
    recipe = Recipe(rate=5.0, prompt_words=(5, 20), max_tokens=(4, 12))
    load = Load(f"http://{service['spec']['clusterIP']}:8000", recipe)
    load.start()
    try:
        yield load
    finally:
        load.stop()
