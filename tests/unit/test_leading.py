"""Several operators, one of which decides: never two, and soon another when it is gone."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvquant.api import names
from kvquant.errors import ClusterError, Conflict, Unavailable
from kvquant.leading import Leadership, Terms, show_leader
from kvquant.ports import Object
from tests.fakes.cluster import FakeCluster

TERMS = Terms.of(6.0)


class FakeLease:
    """A Lease that the API server keeps; `away` makes it unreachable, `swallow` loses answers."""

    def __init__(self) -> None:
        self.kept: Object | None = None
        self.away = False
        self.swallow = False
        self._version = 0

    def read(self) -> Object | None:
        self._reach()
        return deepcopy(self.kept)

    def create(self, spec: Object) -> Object:
        self._reach()
        if self.kept is not None:
            raise Conflict("it is there already")
        return self._keep({"metadata": {"name": "kvquant-operator"}, "spec": spec})

    def replace(self, lease: Object) -> Object:
        self._reach()
        if self.kept is None:
            raise Conflict("it is gone")
        if lease["metadata"]["resourceVersion"] != self.kept["metadata"]["resourceVersion"]:
            raise Conflict("somebody else has written")
        return self._keep(lease)

    def touch(self) -> None:
        """Let somebody add an annotation."""
        assert self.kept is not None
        self._keep(self.kept)

    def _keep(self, lease: Object) -> Object:
        self._version += 1
        self.kept = deepcopy(lease)
        self.kept["metadata"]["resourceVersion"] = str(self._version)
        if self.swallow:
            raise Unavailable("the answer was lost")
        return deepcopy(self.kept)

    def _reach(self) -> None:
        if self.away:
            raise Unavailable("no answer")


class World:
    """Candidates for one Lease, on a clock that all of them share."""

    def __init__(self, candidates: int = 2) -> None:
        self.now = 0.0
        self.lease = FakeLease()
        self.candidates = [
            Leadership(self.lease, f"operator-{n}", TERMS, lambda: self.now)
            for n in range(candidates)
        ]

    def attempt(self, number: int) -> bool | None:
        """Let one try; None when the API server did not say."""
        try:
            return self.candidates[number].attempt()
        except ClusterError:
            return None

    def may_write(self, number: int) -> bool:
        try:
            self.candidates[number].check()
        except Unavailable:
            return False
        return True


def test_nobody_may_write_who_was_never_elected() -> None:
    world = World()
    assert not world.may_write(0)
    world.lease.away = True
    assert world.attempt(0) is None
    assert not world.may_write(0)


def test_a_leader_that_cannot_renew_stops_writing_before_another_may_lead() -> None:
    world = World()
    assert world.attempt(0)
    world.lease.away = True
    world.now = TERMS.deadline - 0.01
    assert world.attempt(0) is None
    assert world.may_write(0)
    world.now = TERMS.deadline
    assert not world.may_write(0)


def test_a_leader_leads_on_when_the_api_server_comes_back_and_nobody_has_taken_over() -> None:
    world = World()
    assert world.attempt(0)
    world.lease.away = True
    world.now = 100.0
    assert world.attempt(0) is None
    world.lease.away = False
    assert world.attempt(0)
    assert world.may_write(0)


def test_a_follower_waits_as_long_as_the_holder_asked_for_and_then_takes_over() -> None:
    world = World()
    assert world.attempt(0)
    world.now = 1.0
    assert world.attempt(1) is False
    # It counts from when it saw the Lease, whatever the Lease says of times.
    world.now = 1.0 + TERMS.duration - 0.01
    assert world.attempt(1) is False
    world.now = 1.0 + TERMS.duration
    assert world.attempt(1)
    assert world.may_write(1)
    assert world.attempt(0) is False
    assert world.lease.kept is not None
    assert world.lease.kept["spec"]["leaseTransitions"] == 2


def test_a_renewal_begins_the_wait_anew() -> None:
    world = World()
    for second in range(60):
        world.now = float(second)
        assert world.attempt(0)
        assert world.attempt(1) is False


def test_a_lost_answer_and_a_strangers_annotation_cost_no_leader_its_lease() -> None:
    world = World()
    world.lease.swallow = True
    assert world.attempt(0) is None
    assert not world.may_write(0)
    world.lease.swallow = False
    assert world.attempt(0)
    world.lease.touch()
    assert world.attempt(0)


def test_a_lease_that_is_given_back_is_taken_at_once() -> None:
    world = World()
    assert world.attempt(0)
    world.now = 1.0
    assert world.attempt(1) is False
    world.candidates[0].release()
    assert not world.may_write(0)
    assert world.attempt(1)


def test_a_lease_that_cannot_be_given_back_ends_by_itself() -> None:
    world = World()
    assert world.attempt(0)
    world.lease.away = True
    world.candidates[0].release()
    world.lease.away = False
    assert world.attempt(1) is False
    world.now = TERMS.duration
    assert world.attempt(1)


def test_one_that_is_told_to_stop_while_it_waits_does_not_lead() -> None:
    world = World()
    assert world.attempt(0)
    world.candidates[1].stop()
    assert not world.candidates[1].acquire()


ACTIONS = st.one_of(
    st.tuples(st.just("try"), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.floats(0.0, 8.0)),
    st.tuples(st.sampled_from(["away", "swallow", "release"]), st.integers(0, 2)),
)


@settings(max_examples=500)
@given(st.lists(ACTIONS, max_size=60))
def test_whatever_happens_no_two_may_write_at_once(actions: list[tuple[str, Any]]) -> None:
    world = World(3)
    for what, how in actions:
        if what == "try":
            world.attempt(how)
        elif what == "wait":
            world.now += how
        elif what == "release":
            world.candidates[how].release()
        else:
            setattr(world.lease, what, not getattr(world.lease, what))
        assert sum(world.may_write(number) for number in range(3)) <= 1


def test_services_are_led_to_the_leader_and_to_nobody_else() -> None:
    cluster = FakeCluster()
    for name, labels in (("old", {names.LABEL_LEADER: "true"}), ("new", {})):
        metadata = {"name": name, "namespace": "kvquant-system", "labels": labels}
        cluster.put({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})
    show_leader(cluster, "kvquant-system", "new")

    def leads(pod: str) -> bool:
        found = cluster.get("Pod", "kvquant-system", pod)
        assert found is not None
        return names.LABEL_LEADER in (found["metadata"].get("labels") or {})

    assert (leads("old"), leads("new")) == (False, True)
    show_leader(cluster, "kvquant-system", "nowhere")
    assert (leads("old"), leads("new")) == (False, False)
