"""Weights that are committed are served in the next pass, which must not be waited for."""

from __future__ import annotations

from kvquant.api.v1alpha1 import Phase, Status
from kvquant.ports import RouterKey
from kvquant.reconciler import Ref, Result
from tests.site import NAMESPACE, Site

ROUTER = RouterKey(NAMESPACE, "llama-router")


def moved(result: Result) -> bool:
    """Tell whether a pass has committed other weights."""
    before, after = result.before, result.after
    return before is not None and after is not None and before.weights != after.weights


def turn_until(site: Site, ref: Ref, phase: Phase, weight: int) -> list[Result]:
    """Run turns up to a phase and weight, and return those that have committed other weights."""
    moves: list[Result] = []

    def there(status: Status) -> bool:
        return (status.phase, status.weights.canary) == (phase, weight)

    for _ in range(400):
        if there(site.status(ref)):
            return moves
        result = site.turn(ref)
        moves += [result] if moved(result) else []
    raise AssertionError(f"not {phase} at {weight} %")


def test_no_pass_that_commits_weights_waits_to_serve_them() -> None:
    site = Site()
    site.deploy()
    ref = site.apply()
    moves = turn_until(site, ref, Phase.PROGRESSING, 25)
    site.annotate(ref, killed="by Ada")
    moves += turn_until(site, ref, Phase.VERIFYING, 0)
    site.turn(ref)
    assert site.traffic.weights[ROUTER]["green"] == 0
    site.annotate(ref, killed=None)
    moves += turn_until(site, ref, Phase.PROMOTED, 100)

    weights = [m.after.weights.canary for m in moves if m.after is not None]
    copying = 0  # to shadow is a change of the split, too
    assert weights == [copying, 10, 25, 0, copying, 10, 25, 50, 95, 100]
    assert [m.requeue_after for m in moves] == [0.0] * len(moves)
