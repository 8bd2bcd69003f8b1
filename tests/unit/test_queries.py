"""The PromQL texts: which pods they match, and which instants they cover."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.core import queries
from kvquant.core.evidence import ArmNeed, EvidenceNeed

NOW = datetime(2026, 11, 24, 12, 0, 0, 123_456, tzinfo=UTC)


def need(
    since: datetime, name: str = "llama", baseline_since: datetime | None = None
) -> EvidenceNeed:
    return EvidenceNeed(
        key=f"ns/{name}",
        namespace="ns",
        router=f"{name}-router",
        baseline=ArmNeed("blue", name),
        canary=ArmNeed("green", f"{name}-pool"),
        since=since,
        baseline_since=baseline_since,
        baseline_until=since,
    )


@pytest.mark.parametrize(
    ("deployment", "pod", "matches"),
    [
        ("llama", "llama-7d9f8b6c5-abcde", True),
        ("llama", "llama-7d9f8b6c55-abcde", True),
        ("llama", "llama-pool-7d9f8b6c5-abcde", False),
        ("llama", "my-llama-7d9f8b6c5-abcde", False),
        ("llama", "llama-0", False),
        ("llama-v1.5", "llama-v1.5-7d9f8b6c5-abcde", True),
        ("llama-v1.5", "llama-v1x5-7d9f8b6c5-abcde", False),
    ],
)
def test_a_pool_is_its_deployments_pods_and_no_others(
    deployment: str, pod: str, matches: bool
) -> None:
    assert bool(re.fullmatch(queries.pods_of(deployment), pod)) is matches


@given(st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True), st.integers(1, 10))
def test_the_names_that_kubernetes_cuts_are_still_found(deployment: str, digits: int) -> None:
    pod = f"{deployment}-{'7d9f8b6c5b'[:digits]}-"[:58] + "x2x4z"
    assert re.fullmatch(queries.pods_of(deployment), pod)


@given(
    st.floats(0, 10**7),
    st.floats(0, 10**6) | st.none(),
)
def test_the_window_ends_now_and_is_rounded_inwards_or_outwards_for_an_earlier_baseline(
    seconds: float, earlier: float | None
) -> None:
    since = NOW - timedelta(seconds=seconds)
    begin = since if earlier is None else since - timedelta(seconds=earlier)
    window = queries.window([need(since, baseline_since=begin)], NOW)
    assert window.end_ms == round(NOW.timestamp() * 1000)
    assert (window.end_ms - window.start_ms) % window.step_ms == 0
    points = (window.end_ms - window.start_ms) // window.step_ms + 1
    assert points <= queries.MOST_POINTS + 1
    if window.start_ms == window.end_ms:
        return
    # Nothing is lost or won at the start but the remainder of a division into milliseconds.
    late = window.start_ms - begin.timestamp() * 1000
    if begin < since:
        assert -queries.MOST_POINTS - 1 <= late < 1
    else:
        assert -1e-3 < late <= queries.MOST_POINTS + 1


def test_a_step_that_begins_in_the_future_is_an_empty_window() -> None:
    window = queries.window([need(NOW + timedelta(seconds=60))], NOW)
    assert window.start_ms == window.end_ms == round(NOW.timestamp() * 1000)


def test_the_window_holds_all_needs() -> None:
    needs = [need(NOW - timedelta(minutes=1)), need(NOW - timedelta(minutes=9), "other")]
    window = queries.window(needs, NOW)
    assert window.end_ms - window.start_ms == pytest.approx(540_000, abs=queries.MOST_POINTS)


def test_the_texts_do_not_depend_on_the_order_of_the_needs() -> None:
    needs = [need(NOW), need(NOW, "other"), need(NOW, "third")]
    for text in (queries.router_counters, queries.router_latency, queries.engine_counters):
        assert text(needs) == text(needs[::-1])
        assert "llama" in text(needs)
        assert "third" in text(needs)


def test_backslashes_reach_the_regular_expression() -> None:
    text = queries.engine_counters([need(NOW, "llama-v1.5")])
    assert r"llama-v1\\.5-[a-z0-9]{1,10}-[a-z0-9]{5}" in text


def test_the_cache_config_is_asked_with_its_time() -> None:
    text = queries.cache_config_times(["ns"], ["b-1", "a-1"])
    assert text == 'timestamp(vllm:cache_config_info{namespace=~"ns",pod=~"a-1|b-1"})'
