"""How far it has come, where the arms are, and the example set that we ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvquant.evaluation.arms import ArmError, Fixed, arm
from kvquant.evaluation.fetching import fetch
from kvquant.evaluation.kinds import Kind
from kvquant.evaluation.progress import Progress
from kvquant.evaluation.questions import ask, ordered
from kvquant.evaluation.results import CANARY
from kvquant.shadow.pods import Pods
from tests.unit.evaluation.answered import results, unanswered

SHIPPED = Path(__file__).parents[3] / "examples" / "evaluation" / "set.jsonl"


def test_progress_is_told_now_and_then_and_at_the_end() -> None:
    clock, lines = [0.0], list[str]()
    progress = Progress(40, lines.append, every=10.0, clock=lambda: clock[0])
    for number, result in enumerate([*results([0.0] * 37), *unanswered(3, arm=CANARY)]):
        clock[0] = float(number)
        progress(result)
    assert lines == [
        "11/40 examples, 10 s, about 26 s left",
        "21/40 examples, 20 s, about 18 s left",
        "31/40 examples, 30 s, about 9 s left",
        "40/40 examples, not answered: baseline 0, canary 3, 39 s",
    ]


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("https://models.example.org/llama/v1/", "https://models.example.org/llama"),
    ],
)
def test_a_base_url_is_asked_as_it_stands(place: str, url: str) -> None:
    assert arm("canary", place).choice.pick() == url


def test_a_host_and_port_stand_for_every_address_behind_it() -> None:
    made = arm("canary", "llama.inference.svc:8000")
    assert isinstance(made.choice, Pods)
    assert made.choice.pick() is None, "nothing was looked up yet"


@pytest.mark.parametrize(
    "place",
    ["", "localhost", "host:", "host:0x1", "ftp://host", "http://", "http://u:p@host", "/x"],
)
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(ArmError, match="write a base URL"):
        arm("canary", place)


def test_pods_are_asked_in_turn_and_one_to_avoid_only_without_others() -> None:
    pods = Fixed(("a", "b"))
    assert {pods.pick(), pods.pick()} == {"a", "b"}
    assert [pods.pick({"a"}) for _ in range(3)] == ["b"] * 3
    assert Fixed(("a",)).pick({"a"}) == "a"


def test_the_shipped_set_has_some_of_each_kind_and_is_asked_in_an_order_of_its_own() -> None:
    examples = fetch(str(SHIPPED)).examples
    assert {ask(example, 100, 0).kind for example in examples} == set(Kind)
    orders = {tuple(e.id for e in ordered(examples, seed)) for seed in range(5)}
    assert len(orders) > 1
    assert ordered(examples, 3) == ordered(examples[::-1], 3)
