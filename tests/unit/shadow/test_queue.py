"""The queue of mirrored requests, its gate, and the allowance of tokens."""

from __future__ import annotations

import asyncio

import pytest

from kvquant.core.shadow_settings import BUCKETS, bucket_of
from kvquant.shadow.allowance import Allowance
from kvquant.shadow.prepared import is_chosen
from kvquant.shadow.queue import Job, WaitingJobs


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Waiting:
    """A queue of three jobs or a hundred bytes, with a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.expired = 0
        self.queue = WaitingJobs(3, 100, self.clock, self._expire)

    def _expire(self) -> None:
        self.expired += 1

    def job(self, size: int = 10, name: str = "/v1/completions") -> Job:
        now = self.clock()
        return Job(name, b"x" * size, "", "0-4KiB", now, now + 10, now + 5)


async def test_the_oldest_goes_first() -> None:
    waiting = Waiting()
    for name in ("a", "b"):
        assert waiting.queue.offer(waiting.job(name=name))
    assert [(await waiting.queue.take()).path for _ in range(2)] == ["a", "b"]
    assert (len(waiting.queue), waiting.queue.bytes) == (0, 0)


async def test_when_it_is_full_by_number_the_newest_is_dropped() -> None:
    waiting = Waiting()
    assert all(waiting.queue.offer(waiting.job(name=name)) for name in "abc")
    assert not waiting.queue.offer(waiting.job(name="d"))
    assert (await waiting.queue.take()).path == "a"
    assert waiting.queue.offer(waiting.job(name="e"))


async def test_when_it_is_full_by_bytes_the_newest_is_dropped() -> None:
    waiting = Waiting()
    assert waiting.queue.offer(waiting.job(90))
    assert not waiting.queue.offer(waiting.job(11))
    assert waiting.queue.offer(waiting.job(10))


async def test_what_has_waited_too_long_is_dropped_and_makes_room() -> None:
    waiting = Waiting()
    for _ in range(3):
        waiting.queue.offer(waiting.job())
    waiting.clock.now += 5
    assert waiting.queue.offer(waiting.job(name="young"))
    assert waiting.expired == 3
    assert (await waiting.queue.take()).path == "young"


async def test_a_shut_gate_keeps_them_and_lets_them_expire() -> None:
    waiting = Waiting()
    waiting.queue.gate(is_open=False)
    waiting.queue.offer(waiting.job())
    taking = asyncio.create_task(waiting.queue.take())
    await asyncio.sleep(0)
    assert not taking.done()
    waiting.clock.now += 5
    waiting.queue.expire()
    assert waiting.expired == 1
    waiting.queue.gate(is_open=True)
    waiting.queue.offer(waiting.job(name="later"))
    assert (await taking).path == "later"


async def test_two_that_wait_get_one_each() -> None:
    waiting = Waiting()
    takings = [asyncio.create_task(waiting.queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    for name in "ab":
        waiting.queue.offer(waiting.job(name=name))
    assert {(await taking).path for taking in takings} == {"a", "b"}


def test_the_text_of_a_job_is_not_in_its_repr() -> None:
    assert "PLANTED" not in repr(Job("/v1/completions", b"PLANTED", "", "0-4KiB", 0, 0, 0))


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        (0, "0-4KiB"),
        (4096, "0-4KiB"),
        (4097, "4-16KiB"),
        (2**20, "256KiB-1MiB"),
        (2**20 + 1, "1MiB+"),
    ],
)
def test_buckets_include_their_upper_bound(size: int, bucket: str) -> None:
    assert bucket_of(size) == bucket
    assert bucket in dict(BUCKETS)


def test_an_allowance_fills_at_its_rate_and_may_be_overdrawn() -> None:
    clock = Clock()
    allowance = Allowance(100, clock)
    assert allowance.wait() == 0
    allowance.spend(300)
    assert allowance.wait() == 2
    clock.now += 1.5
    assert allowance.wait() == 0.5
    allowance.spend(-50)
    assert allowance.wait() == 0
    clock.now += 1000
    allowance.spend(100)
    assert allowance.wait() == 0
    allowance.spend(100)
    assert allowance.wait() == 1


def test_no_rate_is_no_limit() -> None:
    allowance = Allowance(0, Clock())
    allowance.spend(1e9)
    assert allowance.wait() == 0


def test_a_share_of_the_requests_is_chosen_and_always_the_same() -> None:
    requests = [b"request %d" % number for number in range(2000)]
    chosen = [is_chosen(request, 20) for request in requests]
    assert chosen == [is_chosen(request, 20) for request in requests]
    assert 0.15 < sum(chosen) / len(chosen) < 0.25
    assert not any(is_chosen(request, 0) for request in requests)
    assert all(is_chosen(request, 100) for request in requests)
