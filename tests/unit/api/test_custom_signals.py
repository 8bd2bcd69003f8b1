"""Signals of the user's in the spec: what is refused, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kvquant.api import custom_signals
from kvquant.api.crd import custom_resource_definition
from kvquant.api.v1alpha1 import AnalysisSettings, CustomSignal, Spec
from kvquant.core.analysis import Analysis
from kvquant.core.analysis.samples import Arm, Tick
from kvquant.core.custom_signals import Selector
from kvquant.core.plan import spec_hash

RATIO = {"events": 'tool_calls_total{outcome="error"}', "total": "tool_calls_total"}
LATENCY = {"histogram": "rerank_seconds"}


def signal(**fields: Any) -> dict[str, Any]:
    return {"name": "toolErrors", "tolerancePercent": 2, **fields}


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({}, "custom.0", "exactly one of ratio and latency"),
        ({"ratio": RATIO, "latency": LATENCY}, "custom.0", "exactly one of ratio and latency"),
        ({"ratio": {"events": "a"}}, "custom.0.ratio.total", "Field required"),
        ({"ratio": {**RATIO, "events": "rate(a[5m])"}}, "custom.0.ratio.events", "no functions"),
        ({"ratio": {**RATIO, "total": ""}}, "custom.0.ratio.total", "at least 1 character"),
        ({"latency": {"histogram": 'a{le="1"}'}}, "custom.0.latency.histogram", "no matchers of"),
        ({"latency": {**LATENCY, "percentile": 100}}, "custom.0.latency.percentile", "equal to 99"),
        ({"ratio": RATIO, "tolerancePercent": 0}, "custom.0.tolerancePercent", "equal to 1"),
        ({"ratio": RATIO, "name": "tool errors"}, "custom.0.name", "pattern"),
        ({"ratio": RATIO, "direction": "up"}, "custom.0.direction", "'increase' or 'decrease'"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_field(
    fields: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        AnalysisSettings.model_validate({"custom": [signal(**fields)]})
    (error,) = refused.value.errors()
    assert ".".join(map(str, error["loc"])) == where
    assert words in error["msg"]


@given(st.from_regex(custom_signals.SELECTOR, fullmatch=True))
@settings(max_examples=200)
def test_every_selector_that_the_spec_takes_can_be_asked_for(text: str) -> None:
    selector = Selector.parse(text)
    inside = str(selector).removeprefix(selector.metric)
    assert selector.metric == text.partition("{")[0].strip()
    assert inside == (f"{{{selector.matchers}}}" if selector.matchers else "")
    assert Selector.parse(str(selector)) == selector


@pytest.mark.parametrize("label", ["le", "__name__", "__address__"])
def test_labels_that_say_which_series_is_meant_cannot_be_matched(label: str) -> None:
    assert not custom_signals.SELECTOR.fullmatch(f'calls_total{{{label}="x"}}')


@pytest.mark.parametrize("label", ["l", "lex", "len", "_", "_le", "cell", "L", "lE"])
def test_labels_that_only_look_like_those_can(label: str) -> None:
    assert custom_signals.SELECTOR.fullmatch(f'calls_total{{{label}="x"}}')


def test_the_api_server_is_told_the_same_grammar() -> None:
    crd = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    custom = crd["properties"]["spec"]["properties"]["analysis"]["properties"]["custom"]
    ratio = custom["items"]["properties"]["ratio"]["properties"]
    rules = [
        ratio["events"]["x-kubernetes-validations"],
        ratio["total"]["x-kubernetes-validations"],
    ]
    pattern = custom_signals.SELECTOR.pattern
    assert "'" not in pattern, "a raw string of CEL would end at it"
    for (rule,) in rules:
        assert rule["rule"] == f"self.matches(r'^{pattern}$')"
        assert rule["message"] == custom_signals.NO_SELECTOR
    assert "pattern" not in ratio["events"], "its text would be shown beside the message"
    assert custom["maxItems"] == 8


def test_no_name_of_a_signal_that_the_analysis_has_itself_is_free() -> None:
    analysis = Analysis()
    report = analysis.observe(Tick(at=15.0, step=0, weight=0, baseline=Arm(), canary=Arm()))
    assert {signal.name for signal in report.signals} <= set(custom_signals.BUILT_IN)


def test_a_custom_signal_is_a_part_of_what_was_asked_for() -> None:
    plain = {
        "targetRef": {"name": "llama"},
        "kvCache": {"dtype": "fp8"},
        "traffic": {"router": {}},
    }
    asked = {**plain, "analysis": {"custom": [signal(ratio=RATIO)]}}
    assert spec_hash(Spec.model_validate(plain)) != spec_hash(Spec.model_validate(asked))
    empty = {**plain, "analysis": {"custom": []}}
    assert spec_hash(Spec.model_validate(plain)) == spec_hash(Spec.model_validate(empty))


def test_what_is_not_said_is_the_usual() -> None:
    taken = CustomSignal.model_validate(signal(latency=LATENCY))
    assert taken.direction == "increase"
    assert taken.latency is not None
    assert taken.latency.percentile == 90
