"""Documents with a few places that nobody expects, for whoever has to read them anyway."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from kvquant.api.v1alpha1 import Spec
from kvquant.ports import Object
from tests.site import rollout

OPTIONAL = rollout(
    engine={"type": "vllm", "container": "vllm", "fingerprint": True},
    kvCache={"dtype": "fp8", "headDim": 128},
    traffic={"router": {"name": "llama-router", "hashHeader": "x-session"}},
    alerts=[{"match": {"severity": "critical"}, "policy": "pause"}],
    analysis={
        "oomRetries": {"maxRestarts": 2},
        "custom": [
            {
                "name": "toolErrors",
                "ratio": {"events": "errors", "total": "calls"},
                "direction": "decrease",
                "tolerancePercent": 2,
            },
            {
                "name": "rerank",
                "latency": {"histogram": "rerank_seconds", "percentile": 90},
                "tolerancePercent": 9,
            },
        ],
    },
    shadow={
        "engineKeySecret": {"name": "engine", "key": "api-key"},
        "patterns": [{"name": "TICKET", "pattern": "T-[0-9]{6}"}],
        "log": {"url": "s3://audit/shadow", "secretName": "audit"},
    },
    evaluation={
        "dataset": {"url": "s3://sets/rag.jsonl", "secretName": "sets"},
        "model": "llama",
        "marginPercent": 3,
        "deadline": "30m",
        "onInconclusive": "proceed",
        "onError": "rollback",
    },
    promotion={"rollbackWindow": "1h", "oldPool": "Keep"},
)["spec"]

WHOLE: dict[str, Any] = Spec.model_validate(OPTIONAL).model_dump(
    by_alias=True, exclude_none=True, mode="json"
)
"""A spec with every part that may stand beside the others, those included that have a default."""

THROUGH_GATEWAY: dict[str, Any] = {
    **WHOLE,
    "traffic": {"gatewayAPI": {"httpRoute": "llama", "rule": 0, "drainTimeout": "5m"}},
}
"""The same with the other way to split traffic."""

ODD: list[Any] = [
    *("", "x", "0s", "999999h", "1h1m1s", "int8", "auto", "Keep", "Promoted", "RollingBack", "ü\n"),
    *("2026-11-25T12:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "x" * 3000),
    *(
        0,
        1,
        -1,
        100,
        101,
        2**63,
        0.5,
        True,
        False,
        [],
        {},
        [{}],
        [{"weight": 100}],
        {"a": {"b": 1}},
    ),
]


def paths(node: Any, trail: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where something could be changed, the deepest places included."""
    inner: list[tuple[Any, ...]] = []
    if isinstance(node, dict):
        inner = [p for key in sorted(node) for p in paths(node[key], (*trail, key))]
    elif isinstance(node, list):
        inner = [p for i, item in enumerate(node) for p in paths(item, (*trail, i))]
    return [trail, *inner] if trail else inner


@st.composite
def changed(draw: st.DrawFn, whole: Object) -> Object:
    """Return a document with a few places removed or replaced by something odd."""
    document = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(paths(document) or [("spec",)]))
        parent: Any = document
        for key in above:
            parent = parent[key]
        if draw(st.booleans()):
            parent[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        else:
            del parent[last]
    return document
