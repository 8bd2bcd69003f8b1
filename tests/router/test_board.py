"""The plain state behind the weights service."""

from __future__ import annotations

import pytest

from kvquant.ports import Acknowledgement, RouterKey
from kvquant.router.board import Board, Follower

KEY = RouterKey("inference", "llama-router")


def follower(node: str, heard: list[str], router: RouterKey = KEY) -> Follower:
    return Follower(router, node, wake=lambda: heard.append(node), end=lambda: heard.append("end"))


def test_a_change_wakes_the_routers_own_streams_only() -> None:
    board, heard = Board(), list[str]()
    board.join(follower("pod-1", heard))
    board.join(follower("pod-2", heard))
    board.join(follower("pod-3", heard, RouterKey("inference", "other-router")))
    board.post(KEY, {"blue": 90, "green": 10})
    assert sorted(heard) == ["pod-1", "pod-2"]


def test_the_same_weights_wake_nobody_and_keep_their_version() -> None:
    board, heard = Board(), list[str]()
    board.post(KEY, {"blue": 90, "green": 10})
    before = board.read(KEY)
    board.join(follower("pod-1", heard))
    board.post(KEY, {"green": 10, "blue": 90})
    assert board.read(KEY) == before
    assert heard == []


def test_only_the_latest_version_counts_as_applied() -> None:
    board = Board()
    pod = follower("pod-1", [])
    board.join(pod)
    board.post(KEY, {"blue": 90, "green": 10})
    first = board.read(KEY)
    assert first is not None
    board.acknowledge(pod, first.version)
    assert board.acknowledged(KEY) == Acknowledgement(connected=1, applied=1)
    board.post(KEY, {"blue": 50, "green": 50})
    assert board.acknowledged(KEY) == Acknowledgement(connected=1, applied=0)
    board.acknowledge(pod, first.version)
    assert board.acknowledged(KEY) == Acknowledgement(connected=1, applied=0)


def test_an_older_stream_of_a_pod_is_ended_and_its_leaving_changes_nothing() -> None:
    board, heard = Board(), list[str]()
    older, newer = follower("pod-1", heard), follower("pod-1", heard)
    board.join(older)
    board.join(newer)
    assert heard == ["end"]
    board.leave(older)
    assert board.acknowledged(KEY).connected == 1
    board.leave(newer)
    assert board.acknowledged(KEY).connected == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"blue": 100}, "name exactly blue, green"),
        ({"blue": 50, "green": 25, "red": 25}, "name exactly blue, green"),
        ({"blue": 60, "green": 60}, "sum to 120: make it 100"),
        ({"blue": 110, "green": -10}, "whole per cents, 0 to 100"),
        ({"blue": 99.5, "green": 0.5}, "whole per cents, 0 to 100"),
        ({"blue": True, "green": 99}, "whole per cents, 0 to 100"),
    ],
)
def test_weights_that_make_no_split_are_refused(weights: dict[str, int], message: str) -> None:
    board = Board()
    with pytest.raises(ValueError, match=message):
        board.post(KEY, weights)
    assert board.read(KEY) is None
