"""The store of a watch: what is newer wins, whichever way and in whichever order it comes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvquant.adapters import store as module
from kvquant.adapters.store import Absence, Store, stripped, substance
from kvquant.api import names
from kvquant.ports import Object


def obj(version: int, name: str = "a", uid: str = "u", **fields: Any) -> Object:
    metadata = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version)}
    return {"kind": "ConfigMap", "metadata": metadata, **fields}


def held(store: Store, name: str = "a") -> int | None:
    found = store.get(name)
    return None if isinstance(found, Absence) else int(found["metadata"]["resourceVersion"])


def test_what_stands_in_a_record_of_decisions_is_not_kept() -> None:
    large = obj(1, data={"000001": "x" * 10_000})
    large["metadata"]["labels"] = {names.LABEL_RECORD: "true"}
    large["metadata"]["annotations"] = {names.ANNOTATION_RECORDED: "1"}
    kept = stripped(large)
    assert "data" not in kept
    assert kept["metadata"]["annotations"] == {names.ANNOTATION_RECORDED: "1"}
    assert stripped(obj(1, data={"killed": "true"}))["data"] == {"killed": "true"}


def test_a_late_event_does_not_undo_our_own_write() -> None:
    store = Store()
    store.changed(obj(1))
    store.note(obj(5))
    store.changed(obj(3))
    assert held(store) == 5


def test_a_list_that_was_made_before_our_write_does_not_undo_it() -> None:
    store = Store()
    store.note(obj(7))
    store.note(obj(8, "new"))
    store.replace([obj(3)], version=6)
    assert (held(store), held(store, "new")) == (7, 8)


def test_a_list_removes_what_is_gone() -> None:
    told: list[tuple[str, bool]] = []
    store = Store(lambda o, touched: told.append((o["metadata"]["name"], touched)))
    store.changed(obj(1))
    store.replace([obj(4, "b")], version=6)
    assert store.get("a") is Absence.GONE
    assert told == [("a", True), ("b", True), ("a", True)]


def test_late_news_of_what_a_read_found_gone_do_not_bring_it_back() -> None:
    store = Store()
    store.changed(obj(1))
    store.note_gone("a", store.uid("a"))
    store.changed(obj(2))
    store.replace([obj(2)], version=2)
    assert store.get("a") is Absence.GONE
    store.deleted(obj(3))
    store.changed(obj(4, uid="another"))
    assert held(store) == 4


def test_what_was_made_while_a_read_found_nothing_stays() -> None:
    store = Store()
    before = store.uid("a")
    store.changed(obj(2))
    store.note_gone("a", before)
    assert held(store) == 2
    store.changed(obj(3))
    assert held(store) == 3


def test_the_end_of_an_older_one_does_not_remove_a_newer_one() -> None:
    store = Store()
    store.note(obj(9, uid="second"))
    store.deleted(obj(5, uid="first"))
    assert held(store) == 9


def test_a_suspect_must_be_read_directly_until_it_was() -> None:
    store = Store()
    store.changed(obj(1))
    store.suspect("a")
    assert store.get("a") is Absence.NOT_KEPT
    assert store.select({}) is Absence.NOT_KEPT
    assert not store.untouched("a", substance(obj(1)))
    store.note(obj(1))
    assert held(store) == 1
    assert store.suspects == ()


def test_a_store_keeps_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_STORE", 1000)
    store = Store()
    for number in range(20):
        store.changed(obj(number + 1, f"o{number}", data={"x": "y" * 100}))
    kept = [n for n in range(20) if store.get(f"o{n}") is not Absence.NOT_KEPT]
    assert 1 <= len(kept) <= 5
    for number in range(20):
        store.deleted(obj(number + 100, f"o{number}"))
    store.changed(obj(200))
    assert held(store) == 200, "what is gone makes room"


def test_substance_is_what_owners_decide() -> None:
    before = obj(1, data={"a": "1"}, status={"x": 1})
    reported = obj(2, data={"a": "1"}, status={"x": 2})
    reported["metadata"] |= {"generation": 4, "managedFields": [{}]}
    assert substance(before) == substance(reported)
    assert substance(before) != substance(obj(1, data={"a": "2"}))
    labelled = obj(1, data={"a": "1"})
    labelled["metadata"]["labels"] = {"a": "b"}
    assert substance(before) != substance(labelled)
    assert "managedFields" not in stripped(reported)["metadata"]


@given(st.lists(st.tuples(st.sampled_from(["changed", "note"]), st.integers(1, 50)), max_size=30))
def test_whatever_the_order_the_newest_state_is_held(news: list[tuple[str, int]]) -> None:
    store = Store()
    newest = None
    for how, version in news:
        getattr(store, how)(obj(version))
        newest = max(newest or 0, version)
        assert held(store) == newest
