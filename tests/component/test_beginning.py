"""What is refused or waited for before anything is touched, with a message that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from kvquant.core.evidence import CacheConfig
from kvquant.ports import Object
from kvquant.reconciler import Ref
from tests.site import NAMESPACE, Site, engine_pool, rollout

RECORD = "llama-q-record"


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def container(change: Callable[[Object], Any]) -> Callable[[Site], None]:
    """Return a way to change the engine's container of the target."""

    def edit(site: Site) -> None:
        pool = engine_pool()
        change(pool["spec"]["template"]["spec"]["containers"][0])
        site.deploy(pool)

    return edit


def reported(**fields: Any) -> Callable[[Site], None]:
    """Return a way to let the baseline's engines report something else."""

    def edit(site: Site) -> None:
        before = site.metrics.cache_configs
        site.metrics.cache_configs = lambda *asked: {  # type: ignore[method-assign]
            pod: replace(config, **fields) for pod, config in before(*asked).items()
        }

    return edit


def unscraped(site: Site) -> None:
    site.metrics.cache_configs = lambda *asked: {}  # type: ignore[method-assign]


def out(site: Site) -> None:
    site.metrics.outage = "Prometheus at p:9090 cannot be reached: look whether it runs"


CASES: dict[str, tuple[Callable[[Site], None], str, str]] = {
    "a container that is no engine": (
        container(lambda c: c.update(image="nginx:1.27", args=[])),
        "EngineNotRecognised",
        'use command: ["vllm", "serve"]',
    ),
    "an engine in a shell line": (
        container(lambda c: c.update(command=["sh", "-c", "vllm serve m"], args=[])),
        "EngineInShellLine",
        "write the command as a list",
    ),
    "an engine that is too old": (
        container(lambda c: c.update(image="vllm/vllm-openai:v0.20.0")),
        "DtypeNotSupported",
        "known from 0.25 on",
    ),
    "a dtype that the build lacks": (
        container(lambda c: c.update(args=["--attention-backend=FLASH_ATTN"])),
        "DtypeNotSupported",
        "Take the flag from the target's arguments",
    ),
    "another name of the dtype that runs": (
        container(lambda c: c.update(args=["--kv-cache-dtype=fp8_per_token_head"])),
        "AlreadyRunning",
        "ask for another",
    ),
    "a checkpoint that turns auto into the dtype": (
        reported(dtype="fp8_per_token_head"),
        "AlreadyRunning",
        "runs fp8_per_token_head already",
    ),
    "Prometheus not reachable": (out, "MetricsUnavailable", "look whether it runs"),
    "a baseline that Prometheus does not scrape": (
        unscraped,
        "BaselineNotMeasured",
        "Let it scrape them, with the labels namespace and pod",
    ),
    "a baseline that reports no capacity": (
        reported(capacity_tokens=None),
        "EngineTooOld",
        "use vLLM 0.25 or newer",
    ),
}


@pytest.mark.parametrize(("break_it", "reason", "words"), CASES.values(), ids=CASES.keys())
def test_nothing_is_touched_and_the_remedy_is_told(
    site: Site, break_it: Callable[[Site], None], reason: str, words: str
) -> None:
    break_it(site)
    ref = site.apply(rollout("llama-q", dtype="fp8_per_token_head"))
    site.cluster.calls.clear()
    results = [site.turn(ref) for _ in range(4)]
    status = site.status(ref)
    held, stalled = status.condition("Held"), status.condition("Stalled")
    assert held is not None
    assert stalled is not None
    assert (status.phase, held.reason, stalled.status) == (Phase.PENDING, reason, "True")
    assert words in held.message
    told = [a.reason for result in results for a in result.announcements]
    assert told == [reason], "one Event, however long it lasts"
    written = {(call.verb, call.name) for call in site.cluster.calls if call.writes}
    noted = {("replace_status", "llama-q"), ("apply", RECORD), ("patch", RECORD)}
    assert written == noted, "that it does not begin, and why"


def test_it_begins_by_itself_when_prometheus_is_back(site: Site) -> None:
    out(site)
    ref = site.apply()
    for _ in range(5):
        site.turn(ref)
    site.metrics.outage = None
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_baseline_of_which_one_pod_is_scraped_is_enough(site: Site) -> None:
    (first, _) = site.pods("llama")
    before = site.metrics.cache_configs

    def half(*asked: Any) -> dict[str, CacheConfig]:
        found = dict(before(*asked))
        found.pop(first["metadata"]["name"], None)
        return found

    site.metrics.cache_configs = half  # type: ignore[assignment,method-assign]
    assert site.until_settled(site.apply()).phase is Phase.PROMOTED


# Pods that do not come up.


def waiting(site: Site, reason: str, message: str) -> None:
    """Let the canary's pods be as the scheduler leaves them when no node fits."""
    for pod in site.pods("llama-fp8-pool"):
        unscheduled = {
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
        }
        site.cluster.set_status(
            "Pod",
            NAMESPACE,
            pod["metadata"]["name"],
            {
                "phase": "Pending",
                "conditions": [unscheduled],
                "containerStatuses": [{"name": "vllm", "restartCount": 0, "state": {}}],
            },
        )


def test_a_canary_that_no_node_has_room_for_is_explained_and_given_up_at_the_deadline(
    site: Site,
) -> None:
    site.load_time = 1e9
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    ref = site.apply()
    for _ in range(4):
        site.turn(ref)
    waiting(site, "Unschedulable", words)
    site.turn(ref)
    held = site.status(ref).condition("Held")
    assert held is not None
    assert (held.reason, words in held.message) == ("CanaryNotReady", True)
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert "ProgressDeadlineExceeded" in site.reasons(ref)
    assert words in status.decisions[-1].message
    assert site.deployment("llama-fp8-pool")["spec"]["replicas"] == 0
    assert site.lost == []


def test_an_engine_that_refuses_the_dtype_is_explained_in_its_own_words_at_once(
    site: Site,
) -> None:
    site.load_time = 1e9
    ref = site.apply()
    for _ in range(4):
        site.turn(ref)
    ended = {
        "reason": "Error",
        "exitCode": 1,
        "finishedAt": f"{site.now:%Y-%m-%dT%H:%M:%SZ}",
        "message": "ValueError: No valid attention backend found for cuda with (kv_cache_dtype=fp8",
    }
    (pod,) = site.pods("llama-fp8-pool")

    def crash(obj: Object) -> None:
        (engine,) = obj["status"]["containerStatuses"]
        engine["state"] = {"terminated": ended}

    site.cluster.edit("Pod", NAMESPACE, pod["metadata"]["name"], crash)
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert "EngineFailsToStart" in site.reasons(ref)
    assert "No valid attention backend found for cuda" in status.decisions[-1].message
    assert "ask for another spec.kvCache.dtype" in status.decisions[-1].message
    assert status.rejected_spec_hash == status.spec_hash, "it is not tried again"


def test_the_canarys_engine_leaves_its_last_words_in_its_pods_status(site: Site) -> None:
    ref: Ref = site.apply()
    site.until_phase(ref, Phase.VERIFYING)
    (engine,) = site.deployment("llama-fp8-pool")["spec"]["template"]["spec"]["containers"]
    assert engine["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert names.LABEL_POOL in site.deployment("llama-fp8-pool")["metadata"]["labels"]
