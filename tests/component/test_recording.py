"""The record of a rollout's decisions: complete whatever fails, no write while nothing moves."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kvquant.api import names
from kvquant.api.v1alpha1 import DecisionKind, Phase, Verdict
from kvquant.core import record
from kvquant.core.record import Entry
from kvquant.errors import ClusterError, Conflict, Refused, Unavailable
from kvquant.ports import Object
from kvquant.reconciler import Ref
from tests.fakes.cluster import Fault
from tests.site import NAMESPACE, Harm, Site

NAME = "llama-fp8-record"


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def stored(site: Site) -> Object | None:
    found = [o for o in site.cluster.objects("ConfigMap") if o["metadata"]["name"] == NAME]
    return found[0] if found else None


def entries(site: Site) -> list[Entry]:
    found = stored(site)
    return record.read((found or {}).get("data") or {})


def complete(site: Site, ref: Ref) -> bool:
    """Tell whether every decision of the status stands in the record, as it was."""
    known = {entry.number: entry for entry in entries(site)}
    return all(
        (told := known.get(d.number or 0)) is not None
        and (told.at, told.reason, told.message) == (d.at, d.reason, d.message)
        for d in site.status(ref).decisions
    )


# What goes wrong.


@pytest.mark.parametrize("verb", ["apply", "patch"])
@pytest.mark.parametrize("late", [False, True], ids=["not done", "done, answer lost"])
@pytest.mark.parametrize(
    "error", [Refused("may not (HTTP 403)"), Unavailable("no answer"), Conflict("stale")]
)
def test_a_write_that_fails_stops_nothing_and_is_made_up_for(
    site: Site, verb: str, late: bool, error: ClusterError
) -> None:
    site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    ref = site.apply()
    site.turn(ref)
    # The router's objects go through: only the record is refused.
    original = getattr(site.cluster, verb)
    refused = 0

    def refuse(*arguments: Any) -> Any:
        nonlocal refused
        target = arguments[0]["metadata"]["name"] if verb == "apply" else arguments[2]
        if target == NAME and refused < 3:
            refused += 1
            if late:
                original(*arguments)
            raise error
        return original(*arguments)

    setattr(site.cluster, verb, refuse)
    status = site.until_settled(ref)
    assert refused > 0
    assert status.phase is Phase.ROLLED_BACK
    assert complete(site, ref)


def test_a_record_that_can_never_be_written_is_logged_once_and_holds_up_nothing(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    other = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"mine": "1"}}
    site.cluster.put({**other, "metadata": {"name": NAME, "namespace": NAMESPACE}})
    ref = site.apply()
    with caplog.at_level(logging.WARNING, "kvquant.recording"):
        assert site.until_settled(ref).phase is Phase.PROMOTED
    assert (stored(site) or {})["data"] == {"mine": "1"}
    assert [m for m in caplog.messages if "record" in m] == [
        f"The record of {NAMESPACE}/llama-fp8 cannot be written yet: there is a ConfigMap {NAME} "
        "of somebody else's: rename it"
    ]


def test_a_record_that_somebody_deletes_is_made_again_from_the_status(site: Site) -> None:
    ref = site.apply()
    site.until_settled(ref)
    site.cluster.vanish("ConfigMap", NAMESPACE, NAME)
    site.turn(ref)
    assert complete(site, ref)


@pytest.mark.parametrize("mark", ["", "seven", "-1", "²"])
def test_a_mark_that_somebody_has_spoilt_is_mended(site: Site, mark: str) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)

    def spoil(obj: Object) -> None:
        obj["metadata"]["annotations"][names.ANNOTATION_RECORDED] = mark

    site.turn(ref)
    site.cluster.edit("ConfigMap", NAMESPACE, NAME, spoil)
    site.until_settled(ref)
    assert complete(site, ref)


def test_a_record_left_behind_by_a_rollout_of_the_same_name_is_emptied_first(site: Site) -> None:
    ref = site.apply()
    site.until_settled(ref)
    site.cluster.vanish(names.KIND, ref.namespace, ref.name)
    site.cluster.vanish("Deployment", NAMESPACE, "llama-fp8-pool")
    site.cluster.vanish("ConfigMap", NAMESPACE, "llama-router")
    older = {entry.at for entry in entries(site)}
    site.cluster.edit("Deployment", NAMESPACE, "llama", lambda obj: obj["spec"].update(replicas=2))
    site.apply()
    site.restart()
    site.turn(ref)
    site.turn(ref)
    assert complete(site, ref)
    assert not older & {entry.at for entry in entries(site)}
    (owner,) = (stored(site) or {})["metadata"]["ownerReferences"]
    assert owner["uid"] == site.raw(ref)["metadata"]["uid"]


def test_an_operator_that_is_killed_before_it_writes_leaves_that_to_the_next(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.next_step == 2)
    numbers = [d.number for d in site.status(ref).decisions]
    assert max(n or 0 for n in numbers) > max(entry.number for entry in entries(site))
    site.restart()
    site.turn(ref)
    assert [entry.number for entry in entries(site)] == numbers
    passed = [e for e in entries(site) if e.reason == "StepPassed"]
    assert passed[0].analysis is not None, "with the evidence that it rested on"
    assert passed[0].analysis.verdict is Verdict.PASS


# What is kept.


def test_every_decision_is_kept_with_the_evidence_that_it_rested_on(site: Site) -> None:
    site.harm["llama-fp8-pool"] = Harm(slow=0.5)
    ref = site.apply()
    site.until_settled(ref)
    known = entries(site)
    assert [entry.number for entry in known] == list(range(1, len(known) + 1))
    (back,) = [entry for entry in known if entry.kind is DecisionKind.ROLL_BACK]
    assert back.fingerprint is not None
    pool = str(site.deployment("llama-fp8-pool")["spec"]["template"]["spec"])
    assert back.fingerprint in pool, "it is what the canary's answers bear"
    assert (back.step, back.weights.baseline, back.weights.canary) == (1, 100, 0)
    assert back.analysis is not None
    assert back.analysis.verdict is Verdict.FAIL
    signals = {signal.name: signal for signal in back.analysis.signals}
    slow = signals["latencyP99"]
    assert slow.verdict is Verdict.FAIL
    assert (slow.baseline, slow.canary) != (None, None)
    assert float((slow.lower or "").split()[0]) > 0
    assert slow.budget_spent_percent == 100
    assert (slow.tolerance or "").endswith("% slower")


def test_decisions_that_the_status_has_forgotten_stay_in_the_record(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    site.metrics.outage = "refused"
    for index in range(60):
        site.annotate(ref, paused=str(index) if index % 2 else None)
        site.turn(ref)
    numbers = [d.number or 0 for d in site.status(ref).decisions]
    assert len(numbers) == 50
    site.turn(ref)
    assert [e.number for e in entries(site)] == list(range(1, max(numbers) + 1))
    assert max(numbers) > 55


def test_it_goes_with_its_rollout(site: Site) -> None:
    ref = site.apply()
    site.turn(ref)
    site.turn(ref)
    metadata = (stored(site) or {})["metadata"]
    (owner,) = metadata["ownerReferences"]
    assert (owner["kind"], owner["name"]) == (names.KIND, "llama-fp8")
    assert owner["uid"] == site.raw(ref)["metadata"]["uid"]
    assert metadata["labels"][names.LABEL_ROLLOUT] == "llama-fp8"


def test_nothing_is_written_while_nothing_is_decided(site: Site) -> None:
    ref = site.apply()
    site.until_settled(ref)
    before = len(site.cluster.calls)
    for _ in range(5):
        site.turn(ref)
    writes = [call for call in site.cluster.calls[before:] if call.writes and call.name == NAME]
    assert writes == []


def test_weights_do_not_wait_for_the_record(site: Site) -> None:
    ref = site.apply()
    site.until(ref, lambda status: status.weights.canary == 10)
    site.cluster.faults.append(Fault(Unavailable("no answer"), verb="patch", kind="ConfigMap"))
    site.turn(ref)
    (weights,) = site.traffic.weights.values()
    assert weights["green"] == 10
