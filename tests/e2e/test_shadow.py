"""Copies of live requests: what they decide, and that nobody feels them."""

from __future__ import annotations

import json
import os
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvdemo import traces
from kvquant.api.v1alpha1 import Phase, Verdict
from kvquant.core.shadow_settings import CITATIONS, SATURATED
from tests import dashboard
from tests.e2e.stage import QUICK, ROUTER, SHADOWED, Stage, cause_of, failures, processes
from tests.waiting import wait_until

pytestmark = [pytest.mark.node, pytest.mark.timeout(420)]

SHADOW = {"app.kubernetes.io/name": traces.SHADOW}


def test_a_harmless_canary_passes_and_nothing_personal_is_left_anywhere(stage: Stage) -> None:
    stage.serve(replicas=2)
    stage.roll_out("fp8", "fp8", shadow=SHADOWED, steps=[{"weight": 100, "soak": "10m"}])
    load = stage.send(planted=traces.SENTENCES, cited=0.3)
    status = stage.until("fp8", lambda s: s.step == 1, 180, "the answers should pass")
    assert status.shadow is not None
    assert status.shadow.verdict is Verdict.PASS
    assert status.shadow.pairs >= 40
    assert status.shadow.noise_pairs > 0
    assert status.weights.mirror == 0, "the copying ends with its phase"
    assert stage.weights[0] == 0

    silent = {title for title, text in dashboard.queries() if not stage.query(text)}
    assert silent <= {"Why rollouts wait", "Copies dropped"}, (
        "the dashboard's panels show something"
    )

    texts = traces.collect(stage.cluster, stage.namespace)
    records = [json.loads(line) for line in texts[traces.PAIRS].splitlines()]
    assert len(records) >= 40
    for placeholder in traces.PLACEHOLDERS:
        assert placeholder in texts[traces.PAIRS]
    assert status.shadow.replaced
    assert traces.leaks(texts) == {}
    load.stop()
    assert not failures(load)


def test_a_canary_that_loses_citations_of_long_prompts_never_meets_a_user(stage: Stage) -> None:
    stage.serve(
        replicas=2,
        faults="int4_per_token_head:drop_citations=0.9,drop_citations_beyond=1500",
    )
    stage.roll_out("int4", "int4", shadow={**SHADOWED, "minPairs": 2000})
    short = stage.send(rate=8, prompt_words=(50, 300), cited=1.0)
    long = stage.send(rate=8, prompt_words=(1400, 2400), cited=1.0)
    status = stage.until_settled("int4", Phase.ROLLED_BACK)
    cause = cause_of(status)
    assert cause.reason == "QualityFailed"
    assert f"{CITATIONS}: " in cause.message or f"{CITATIONS} for" in cause.message
    # By itself, or as the one in which most of the harm is.
    assert "requests of 4-16KiB" in cause.message
    assert stage.weights == [0], "no user met it"
    for load in (short, long):
        load.stop()
        assert not failures(load)
        assert not any(o.from_canary for o in load.outcomes)


def test_the_canary_is_filled_before_it_has_users_and_answers_right(stage: Stage) -> None:
    stage.serve(replicas=2)
    stage.roll_out(
        "fp8",
        "fp8",
        shadow={**SHADOWED, "saturationProbe": True, "minPairs": 100_000},
    )
    load = stage.send()

    def probed() -> Any:
        shadow = stage.status("fp8").shadow
        signals = () if shadow is None or not shadow.pairs else shadow.signals
        return next((one for one in signals if one.name == SATURATED and one.requests), None)

    found = wait_until(probed, 180, "the canary should be filled, and pairs compared after it")
    assert found.canary == "+0.0 per 100"
    load.stop()
    assert not failures(load)
    assert not any(o.from_canary for o in load.outcomes)


