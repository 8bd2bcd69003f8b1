"""Tokens to routers, with a cache in front of the API server."""

from __future__ import annotations

import pytest

from kvquant.errors import Unavailable
from kvquant.ports import RouterKey
from kvquant.router.auth import Authenticator, router_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Reviewer:
    """Stands for TokenReview; counts how often it was asked."""

    def __init__(self) -> None:
        self.users: dict[tuple[str, str], str] = {}
        self.asked: list[str] = []
        self.down = False

    def __call__(self, token: str, audience: str) -> str | None:
        self.asked.append(token)
        if self.down:
            raise Unavailable("the API server does not answer")
        return self.users.get((token, audience))


@pytest.fixture
def reviewer() -> Reviewer:
    reviewer = Reviewer()
    reviewer.users["good", "kvquant-xds"] = "system:serviceaccount:inference:llama-router"
    reviewer.users["api", "https://kubernetes.default.svc"] = "system:serviceaccount:a:b"
    reviewer.users["person", "kvquant-xds"] = "jane"
    return reviewer


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authenticator(reviewer: Reviewer, clock: Clock) -> Authenticator:
    return Authenticator(reviewer, accepted_for=60, refused_for=5, size=3, monotonic=clock)


def test_a_router_is_its_service_account(authenticator: Authenticator) -> None:
    assert authenticator("good") == RouterKey("inference", "llama-router")


@pytest.mark.parametrize("token", ["unknown", "api", "person"])
def test_other_tokens_are_nobody(authenticator: Authenticator, token: str) -> None:
    assert authenticator(token) is None


@pytest.mark.parametrize(
    "username",
    [
        *("jane", "system:node:n1", "system:serviceaccount:", "system:serviceaccount:a"),
        *("system:serviceaccount:a:", "system:serviceaccount::b", "system:serviceaccount:a:b:c"),
    ],
)
def test_only_service_accounts_are_routers(username: str) -> None:
    assert router_of(username) is None


def test_a_good_token_is_believed_for_a_while(
    authenticator: Authenticator, reviewer: Reviewer, clock: Clock
) -> None:
    authenticator("good")
    reviewer.users.clear()
    clock.now += 59
    assert authenticator("good") is not None
    clock.now += 1
    assert authenticator("good") is None
    assert reviewer.asked == ["good", "good"]


def test_a_refused_token_is_asked_for_again_soon(
    authenticator: Authenticator, reviewer: Reviewer, clock: Clock
) -> None:
    assert authenticator("late") is None
    reviewer.users["late", "kvquant-xds"] = "system:serviceaccount:a:b"
    clock.now += 4
    assert authenticator("late") is None
    clock.now += 1
    assert authenticator("late") == RouterKey("a", "b")


def test_an_api_server_that_is_down_is_no_answer_and_not_remembered(
    authenticator: Authenticator, reviewer: Reviewer
) -> None:
    reviewer.down = True
    with pytest.raises(Unavailable):
        authenticator("good")
    reviewer.down = False
    assert authenticator("good") is not None


def test_the_cache_is_bounded(authenticator: Authenticator, reviewer: Reviewer) -> None:
    for number in range(10):
        authenticator(f"forged-{number}")
    assert authenticator("forged-9") is None
    assert len(reviewer.asked) == 10
    authenticator("forged-0")
    assert len(reviewer.asked) == 11
