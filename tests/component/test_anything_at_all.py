"""Whatever the API server admits: a pass ends with an answer, and never with a crash."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from kvquant.api import names
from kvquant.api.v1alpha1 import KVQuantRollout, Phase, Spec
from kvquant.core.plan import Plan, spec_hash
from kvquant.errors import Refused
from kvquant.ports import Object
from tests.conftest import REPOSITORY
from tests.fakes import schema
from tests.odd import THROUGH_GATEWAY, WHOLE, changed
from tests.site import NAMESPACE, Site, engine_pool, rollout

STORED = [
    json.loads(path.read_text())
    for path in sorted((REPOSITORY / "tests" / "data" / "statuses").glob("*/*.json"))
]
many = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def admitted(obj: Object) -> Object | None:
    """Return an object as the API server would store it; None when it would refuse it."""
    try:
        stored, faults = schema.admit(copy.deepcopy(obj))
    except Exception:  # What the tests' own schema chokes on is not what is tested here.
        return None
    return None if faults else stored


ALTERNATIVES = {
    *("evaluation.dataset.configMapName", "evaluation.dataset.key"),
    *("evaluation.dataset.claimName", "evaluation.dataset.path", "shadow.log.claimName"),
    *("analysis.custom.ratio", "analysis.custom.latency", "traffic.gatewayAPI"),
}
"""What stands instead of something else, so that no spec has all of it."""


def _left_out(model: type[BaseModel], document: Any, path: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = field.alias or name
        places = document if isinstance(document, list) else [document]
        if any(key not in place for place in places):
            yield path + key
        for inner in _models(field.annotation):
            for place in places:
                if key in place:
                    yield from _left_out(inner, place[key], f"{path}{key}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def test_what_is_changed_at_random_has_every_part_of_a_spec() -> None:
    assert set(_left_out(Spec, WHOLE)) <= ALTERNATIVES


def read_back(stored: Object) -> KVQuantRollout | None:
    """Return what the model makes of it; None when a rule in CEL would have kept it away.

    `tests/apiserver/test_crd.py` asks a real API server. What the schema says, the model says too.
    """
    try:
        return KVQuantRollout.parse(stored)
    except ValidationError as refused:
        if all(error["type"] == "value_error" for error in refused.errors()):
            return None
        raise


@many
@given(st.sampled_from([WHOLE, THROUGH_GATEWAY]).flatmap(changed))
def test_every_spec_that_the_api_server_admits_is_read_planned_and_reconciled(spec: Object) -> None:
    stored = admitted({**rollout(), "spec": spec})
    if stored is None:
        return
    read = read_back(stored)
    if read is None:
        return
    plan = Plan.of(read.spec)
    assert plan.weight(len(plan.steps)) > 0
    assert spec_hash(read.spec) == spec_hash(KVQuantRollout.parse(stored).spec)
    site = Site()
    site.deploy()
    try:
        ref = site.apply(stored)
    except Refused:
        return  # A rule in CEL, which the tests' schema leaves to the API server.
    for _ in range(4):
        result = site.reconciler.reconcile(ref)
        assert math.isfinite(result.requeue_after)
        assert result.requeue_after >= 0
        site.let_pass(2)
    assert site.lost == []


@many
@given(st.sampled_from(STORED).flatmap(changed), st.booleans())
def test_every_status_that_the_api_server_admits_is_carried_on_or_told(
    status: Object, deleted: bool
) -> None:
    stored = admitted({**rollout(), "status": status})
    if stored is None:
        return
    site = Site()
    site.deploy()
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    site.cluster._objects[names.KIND, ref.namespace, ref.name]["status"] = stored["status"]
    site.restart()
    one_pass = site.reconciler.finalize if deleted else site.reconciler.reconcile
    told: list[str] = []
    for _ in range(4):
        try:
            result = one_pass(ref)
        except Refused:
            continue  # A name that somebody wrote into the status and that no object can have.
        assert result.requeue_after >= 0
        told += [a.reason for a in result.announcements]
        site.let_pass(2)
    assert told.count("InvalidSpec") <= 1, "told once"


words = st.sampled_from(
    [
        *("vllm", "serve", "--port", "--port=", "--port=x", "--port=99999999", "--kv-cache-dtype"),
        *("--kv-cache-dtype=", "--block-size", "--attention-backend=", "=", "-", "", "sh", "-c"),
        *("/bin/sh", "vllm serve m", "-m", "vllm.entrypoints.openai.api_server", "ü", "--" * 99),
    ]
)
containers = st.fixed_dictionaries(
    {"name": st.sampled_from(["vllm", "proxy"])},
    optional={
        "image": st.sampled_from(
            ["", "vllm/vllm-openai:v0.32.0", "vllm/vllm-openai:v9", "a@sha256:0", ":", "vllm:0.1"]
        ),
        "command": st.lists(words, max_size=4),
        "args": st.lists(words, max_size=6),
    },
)
templates = st.fixed_dictionaries(
    {"containers": st.lists(containers, min_size=1, max_size=2)},
    optional={
        "nodeSelector": st.just({"nvidia.com/gpu.product": "Tesla-T4"}),
        "affinity": st.sampled_from([{}, {"nodeAffinity": {}}, {"podAntiAffinity": {}}]),
        "topologySpreadConstraints": st.just([{"labelSelector": {"matchLabels": {"app": "x"}}}]),
    },
)


@many
@given(
    templates,
    st.sampled_from([{}, {"matchLabels": {"app": "llama"}}, {"matchExpressions": [{"key": "a"}]}]),
    st.sampled_from([None, 0, 1, 400]),
    st.booleans(),
)
def test_every_target_is_rolled_out_or_refused_with_a_reason(
    template: Object, selector: Object, replicas: int | None, midway: bool
) -> None:
    pool = engine_pool()
    pool["spec"]["template"]["spec"] = template
    pool["spec"]["selector"] = selector
    if replicas is None:
        del pool["spec"]["replicas"]
    else:
        pool["spec"]["replicas"] = replicas
    site = Site()
    site.deploy()
    ref = site.apply()
    if midway:
        site.until_phase(ref, Phase.PROGRESSING)
    site.cluster._objects["Deployment", NAMESPACE, "llama"].update(spec=pool["spec"])
    for _ in range(4):
        assert site.reconciler.reconcile(ref).requeue_after >= 0
    status = site.status(ref)
    assert status.attempt > 0 or status.condition("Held") is not None


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"phase": "Running"},
        {"conditions": None, "containerStatuses": None},
        {"containerStatuses": []},
        {"containerStatuses": [{"name": "other"}]},
        {"containerStatuses": [{"name": "vllm", "state": None, "lastState": None}]},
        {"containerStatuses": [{"name": "vllm", "lastState": {"terminated": {"exitCode": 1}}}]},
        {"containerStatuses": [{"name": "vllm", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
        {"conditions": [{"type": "Ready"}], "phase": "Failed"},
    ],
)
def test_pods_that_tell_little_are_no_obstacle(status: Object) -> None:
    site = Site()
    site.deploy()
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    for pod in site.cluster.objects("Pod"):
        site.cluster.set_status("Pod", NAMESPACE, pod["metadata"]["name"], status)
    for _ in range(4):
        site.reconciler.reconcile(ref)
    assert site.status(ref).weights.canary == 0, "no pod is known to be ready"
