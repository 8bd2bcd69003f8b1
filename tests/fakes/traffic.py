"""A Traffic port that keeps what it was told; routers follow at once, unless the test says not."""

from __future__ import annotations

from collections.abc import Mapping

from kvquant.ports import Acknowledgement, RouterKey


class FakeTraffic:
    """Routers that apply what they are told.

    Attributes:
        weights: What each router follows now.
        mirrored: Share of the requests that each router copies now.
        history: Every change of weights, in order; repetitions are left out, as none is sent.
        connected: Pods of each router that hold a stream to the operator.
        deaf: Routers that hold their stream and acknowledge nothing.
        calls: Calls of `set_weights` so far, repetitions included.
        forgotten: Routers that are not driven any more.
    """

    def __init__(self, connected: int = 2) -> None:
        self.weights: dict[RouterKey, dict[str, int]] = {}
        self.mirrored: dict[RouterKey, int] = {}
        self.history: list[tuple[RouterKey, dict[str, int]]] = []
        self.connected = connected
        self.deaf: set[RouterKey] = set()
        self.calls = 0
        self.forgotten: list[RouterKey] = []

    def set_weights(self, router: RouterKey, weights: Mapping[str, int], mirror: int = 0) -> None:
        self.calls += 1
        self.mirrored[router] = mirror
        if sum(weights.values()) != 100 or min(weights.values()) < 0:
            raise ValueError(f"weights of {router} are not per cents that sum to 100: {weights}")
        if self.weights.get(router) != weights:
            self.weights[router] = dict(weights)
            self.history.append((router, dict(weights)))

    def acknowledged(self, router: RouterKey) -> Acknowledgement:
        follows = router in self.weights and router not in self.deaf
        return Acknowledgement(self.connected, self.connected if follows else 0)

    def forget(self, router: RouterKey) -> None:
        self.forgotten.append(router)
        self.weights.pop(router, None)
