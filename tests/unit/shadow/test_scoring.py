"""Teacher-forced drift: what is asked, what is read, how far it may go."""

from __future__ import annotations

import math

import pytest

from kvquant.shadow.answers import Answer
from kvquant.shadow.scoring import CLIP, UnscoredError, drift, negative_log_likelihood, question

ANSWER = Answer("x", prompt_ids=(5, 6, 7), answer_ids=(8, 9))


def told(*logprobs: tuple[int, float] | None) -> dict[str, object]:
    """What vLLM answers: null at the first position, then the token that stands there."""
    positions = [
        at and {str(at[0]): {"logprob": at[1], "rank": 1, "decoded_token": "x"}} for at in logprobs
    ]
    return {"choices": [{"index": 0, "text": "y", "prompt_logprobs": positions}]}


WHOLE = told(None, (6, -9.0), (7, -9.0), (8, -1.0), (9, -3.0))


def test_prompt_and_answer_are_asked_as_one_prompt() -> None:
    asked = question("llama", ANSWER, 100)
    assert asked["model"] == "llama"
    assert asked["prompt"] == [5, 6, 7, 8, 9]
    assert (asked["max_tokens"], asked["prompt_logprobs"], asked["temperature"]) == (1, 0, 0)
    assert "model" not in question(None, ANSWER, 100)


@pytest.mark.parametrize(
    ("answer", "most", "reason"),
    [
        (Answer("x", answer_ids=(8,)), 100, "ids"),
        (Answer("x", prompt_ids=(8,)), 100, "ids"),
        (ANSWER, 2, "length"),
        (ANSWER, 0, "off"),
    ],
)
def test_what_cannot_be_scored_says_why(answer: Answer, most: int, reason: str) -> None:
    with pytest.raises(UnscoredError) as raised:
        question("llama", answer, most)
    assert raised.value.reason == reason


def test_only_the_positions_of_the_answer_count() -> None:
    assert negative_log_likelihood(WHOLE, (8, 9)) == 2.0


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"choices": []},
        {"choices": [{"prompt_logprobs": None}]},
        told((9, -1.0)),
        told(None, (8, -1.0), None),
        told(None, (8, -1.0), (10, -1.0)),
        told(None, (8, -1.0), (9, math.nan)),
        told(None, (8, -1.0), (9, -math.inf)),
        {"choices": [{"prompt_logprobs": [{"8": "?"}, {"9": "?"}]}]},
    ],
)
def test_documents_that_do_not_tell_it(document: object) -> None:
    with pytest.raises(UnscoredError, match="logprobs"):
        negative_log_likelihood(document, (8, 9))


def test_a_second_arm_that_finds_it_less_likely_has_drifted() -> None:
    assert drift(1.0, 1.25) == 0.25
    assert drift(1.25, 1.0) == -0.25
    assert drift(0.0, 9999.0) == CLIP
    assert drift(9999.0, 0.0) == -CLIP
