"""The canary pool's Deployment, derived from the target's own: dict in, dict out.

Everything is raw JSON, because typed models drop fields that they do not know, and the canary must
differ from the baseline in nothing but the KV cache.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.api import names
from kvquant.engines import vllm
from kvquant.errors import TemplateError

Object = dict[str, Any]

ANNOTATION_ATTEMPT = f"{names.GROUP}/attempt"
"""On a pool's Deployment: the attempt (`rollout uid/number`) whose template it has."""


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """What the canary pool is called and to whom it belongs.

    Attributes:
        name: Name of the pool and of its Deployment.
        rollout: Name of the rollout that makes it.
        router: Router that serves it.
        slot: Router slot that it fills.
        attempt: Value of the attempt annotation.
    """

    name: str
    rollout: str
    router: str
    slot: str
    attempt: str


def engine_container(target: Object, named: str | None) -> int:
    """Return the index of the engine's container in the target's pod template.

    Args:
        target: The target Deployment.
        named: spec.engine.container, if the user gave one.

    Raises:
        TemplateError: No container, or more than one, is recognised as a vLLM server.
    """
    containers = _pod_spec(target).get("containers", [])
    deployment = target["metadata"]["name"]
    if named is not None:
        for i, container in enumerate(containers):
            if container.get("name") == named:
                if vllm.recognises(container):
                    return i
                raise TemplateError(
                    "EngineNotRecognised",
                    f"spec.engine.container: {named!r} of Deployment {deployment} does not start "
                    "vLLM in a way that can be recognised (vllm serve ..., python -m "
                    "vllm.entrypoints.openai.api_server, or the vllm image's own entry point).",
                )
        raise TemplateError(
            "EngineNotRecognised",
            f"spec.engine.container: Deployment {deployment} has no container {named!r}; it has "
            f"{', '.join(repr(c.get('name')) for c in containers)}.",
        )
    found = [i for i, container in enumerate(containers) if vllm.recognises(container)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise TemplateError(
            "EngineNotRecognised",
            f"No container of Deployment {deployment} starts vLLM in a way that can be recognised: "
            'use command: ["vllm", "serve"] or the vllm/vllm-openai image, and name it in '
            "spec.engine.container if it is hidden.",
        )
    raise TemplateError(
        "EngineAmbiguous",
        f"Several containers of Deployment {deployment} start vLLM; name the one that serves in "
        "spec.engine.container.",
    )


def target_selector(target: Object) -> dict[str, str]:
    """Return the labels by which the target selects its pods.

    Raises:
        TemplateError: It selects by expressions alone, which a Service cannot do.
    """
    labels = target["spec"].get("selector", {}).get("matchLabels") or {}
    if not labels:
        raise TemplateError(
            "SelectorNotSupported",
            f"Deployment {target['metadata']['name']} selects its pods by expressions only; give "
            "it spec.selector.matchLabels, by which a Service can find them.",
        )
    return dict(labels)


def canary_selector(pool: str) -> dict[str, str]:
    """Return the labels of a pool's verified pods, by which its slot's Service finds them."""
    return {names.LABEL_POOL: pool, names.LABEL_SERVING: "true"}


def canary_deployment(
    target: Object,
    container: int,
    identity: PoolIdentity,
    dtype: str,
    replicas: int,
    fingerprint: str | None,
) -> Object:
    """Return the canary's Deployment: the target's, with other KV arguments, names and labels.

    The values of the labels by which the target selects its pods are replaced, so that neither
    the target nor any Service of the user's takes the canary's pods for its own.
    """
    selector = target_selector(target)
    spec = copy.deepcopy(target["spec"])
    template = spec["template"]
    template.setdefault("metadata", {})
    labels = {
        **(template["metadata"].get("labels") or {}),
        **dict.fromkeys(selector, identity.name[:63].rstrip("-.")),
        names.LABEL_ROLLOUT: identity.rollout,
        names.LABEL_POOL: identity.name,
    }
    # The proof of another pool's pods says nothing of these.
    labels.pop(names.LABEL_SERVING, None)
    template["metadata"] = {
        "labels": labels,
        "annotations": dict(template["metadata"].get("annotations") or {}),
    }
    pod = template["spec"]
    for field in ("affinity", "topologySpreadConstraints"):
        if field in pod:
            pod[field] = _relabelled(pod[field], selector, labels)
    pod["containers"][container] = {
        **vllm.with_dtype(pod["containers"][container], dtype, fingerprint),
        # So that an engine which refuses the dtype says why in its pod's status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    spec["selector"] = {"matchLabels": {names.LABEL_POOL: identity.name}}
    spec["replicas"] = replicas
    spec.pop("paused", None)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": identity.name,
            "namespace": target["metadata"]["namespace"],
            "labels": {
                "app.kubernetes.io/managed-by": "kvquant",
                names.LABEL_ROLLOUT: identity.rollout,
                names.LABEL_POOL: identity.name,
                names.LABEL_ROUTER: identity.router,
                names.LABEL_SLOT: identity.slot,
            },
            "annotations": {ANNOTATION_ATTEMPT: identity.attempt},
        },
        "spec": spec,
    }


def template_hash(deployment: Object) -> str:
    """Return a hash that changes when the pods of a Deployment would become other pods.

    `kubectl rollout restart` is left out: it makes the same pods again.
    """
    template = copy.deepcopy(deployment["spec"]["template"])
    annotations = template.get("metadata", {}).get("annotations") or {}
    annotations.pop("kubectl.kubernetes.io/restartedAt", None)
    if not annotations:
        template.get("metadata", {}).pop("annotations", None)
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def replicas_of(deployment: Object) -> int:
    """Return how many pods a Deployment is asked to have; Kubernetes' default is 1."""
    wanted = deployment["spec"].get("replicas")
    return 1 if wanted is None else int(wanted)


def selects(selector: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Tell whether a Service's selector matches a pod's labels; an empty one matches nothing."""
    return bool(selector) and all(labels.get(k) == v for k, v in (selector or {}).items())


def _pod_spec(deployment: Object) -> Object:
    spec: Object = deployment["spec"]["template"]["spec"]
    return spec


def _relabelled(node: Any, selector: Mapping[str, str], labels: Mapping[str, str]) -> Any:
    """Let rules about the pool's own pods speak of the canary's pods instead."""
    if isinstance(node, list):
        return [_relabelled(item, selector, labels) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _relabelled(value, selector, labels) for key, value in node.items()}
    match = node.get("matchLabels")
    if isinstance(match, dict):
        out["matchLabels"] = {
            key: labels[key] if selector.get(key) == value else value
            for key, value in match.items()
        }
    return out
