"""What is taken for slower, and what for noise."""

from __future__ import annotations

import random

import pytest

from bench.shadow_ratios import ratio


def _rounds(seed: int, factor: float = 1.0, count: int = 8) -> list[list[float]]:
    """Latencies of rounds of which each has its own disturbance, the same for every factor."""
    disturbed = random.Random(5)
    chance = random.Random(seed)
    return [
        [factor * base * chance.lognormvariate(0, 0.2) for _ in range(200)]
        for base in (disturbed.uniform(0.2, 0.4) for _ in range(count))
    ]


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_what_differs_by_nothing_is_no_slower(share: float) -> None:
    noise = ratio(_rounds(1), _rounds(2), share, seed=1)
    again = ratio(_rounds(3), _rounds(2), share, seed=1)
    assert noise.low < noise.value < noise.high
    assert not again.slower_than(noise)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_half_as_long_again_is_slower_in_spite_of_disturbed_rounds(share: float) -> None:
    base = _rounds(2)
    noise = ratio(_rounds(1), base, share, seed=1)
    slow = ratio(_rounds(3, 1.5), base, share, seed=1)
    assert slow.value == pytest.approx(1.5, rel=0.2)
    assert slow.slower_than(noise)
    assert not ratio(_rounds(3, 0.7), base, share, seed=1).slower_than(noise)


def test_what_noise_alone_reaches_is_not_slower() -> None:
    base = _rounds(2)
    slow = ratio(_rounds(3, 1.3), base, 0.5, seed=1)
    assert not slow.slower_than(slow)


def test_the_same_seed_gives_the_same_interval() -> None:
    def once(seed: int) -> tuple[float, float]:
        told = ratio(_rounds(1), _rounds(2), 0.99, seed)
        return told.low, told.high

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_one_round_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two rounds"):
        ratio([[0.1]], [[0.1]], 0.5, seed=1)


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="pair"):
        ratio(_rounds(1, count=3), _rounds(2, count=4), 0.5, seed=1)


def test_a_round_without_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="no answered request"):
        ratio([[0.1], []], [[0.1], [0.1]], 0.5, seed=1)
