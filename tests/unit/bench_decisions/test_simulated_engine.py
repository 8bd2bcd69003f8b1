"""The simulated engine keeps its books, and is as fast as the recorded ones."""

from __future__ import annotations

import math
from random import Random

import pytest

from bench.decisions.calibrate import RECORDED, replay
from bench.decisions.engine import Pod, Profile, Request
from bench.decisions.profiles import AUTO


def _drain(pod: Pod, until: float = math.inf) -> list[tuple[float, Request]]:
    ended = []
    while pod.due_at < until:
        now = pod.due_at
        ended += [(now, request) for request in pod.due(now)]
    return ended


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_engines_are_reproduced_within_a_fifth(name: str) -> None:
    profile, rate, slowest = RECORDED[name]
    simulated_rate, simulated_slowest = replay(profile)
    assert simulated_rate == pytest.approx(rate, rel=0.2)
    assert simulated_slowest == pytest.approx(slowest, rel=0.2)


def test_a_lone_request_takes_its_prefill_and_its_tokens() -> None:
    profile = Profile(10_000, floor=0.01, sequence=0.0, context=0.0, prompt=1e-4, attention=0.0)
    pod = Pod("pod", profile, 1, 0.0)
    pod.arrive(5.0, Request(5.0, 1_000, 101, 0))
    ((ended, request),) = _drain(pod)
    assert request.first == pytest.approx(5.0 + 0.1 + 0.01)
    assert ended == pytest.approx(request.first + 100 * 0.01)
    shown = pod.scrape(ended, 0.0)
    assert shown.generated_tokens == pytest.approx(101)
    assert (shown.finished, shown.prompt_tokens, shown.running, shown.waiting) == (1, 1_000, 0, 0)
    assert shown.itl is not None
    assert shown.itl.sum == pytest.approx(1.0)


def test_whatever_comes_every_token_is_generated_and_the_cache_is_given_back() -> None:
    chance = Random(1)
    pod = Pod("pod", Profile(6_000, 0.005, 1e-4, 1e-7, 3e-5, 1e-9), 1, 0.0)
    asked, now = 0, 0.0
    ended: list[tuple[float, Request]] = []
    for _ in range(400):
        now += chance.expovariate(1.0)
        ended += _drain(pod, now)
        request = Request(now, chance.randint(10, 3_000), chance.randint(1, 900), 0)
        asked += request.output
        pod.arrive(now, request)
    ended += _drain(pod)
    assert len(ended) == 400
    assert pod.preemptions > 0
    shown = pod.scrape(ended[-1][0], 0.0)
    # A preempted sequence loses the fraction of a token that it was at.
    assert shown.generated_tokens == pytest.approx(asked, abs=pod.preemptions + 1)
    assert pod._cached == pytest.approx(0.0, abs=1e-3)


def test_a_dead_engine_begins_again_from_nought() -> None:
    pod = Pod("pod", AUTO, 1, 0.0)
    for _ in range(3):
        pod.arrive(0.0, Request(0.0, 2_000, 200, 0))
    pod.due(pod.due_at)
    assert len(pod.die(1.0)) == 3
    pod.restart(91.0)
    shown = pod.scrape(92.0, 1000.0)
    assert (shown.process_started, shown.generated_tokens, shown.finished) == (1091.0, 0.0, 0)


def test_a_hanging_engine_finishes_nothing_and_goes_on_where_it_was() -> None:
    pod = Pod("pod", AUTO, 1, 0.0)
    pod.arrive(0.0, Request(0.0, 2_000, 200, 0))
    pod.due(pod.due_at)
    pod.pace(0.5, math.inf)
    assert pod.due_at == math.inf
    assert pod.scrape(60.0, 0.0).running == 1
    pod.pace(60.0, 1.0)
    ((ended, _),) = _drain(pod)
    assert ended > 60.0
