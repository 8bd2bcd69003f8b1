"""Pairs are held to a share of what clients ask, whoever sends the copies."""

from __future__ import annotations

import random

from kvquant.shadow.share import BURST, SLACK, Share


def begun(share: Share, most: int = 10_000) -> int:
    """Begin as many pairs as may begin."""
    count = 0
    while not share.used_up and count < most:
        share.begin()
        count += 1
    return count


def test_a_flood_gets_no_more_than_the_share_of_what_clients_ask() -> None:
    share, total = Share(10), 0.0
    share.look({"a": total})
    pairs = 0
    for _ in range(100):
        pairs += begun(share)
        total += 50
        share.look({"a": total})
    assert pairs <= BURST + SLACK * 0.1 * 5000
    assert pairs >= SLACK * 0.1 * 4900


def test_what_the_router_copies_by_chance_is_hardly_ever_held_up() -> None:
    share, total, chance, held = Share(10), 0.0, random.Random(1), 0
    share.look({"a": total})
    for _ in range(2000):
        copies = sum(chance.random() < 0.1 for _ in range(20))
        for _ in range(copies):
            held += share.used_up
            share.begin()
            # Each costs the baseline an answer and a score.
            share.own += 2
        total += 20 + 2 * copies
        share.look({"a": total})
    assert held < 20


def test_questions_of_its_own_allow_no_further_ones() -> None:
    share = Share(50)
    share.look({"a": 0.0})
    begun(share)
    share.own = 40
    share.look({"a": 40.0})
    assert share.used_up


def test_no_limit_is_no_limit() -> None:
    assert begun(Share(0)) == 10_000


def test_a_quiet_hour_allows_no_flood_after_it() -> None:
    share = Share(10)
    share.look({"a": 0.0})
    share.look({"a": 1_000_000.0})
    assert begun(share) == BURST


def test_pods_that_come_restart_and_go_are_counted_for_what_they_did() -> None:
    share = Share(100)
    begun(share)
    share.look({"a": 1000.0, "b": None})
    assert share.used_up, "what was finished before nobody knows of whom"
    share.look({"a": 4.0})
    # The process began anew and has finished four since.
    assert begun(share) == 4 * SLACK
    share.look({})
    assert share.used_up


def test_a_baseline_that_tells_nothing_allows_nothing_more() -> None:
    share = Share(10)
    begun(share)
    for _ in range(10):
        share.look({"a": None})
    assert share.used_up
