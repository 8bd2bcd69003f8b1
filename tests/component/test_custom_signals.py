"""Whole rollouts with a signal of the user's: it rolls back, it passes, and it holds."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.api.v1alpha1 import DecisionKind, Phase, Verdict
from kvquant.core import record
from tests.site import Harm, Site, held, rollout


def asked(**kind: Any) -> dict[str, Any]:
    custom = {"name": "toolErrors", "tolerancePercent": 2, **kind}
    return rollout(analysis={"interval": "5s", "minRequests": 60, "custom": [custom]})


RATIO = {"events": 'tool_calls_total{outcome="error"}', "total": "tool_calls_total"}


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def test_harm_that_only_the_users_signal_shows_rolls_back_and_says_so(site: Site) -> None:
    site.harm["llama-fp8-pool"] = Harm(tools=0.3)
    ref = site.apply(asked(ratio=RATIO))
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert "toolErrors: 30 %, baseline 0 %; 2 % more is tolerated" in (status.verdict or "")
    (kept,) = [o for o in site.cluster.objects("ConfigMap") if "-record" in o["metadata"]["name"]]
    (decision,) = [e for e in record.read(kept["data"]) if e.kind is DecisionKind.ROLL_BACK]
    assert decision.analysis is not None
    (signal,) = [s for s in decision.analysis.signals if s.verdict is Verdict.FAIL]
    assert (signal.name, signal.family, signal.canary) == ("toolErrors", "custom", "30 %")


def test_the_direction_of_harm_is_the_users(site: Site) -> None:
    # What rises at the canary is good here.
    site.harm["llama"] = Harm(tools=0.3)
    site.harm["llama-fp8-pool"] = Harm(tools=0.6)
    ref = site.apply(asked(ratio=RATIO, direction="decrease"))
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_signal_that_nobody_exports_holds_the_first_step_and_is_named(site: Site) -> None:
    ref = site.apply(asked(latency={"histogram": "no_such_seconds"}))
    status = site.until(ref, lambda status: "toolErrors: not measured" in (status.verdict or ""))
    for _ in range(30):
        site.turn(ref)
    status = site.status(ref)
    assert (status.phase, status.step) == (Phase.PROGRESSING, 1)
    assert held(status) is not None
    assert "the engine pods of both arms must export it" in (status.verdict or "")
