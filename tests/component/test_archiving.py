"""The archive of decisions: complete in the end whatever fails, and nobody waits for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from kvquant import telemetry
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from kvquant.archiving import Archivist, Whose
from kvquant.core import record
from kvquant.errors import Unavailable
from kvquant.ports import Object
from kvquant.reconciler import Ref
from tests.fakes.archive import FakeArchive
from tests.fakes.cluster import Fault
from tests.site import NAMESPACE, Site
from tests.waiting import wait_until

NAME = "llama-fp8-record"


class Archived(Site):
    """A site whose operator keeps an archive."""

    archive: FakeArchive

    def restart(self) -> None:
        """Let a new operator process begin, which knows only what the API server holds."""
        if self.archivist is not None:
            self.archivist.stop()
        else:
            self.archive = FakeArchive()
        self.archivist = Archivist(self.archive, self.cluster, first_pause=0.02)
        self.archivist.start()
        super().restart()

    @property
    def keeper(self) -> Archivist:
        assert self.archivist is not None
        return self.archivist

    def lines(self) -> dict[str, str]:
        """Return what stands in the record, by the path that it has in the archive."""
        found = [o for o in self.cluster.objects("ConfigMap") if o["metadata"]["name"] == NAME]
        (owner,) = found[0]["metadata"]["ownerReferences"]
        whose = Whose(NAMESPACE, "llama-fp8", owner["uid"])
        return {whose.path(int(key)): text for key, text in found[0]["data"].items()}

    def complete(self) -> bool:
        """Tell whether the archive has just what the record has."""
        return self.archive.objects == self.lines()


@pytest.fixture
def site() -> Iterator[Archived]:
    it = Archived()
    it.deploy()
    yield it
    it.archive.gate.set()
    it.keeper.stop()


def soon(site: Archived, what: str = "the archive should be complete") -> None:
    wait_until(site.complete, 10, what, 0.01)


# What goes wrong.


def test_a_bucket_that_is_away_holds_nothing_up_and_is_caught_up_with(
    site: Archived, caplog: pytest.LogCaptureFixture
) -> None:
    errors = telemetry.ARCHIVE_ERRORS._value.get()
    site.archive.broken = lambda path: True
    ref = site.apply()
    with caplog.at_level(logging.WARNING, "kvquant.archiving"):
        assert site.until_settled(ref).phase is Phase.PROMOTED
        wait_until(lambda: telemetry.ARCHIVE_ERRORS._value.get() >= errors + 2, 10, "it fails")
    assert site.archive.objects == {}
    assert telemetry.ARCHIVE_PENDING._value.get() == len(site.lines())
    assert caplog.messages == [
        "Decisions cannot be written to the archive yet, and are tried again: the bucket is away"
    ], "said once"
    site.archive.broken = lambda path: False
    soon(site)
    assert telemetry.ARCHIVE_PENDING._value.get() == 0


def test_a_bucket_that_hangs_delays_neither_a_decision_nor_the_kill_switch(site: Archived) -> None:
    site.archive.gate.clear()
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    site.annotate(ref, killed="now")
    site.turn(ref)
    site.turn(ref)
    assert site.status(ref).weights.canary == 0
    assert site.status(ref).killed
    assert site.archive.objects == {}
    site.archive.gate.set()
    soon(site)


def test_one_object_that_is_refused_keeps_no_other_rollout_from_being_archived(
    site: Archived,
) -> None:
    other = Whose("elsewhere", "qwen", "u-2")
    site.archive.broken = lambda path: path.startswith("elsewhere/")
    site.keeper.offer(other, 0, 1, {1: "{}"})
    ref = site.apply()
    site.until_settled(ref)
    soon(site)
    assert site.keeper.done(other) == 0


def test_an_error_that_nobody_thought_of_does_not_end_the_archiving(
    site: Archived,
) -> None:
    def burst(path: str) -> bool:
        raise RuntimeError("the library is out of order")

    site.archive.broken = burst
    errors = telemetry.ARCHIVE_ERRORS._value.get()
    ref = site.apply()
    site.until_settled(ref)
    wait_until(lambda: telemetry.ARCHIVE_ERRORS._value.get() > errors, 10, "it fails", 0.01)
    site.archive.broken = lambda path: False
    soon(site)


def test_an_operator_that_ends_before_it_wrote_leaves_that_to_the_next_one(site: Archived) -> None:
    site.archive.broken = lambda path: True
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    site.restart()
    site.archive.broken = lambda path: False
    site.turn(ref)
    soon(site, "the new process should find in the record what the archive lacks")


def test_a_record_that_cannot_be_read_is_read_again(site: Archived) -> None:
    site.archive.broken = lambda path: True
    ref = site.apply()
    site.until_settled(ref)
    site.keeper.stop()
    fresh = Archivist(site.archive, site.cluster, first_pause=0.02)
    site.archive.broken = lambda path: False
    site.cluster.faults.append(Fault(Unavailable("no answer"), verb="get"))
    lines = site.lines()
    (whose,) = {Whose(*path.split("/")[:3]) for path in lines}
    fresh.offer(whose, 0, len(lines), {})
    fresh.start()
    soon(site)
    fresh.stop()


def test_a_rollout_that_is_deleted_while_the_bucket_is_away_is_archived_all_the_same(
    site: Archived,
) -> None:
    site.archive.broken = lambda path: True
    ref = site.apply()
    site.until_settled(ref)
    lines = site.lines()
    site.cluster.vanish("ConfigMap", NAMESPACE, NAME)
    site.cluster.vanish(names.KIND, ref.namespace, ref.name)
    site.reconciler.reconcile(ref)
    site.archive.broken = lambda path: False
    wait_until(lambda: site.archive.objects == lines, 10, "nothing should be lost", 0.01)
    (whose,) = {Whose(*path.split("/")[:3]) for path in lines}
    wait_until(lambda: site.keeper.done(whose) is None, 10, "and then be forgotten", 0.01)


def test_a_record_of_another_rollout_of_the_name_is_not_taken_for_this_ones(
    site: Archived,
) -> None:
    ref = site.apply()
    site.until_settled(ref)
    soon(site)
    older = Whose(NAMESPACE, "llama-fp8", "an-older-one")
    site.keeper.offer(older, 0, 3, {})
    wait_until(lambda: site.keeper.done(older) == 3, 10, "it has nothing to write", 0.01)
    assert site.complete()


def test_what_people_put_into_the_record_is_not_archived(site: Archived) -> None:
    site.archive.broken = lambda path: True
    ref = site.apply()
    site.until_settled(ref)
    lines = site.lines()

    def spoil(obj: Object) -> None:
        obj["data"] |= {"note": "mine", "000002": "no JSON", "²": "{}"}

    site.cluster.edit("ConfigMap", NAMESPACE, NAME, spoil)
    site.restart()
    site.archive.broken = lambda path: False
    site.turn(ref)
    spoilt = next(path for path in lines if path.endswith("000002.json"))
    del lines[spoilt]
    wait_until(lambda: site.archive.objects == lines, 10, "the others should be written", 0.01)


# What it does.


def test_each_decision_is_an_object_of_its_own_with_the_line_of_the_record(site: Archived) -> None:
    ref = site.apply()
    status = site.until_settled(ref)
    soon(site)
    assert len(site.archive.objects) == len(status.decisions)
    path, text = min(site.archive.objects.items())
    uid = site.raw(ref)["metadata"]["uid"]
    assert path == f"{NAMESPACE}/llama-fp8/{uid}/000001.json"
    (entry,) = record.read({"000001": text})
    assert entry.number == 1


def test_what_is_in_the_archive_is_not_written_again_after_a_restart(site: Archived) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    soon(site)
    site.turn(ref)
    site.until_settled(ref)
    soon(site)
    written = len(site.archive.puts)
    assert written == len(site.lines())
    site.restart()
    site.turn(ref)
    (whose,) = {Whose(*path.split("/")[:3]) for path in site.lines()}
    wait_until(lambda: site.keeper.done(whose) == written, 10, "it should find all there", 0.01)
    again = site.archive.puts[written:]
    assert len(again) < written / 2, "at most what came since the record was last marked"


def test_without_an_archive_a_record_bears_no_mark_of_one() -> None:
    plain = Site()
    plain.deploy()
    plain.until_settled(
        plain.apply(),
    )
    (found,) = [o for o in plain.cluster.objects("ConfigMap") if o["metadata"]["name"] == NAME]
    assert names.ANNOTATION_ARCHIVED not in found["metadata"]["annotations"]


def test_decisions_that_begin_anew_do_not_confuse_it(site: Archived) -> None:
    ref: Ref = site.apply()
    site.until_settled(ref)
    soon(site)
    (whose,) = {Whose(*path.split("/")[:3]) for path in site.lines()}
    site.keeper.offer(whose, 0, 1, {1: '{"number": 1}'})
    wait_until(lambda: site.keeper.done(whose) == 1, 10, "it should begin anew", 0.01)
    assert site.complete(), "what was written first stays"
