"""The operator is replaced by another version in mid-rollout: its memory is the status alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import Phase, Status
from kvquant.reconciler import Ref
from tests.conftest import REPOSITORY
from tests.site import Harm, Site, never_skips, rollout, steps_taken

STORED = sorted((REPOSITORY / "tests" / "data" / "statuses").glob("*/*.json"))
"""Statuses as earlier versions wrote them, one directory a version. They are never edited: what a
version wrote, every later one must read."""


def come_to(site: Site, status: dict[str, Any]) -> Ref:
    """Return a rollout that has come to where a stored status stands."""
    wanted = Status.model_validate(status)
    obj = rollout()
    # An older version knew of no shadow, so that nothing of it can be in the spec that it hashed.
    del obj["spec"]["shadow"]
    ref = site.apply(obj)

    def there(current: Status) -> bool:
        return (current.phase, current.step, current.next_step, current.settled) == (
            wanted.phase,
            wanted.step,
            wanted.next_step,
            wanted.settled,
        )

    # The stored times must not be long past by then.
    site.until(ref, lambda current: there(current) or current.phase is Phase.SHADOWING)
    site.annotate(ref, promote="without the pairs")
    site.until(ref, there)
    site.annotate(ref, promote=None)
    return ref


@pytest.mark.parametrize("file", STORED, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_a_status_of_an_older_version_is_carried_to_its_end(file: Path) -> None:
    stored = json.loads(file.read_text())
    site = Site()
    site.deploy()
    if file.stem in ("rolling-back", "rolled-back"):
        site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    ref = come_to(site, stored)
    site.cluster.edit(names.KIND, ref.namespace, ref.name, lambda obj: obj.update(status=stored))
    site.restart()
    before = Status.model_validate(stored)
    status = site.until_settled(ref)
    good = file.stem not in ("rolling-back", "rolled-back")
    assert status.phase is (Phase.PROMOTED if good else Phase.ROLLED_BACK)
    assert status.attempt == before.attempt, "an upgrade is no reason to start over"
    assert status.decisions[: len(before.decisions)] == before.decisions, "nor to forget"
    weights = steps_taken(site.traffic.history, "green")
    # A version that held nothing back gave the last step all of the traffic.
    ladder = sorted({0, 10, 25, 50, 100, *weights})
    assert never_skips(weights, ladder)
    assert site.lost == []


@pytest.mark.parametrize("file", STORED, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_what_a_newer_version_has_added_is_no_obstacle_to_an_older_one(file: Path) -> None:
    stored = json.loads(file.read_text())

    def with_more(node: Any) -> Any:
        if isinstance(node, list):
            return [with_more(item) for item in node]
        if isinstance(node, dict):
            more = {key: with_more(value) for key, value in node.items()}
            return {**more, "fieldOfTomorrow": {"a": [1]}}
        return node

    assert Status.model_validate(with_more(stored)) == Status.model_validate(stored)