@pytest.mark.full
def test_live_traffic_feels_nothing_of_a_shadow_that_dies_hangs_or_drowns(stage: Stage) -> None:
    stage.serve(replicas=2)
    stage.roll_out("fp8", "fp8", shadow={**SHADOWED, "minPairs": 100_000})
    load = stage.send()

    def pairs() -> int:
        shadow = stage.status("fp8").shadow
        return 0 if shadow is None else shadow.pairs

    wait_until(pairs, 120, "pairs should be compared")
    (pod,) = stage.pods(**SHADOW)
    for process in processes(pod):
        os.kill(process, signal.SIGSTOP)
    answered = len(load.outcomes)
    wait_until(lambda: len(load.outcomes) > answered + 100, 60, "requests go on")
    for process in processes(pod):
        os.kill(process, signal.SIGCONT)
    assert stage.kill(pod)
    answered = len(load.outcomes)
    wait_until(lambda: len(load.outcomes) > answered + 100, 60, "requests go on")
    wait_until(lambda: _answers(stage), 90, "the service should be back")
    with ThreadPoolExecutor(8) as flood:
        list(flood.map(lambda _: _copy(stage, b"{" * 100_000), range(400)))
    answered = len(load.outcomes)
    wait_until(lambda: len(load.outcomes) > answered + 100, 60, "requests go on")
    load.stop()
    assert not failures(load)
    assert stage.status("fp8").phase is Phase.SHADOWING


def test_long_bodies_are_copied_whole_and_counted(stage: Stage) -> None:
    stage.serve(model_tokens=400_000, memory_bytes=64 * 2**30, time_scale=40)
    stage.roll_out("fp8", "fp8", shadow={**SHADOWED, "minPairs": 100_000})
    load = stage.send(rate=2)
    # About five bytes a word, and four to a token of the simulated engine: 1.1 MiB and more.
    long = stage.send(rate=0.5, prompt_words=(240_000, 260_000), max_tokens=(1, 4))

    def copied() -> Any:
        shadow = stage.status("fp8").shadow
        buckets = {} if shadow is None else {one.bucket: one for one in shadow.buckets}
        found = buckets.get("1MiB+")
        return found if found is not None and found.copied and found.pairs else None

    found = wait_until(copied, 240, "a long request should be compared")
    assert found.live >= found.copied >= found.pairs
    for one in (load, long):
        one.stop()
        assert not failures(one)


def _shadow_url(stage: Stage) -> str:
    service = stage.port.get("Service", stage.namespace, f"{ROUTER}-shadow")
    assert service is not None
    return f"http://{service['spec']['clusterIP']}:8080/v1/completions"


def _copy(stage: Stage, body: bytes) -> int:
    """Send something to the shadow service, as anybody in the cluster may try."""
    request = urllib.request.Request(_shadow_url(stage), data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def _answers(stage: Stage) -> bool:
    return _copy(stage, b"{}") != 0


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_canary_that_is_slow_in_a_crowd_is_found_at_a_tenth_of_the_traffic_when_it_is_topped_up(
    stage: Stage,
) -> None:
    stage.serve(faults="fp8:crowd_slowdown=6")
    ladder: dict[str, Any] = {
        "steps": [{"weight": weight, "soak": "5s"} for weight in (10, 50, 100)],
        "analysis": {**QUICK["analysis"], "p99": {"tolerancePercent": 25}},
    }
    stage.roll_out("alone", "fp8", **ladder)
    load = stage.send(max_tokens=(300, 700))
    stage.until_settled("alone", Phase.ROLLED_BACK, 400)
    assert stage.weights == [0, 10, 50, 0], "with a tenth of the load it is as quick as the others"
    stage.cluster.kubectl("delete", "kvqr", "alone", "-n", stage.namespace, "--timeout=90s")

    stage.weights.clear()
    stage.roll_out("topped", "fp8", **ladder, shadow={"percent": 0, "matchLoad": True})
    status = stage.until("topped", lambda s: s.weights.canary == 10, 120, "it should get a tenth")
    assert status.weights.mirror == 80
    status = stage.until_settled("topped", Phase.ROLLED_BACK, 400)
    assert stage.weights == [0, 10, 0]
    assert cause_of(status).reason == "AnalysisFailed"
    load.stop()
    assert not failures(load)
