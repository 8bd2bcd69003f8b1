"""Signals of the user's: which selectors are taken, how they are asked for, what they become."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.api.v1alpha1 import AnalysisSettings
from kvquant.core.analysis.counting import Counting
from kvquant.core.analysis.samples import Arm, Bins, EngineSample, Share
from kvquant.core.counters import Series
from kvquant.core.custom_signals import LatencyQuery, Selector, ShareQuery, queries_of
from kvquant.core.evidence import ArmNeed
from kvquant.core.scope import EVERYWHERE, Scope
from kvquant.core.tick_queries import TickQueries, keys_of
from kvquant.core.ticking import GRID, Scrapes, TickNeed, instants

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
T = NOW.timestamp()
POD = "pool-7d9f8b6c5-aaaaa"
TOOLS = ShareQuery(
    "toolErrors",
    Selector.parse('tool_calls_total{outcome="error"}'),
    Selector.parse("tool_calls_total"),
)
RERANK = LatencyQuery("rerank", Selector.parse("rerank_seconds"))
NEED = TickNeed(
    "k", "ns", "r", ArmNeed("blue", "llama"), ArmNeed("green", "pool"), NOW, (), (TOOLS, RERANK)
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rate(calls_total[5m])",
        "calls_total or up",
        'calls_total{outcome="error"} or up{a="b"}',
        'calls_total{outcome="error"}[5m]',
        'calls_total{a="b"} offset 5m',
        "calls_total @ 5",
        "calls_total{outcome=error}",
        'calls_total{__name__=~".*"}',
        'calls_total{a="b",le="1"}',
        'calls_total{a="b"}{c="d"}',
        'calls_total{a="\n"}',
        "9calls",
        "{}",
    ],
)
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a metric's name and, in braces, matchers"):
        Selector.parse(text)


@pytest.mark.parametrize(
    ("text", "metric", "matchers"),
    [
        ("calls_total", "calls_total", ""),
        (" calls_total {} ", "calls_total", ""),
        ('calls:total{a="b", c!~"d|}",}', "calls:total", 'a="b", c!~"d|}"'),
        ('calls_total{a="le=__name__=\\"x"}', "calls_total", 'a="le=__name__=\\"x"'),
    ],
)
def test_selectors_are_taken_as_promql_has_them(text: str, metric: str, matchers: str) -> None:
    assert Selector.parse(text) == Selector(metric, matchers)


def test_the_specs_signals_are_asked_for_by_their_names() -> None:
    asked = AnalysisSettings.model_validate(
        {
            "custom": [
                {
                    "name": "toolErrors",
                    "ratio": {
                        "events": 'tool_calls_total{outcome="error"}',
                        "total": "tool_calls_total",
                    },
                    "tolerancePercent": 1,
                },
                {
                    "name": "rerank",
                    "latency": {"histogram": "rerank_seconds"},
                    "tolerancePercent": 20,
                },
            ]
        }
    )
    assert queries_of(asked.custom) == (TOOLS, RERANK)


@given(st.text(max_size=60))
def test_nothing_gets_out_of_the_braces(text: str) -> None:
    try:
        selector = Selector.parse(f'm{{a="{text}"}}')
    except ValueError:
        return
    # Without what is quoted, one pair of braces is left, and nothing behind it.
    bare = str(selector)
    for quoted in _quoted(bare):
        bare = bare.replace(quoted, "", 1)
    assert bare.count("{") == bare.count("}") == 1
    assert bare.endswith("}")


def _quoted(text: str) -> list[str]:
    parts, begin, escaped = [], None, False
    for index, character in enumerate(text):
        if begin is None:
            begin = index if character == '"' else None
        elif escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            parts.append(text[begin : index + 1])
            begin = None
    return parts


def test_every_selector_is_asked_for_once_and_for_the_pods_of_those_who_need_it() -> None:
    other = replace(NEED, key="o", namespace="other", signals=(TOOLS,))
    texts = TickQueries.of([NEED, other, replace(other, key="n", signals=())], EVERYWHERE).custom
    events, total = (texts[key] for key in keys_of(TOOLS))
    buckets, in_all = (texts[key] for key in keys_of(RERANK))
    assert len(texts) == 4
    assert 'tool_calls_total{outcome="error",namespace=~"ns|other",pod=~' in events
    assert 'tool_calls_total{namespace=~"ns|other",pod=~' in total
    assert 'rerank_seconds_bucket{namespace=~"ns",pod=~' in buckets
    assert "sum by(namespace,pod,le)" in buckets
    assert "rerank_seconds_sum" in in_all


def test_signals_are_within_the_scope() -> None:
    scope = Scope("kube_ns", "kube_pod", 'cluster="prod-1"')
    for text in TickQueries.of([NEED], scope).custom.values():
        assert 'cluster="prod-1"}' in text
        assert 'kube_ns=~"ns",kube_pod=~' in text
        assert "sum by(kube_ns,kube_pod" in text


def line(value: float, **labels: str) -> list[Series]:
    return [Series({"namespace": "ns", "pod": POD, **labels}, [(T, value)])]


def sample(*, events: float | None = None, total: float | None = None) -> EngineSample:
    window = instants(T, T, GRID)
    assert window is not None
    scrapes = Scrapes(window)
    scrapes.add_seen(engines=[Series({"namespace": "ns", "pod": POD}, [(T, T - 1)])])
    for key, value in zip(keys_of(TOOLS), (events, total), strict=True):
        if value is not None:
            scrapes.add_custom(key, line(value))
    bucket, in_all = keys_of(RERANK)
    scrapes.add_custom(bucket, [*line(7, le="+Inf"), *line(5, le="0.5")])
    scrapes.add_custom(in_all, line(3.5))
    return scrapes.timelines([NEED])["k"].ticks[0].canary.engines[POD]


def test_each_pod_has_its_own() -> None:
    assert sample(events=3, total=40).custom == {
        "toolErrors": Share(3, 40),
        "rerank": Bins((0.5, math.inf), (5, 7), 3.5),
    }


def test_events_that_have_not_happened_yet_are_none_and_without_a_total_nothing_is_known() -> None:
    assert sample(total=40).custom["toolErrors"] == Share(0, 40)
    assert "toolErrors" not in sample(events=3).custom
    assert sample(events=math.nan, total=40).custom["toolErrors"] == Share(None, 40)


def test_a_query_that_fails_is_told_to_those_who_need_it() -> None:
    window = instants(T, T, GRID)
    assert window is not None
    scrapes = Scrapes(window)
    scrapes.add_problem(keys_of(TOOLS)[0], "refused")
    plain = replace(NEED, key="plain", signals=(RERANK,))
    told = scrapes.timelines([NEED, plain])
    assert told["k"].problems == ("signal toolErrors: refused",)
    assert told["plain"].problems == ()


def arm(**pods: tuple[float, float]) -> Arm:
    return Arm(
        engines={
            name: EngineSample(custom={"toolErrors": Share(*counts)})
            for name, counts in pods.items()
        }
    )


def test_a_pod_that_comes_back_does_not_bring_its_past() -> None:
    counting = Counting({})
    grown = [
        counting.advance(each, 15.0 * index).counts
        for index, each in enumerate(
            [
                arm(a=(10, 1000), b=(20, 2000)),
                arm(a=(11, 1010), b=(20, 2005)),
                arm(a=(11, 1020)),
                arm(a=(11, 1030), b=(22, 2050), c=(500, 900)),
                arm(a=(0, 4), b=(22, 2060), c=(501, 910)),
            ]
        )
    ]
    told = [(c.get("custom.toolErrors.events"), c.get("custom.toolErrors.total")) for c in grown]
    assert told[0] == (None, None)
    assert told[1:4] == [(1, 15), (0, 10), (2, 55)]
    assert told[4] == (1, 20), "what a restarted pod counts is counted from the next look on"
