"""Reads from watches, while everything goes wrong that can go wrong with a watch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from kvquant.adapters import listwatch, store, watching
from kvquant.adapters.watching import WatchedCluster
from kvquant.api import names
from kvquant.errors import Conflict
from kvquant.ports import Object
from tests.fakes.apiserver import LoopbackApi
from tests.site import rollout
from tests.waiting import wait_until

NS = "inference"
SOON = 20.0


@pytest.fixture
def api(tmp_path: Path) -> Iterator[LoopbackApi]:
    api = LoopbackApi(tmp_path)
    api.cluster.put(configmap("router", weights="90/10"))
    yield api
    api.close()


@pytest.fixture
def cluster(api: LoopbackApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedCluster]:
    monkeypatch.setattr(listwatch, "FIRST_BACKOFF", 0.02)
    cluster = WatchedCluster(api.connection)
    yield cluster
    cluster.close()


def configmap(name: str, **data: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": NS, "labels": {"app": "router"}},
        "data": data,
    }


def direct_reads() -> float:
    return REGISTRY.get_sample_value("kvquant_direct_reads_total", {"kind": "ConfigMap"}) or 0


def edit(api: LoopbackApi, name: str = "router", **data: str) -> None:
    api.cluster.edit("ConfigMap", NS, name, lambda obj: obj.update(data=data))


def weights(cluster: WatchedCluster, name: str = "router") -> str | None:
    found = cluster.get("ConfigMap", NS, name)
    return None if found is None else found["data"]["weights"]


def becomes(cluster: WatchedCluster, expected: str | None, name: str = "router") -> None:
    wait_until(
        lambda: weights(cluster, name) == expected, SOON, f"{name} should be {expected}", 0.002
    )


# When all is well.


def test_a_kind_is_listed_once_and_never_asked_for_again(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    assert weights(cluster) == "90/10"
    for _ in range(50):
        cluster.get("ConfigMap", NS, "router")
        cluster.get("ConfigMap", NS, "absent")
        assert len(cluster.list("ConfigMap", NS, {"app": "router"})) == 1
        assert cluster.list("ConfigMap", NS, {"app": "other"}) == []
    assert api.requests == [f"GET /api/v1/namespaces/{NS}/configmaps"]


def test_what_others_do_is_seen_without_asking(api: LoopbackApi, cluster: WatchedCluster) -> None:
    weights(cluster)
    with api.asked() as requests:
        edit(api, weights="75/25")
        becomes(cluster, "75/25")
        api.cluster.put(configmap("second", weights="1/99"))
        becomes(cluster, "1/99", "second")
        api.cluster.vanish("ConfigMap", NS, "second")
        becomes(cluster, None, "second")
    assert requests == []


def test_a_reader_may_change_what_it_gets(cluster: WatchedCluster) -> None:
    found = cluster.get("ConfigMap", NS, "router")
    assert found is not None
    found["data"]["weights"] = "mine"
    cluster.list("ConfigMap", NS, {})[0]["data"].clear()
    assert weights(cluster) == "90/10"


def test_others_changes_are_told_and_our_own_are_not(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    weights(cluster)
    told: list[tuple[str, bool]] = []
    cluster.changed = lambda obj, touched: told.append((obj["metadata"]["name"], touched))
    # An event that comes before the answer to the write is told, which costs a pass for nothing.
    api.muted = True
    cluster.patch("ConfigMap", NS, "router", {"data": {"weights": "75/25"}})
    cluster.apply(configmap("ours", weights="1"))
    api.muted = False
    api.cluster.put(configmap("theirs", weights="1"))
    wait_until(lambda: told, SOON, "what others do is told")
    api.cluster.vanish("ConfigMap", NS, "theirs")
    wait_until(lambda: len(told) > 1, SOON, "and that it is gone")
    assert told == [("theirs", True), ("theirs", True)]


def test_a_change_of_the_status_is_told_apart(api: LoopbackApi, cluster: WatchedCluster) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": NS}}
    api.cluster.put({**pod, "spec": {}})
    cluster.get("Pod", NS, "p")
    told: list[bool] = []
    cluster.changed = lambda _, touched: told.append(touched)
    api.cluster.set_status("Pod", NS, "p", {"phase": "Running"})
    wait_until(lambda: told == [False], SOON, "a status alone")
    api.cluster.edit("Pod", NS, "p", lambda p: p["metadata"].update(labels={"a": "b"}))
    wait_until(lambda: told == [False, True], SOON, "a label")


# Our own writes.


def test_a_pass_reads_its_own_writes_before_the_watch_tells(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    weights(cluster)
    api.muted = True
    cluster.patch("ConfigMap", NS, "router", {"data": {"weights": "75/25"}})
    assert weights(cluster) == "75/25"
    cluster.apply(configmap("new", weights="1/99"))
    assert weights(cluster, "new") == "1/99"
    cluster.delete("ConfigMap", NS, "new")
    assert weights(cluster, "new") is None
    assert len(cluster.list("ConfigMap", NS, {})) == 1
    api.muted = False
    edit(api, weights="50/50")
    becomes(cluster, "50/50")
    assert weights(cluster, "new") is None, "late news do not bring it back"


def test_a_deleted_object_that_a_finalizer_keeps_is_still_there(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    weights(cluster)
    api.cluster.edit("ConfigMap", NS, "router", lambda o: o["metadata"].update(finalizers=["x/y"]))
    cluster.delete("ConfigMap", NS, "router")
    found = cluster.get("ConfigMap", NS, "router")
    assert found is not None
    assert "deletionTimestamp" in found["metadata"]


def test_the_same_applied_again_is_not_sent_until_somebody_touches_it(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    wanted = configmap("router", weights="75/25")
    cluster.apply(wanted)
    with api.asked() as requests:
        for _ in range(10):
            assert cluster.apply(wanted)["data"] == {"weights": "75/25"}
    assert [r for r in requests if r.startswith("PATCH")] == []
    edit(api, weights="0/100")
    becomes(cluster, "0/100")
    with api.asked() as requests:
        cluster.apply(wanted)
        cluster.apply(wanted)
    assert requests == [f"PATCH /api/v1/namespaces/{NS}/configmaps/router"]
    assert weights(cluster) == "75/25"
    with api.asked() as requests:
        cluster.apply(configmap("router", weights="50/50"))
    assert len(requests) == 1, "another wish is sent"


# Fencing.


def test_a_decision_on_a_stale_rollout_conflicts_and_the_next_read_is_fresh(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    api.cluster.apply(rollout())
    stale = cluster.get(names.KIND, NS, "llama-fp8")
    assert stale is not None
    api.muted = True
    api.cluster.edit(names.KIND, NS, "llama-fp8", lambda o: o["spec"].update(progressDeadline="5m"))
    assert cluster.get(names.KIND, NS, "llama-fp8") == stale, "the watch has not told yet"
    with pytest.raises(Conflict):
        cluster.replace_status({**stale, "status": {"phase": "Progressing"}})
    fresh = cluster.get(names.KIND, NS, "llama-fp8")
    assert fresh is not None
    assert fresh["spec"]["progressDeadline"] == "5m"
    written = cluster.replace_status({**fresh, "status": {"phase": "Progressing"}})
    assert cluster.get(names.KIND, NS, "llama-fp8") == written


def test_a_list_holds_nothing_that_a_conflict_has_shown_to_be_old(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    weights(cluster)
    api.muted = True
    api.cluster.vanish("ConfigMap", NS, "router")
    with pytest.raises(Conflict):
        cluster.patch("ConfigMap", NS, "router", {"data": {"weights": "1"}})
    assert cluster.list("ConfigMap", NS, {}) == []


def test_no_watch_is_believed_about_the_end_of_a_rollout(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    assert cluster.get(names.KIND, NS, "llama-fp8") is None
    api.muted = True
    api.cluster.apply(rollout())
    assert cluster.get(names.KIND, NS, "llama-fp8") is not None
    api.muted = False
    api.cluster.edit(
        names.KIND, NS, "llama-fp8", lambda o: o["metadata"].update(finalizers=[names.FINALIZER])
    )
    api.cluster.delete(names.KIND, NS, "llama-fp8")

    def ends() -> bool:
        found = cluster.get(names.KIND, NS, "llama-fp8")
        return found is not None and "deletionTimestamp" in found["metadata"]

    wait_until(ends, SOON, "the watch tells of the deletion")
    with api.asked() as requests:
        ends()
    assert len(requests) == 1


# Watches that break.


def test_a_closed_watch_is_taken_up_where_it_ended(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    weights(cluster)
    for n in range(3):
        api.end_watches()
        edit(api, weights=f"{n}")
        becomes(cluster, f"{n}")
    assert len(api.requests) == 1, "nothing was listed again"
    assert len(api.watches) >= 3


def test_a_version_that_the_server_has_forgotten_is_listed_again(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    api.cluster.put(configmap("other", weights="1"))
    weights(cluster)
    api.muted = True
    api.cluster.vanish("ConfigMap", NS, "other")
    edit(api, weights="75/25")
    api.cluster.history.clear()
    api.forgets_before = api.cluster.version
    api.muted = False
    api.end_watches()
    becomes(cluster, "75/25")
    becomes(cluster, None, "other")
    assert len(api.requests) == 2
    edit(api, weights="50/50")
    becomes(cluster, "50/50")


def test_an_answer_410_to_the_watch_itself_lists_again(
    api: LoopbackApi, cluster: WatchedCluster
) -> None:
    weights(cluster)
    api.refuse_watches = 410
    api.end_watches()
    wait_until(lambda: len(api.requests) > 2, SOON, "it lists again")
    api.refuse_watches = None
    edit(api, weights="75/25")
    becomes(cluster, "75/25")


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_while_no_watch_is_to_be_had_reads_are_direct(
    api: LoopbackApi, cluster: WatchedCluster, status: int
) -> None:
    api.refuse_watches = status
    began, before = time.monotonic(), direct_reads()
    assert weights(cluster) == "90/10"
    assert direct_reads() == before + 1, "which the operator's metrics tell"
    edit(api, weights="75/25")
    assert weights(cluster) == "75/25", "at once, because nothing old is believed"
    assert cluster.list("ConfigMap", NS, {})[0]["data"] == {"weights": "75/25"}
    assert time.monotonic() - began < listwatch.FIRST_LIST, "nobody waits for what was refused"
    api.refuse_watches = None

    def asks_nothing() -> bool:
        with api.asked() as requests:
            weights(cluster)
        return requests == []

    wait_until(asks_nothing, SOON, "the watch comes back by itself")


def test_what_a_watch_has_told_is_believed_for_a_moment_after_it_broke_and_no_longer(
    api: LoopbackApi, cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listwatch, "BEARABLE_BREAK", 60)
    weights(cluster)
    api.refuse_watches = 503
    api.end_watches()
    wait_until(lambda: len(api.watches) >= 2, SOON, "the watch is asked for again")
    with api.asked() as requests:
        weights(cluster)
    assert requests == []
    edit(api, weights="75/25")
    monkeypatch.setattr(listwatch, "BEARABLE_BREAK", 0.05)
    becomes(cluster, "75/25")
    with api.asked() as requests:
        weights(cluster)
    assert len(requests) == 1


def test_a_silent_watch_counts_as_broken(
    api: LoopbackApi, cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listwatch, "SILENCE", 0.2)
    weights(cluster)
    wait_until(lambda: len(api.watches) >= 3, SOON, "it is opened again and again")
    assert len(api.requests) == 1, "and goes on from where it was"


def test_a_watch_that_ends_at_once_is_not_opened_in_a_loop(
    api: LoopbackApi, cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listwatch, "FIRST_BACKOFF", 0.2)
    api.ends_at_once = True
    weights(cluster)
    began = time.monotonic()
    wait_until(lambda: len(api.watches) >= 4, SOON, "it is tried again")
    assert time.monotonic() - began > 0.1 + 0.2 + 0.4, "each time later"


@pytest.mark.parametrize(
    "line",
    [
        b"no json\n",
        b'{"type": "MODIFIED"}\n',
        b'{"type": "MODIFIED", "object": {"metadata": {"name": "router"}}}\n',
        b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"opaque"}}}\n',
        b'{"type": "ERROR", "object": {"code": 500, "message": "internal"}}\n',
    ],
)
def test_nonsense_in_a_watch_ends_neither_the_thread_nor_the_truth(
    api: LoopbackApi, cluster: WatchedCluster, line: bytes
) -> None:
    api.say = [line]
    weights(cluster)
    wait_until(lambda: len(api.watches) >= 2, SOON, "it begins again")
    edit(api, weights="75/25")
    becomes(cluster, "75/25")


def test_a_slow_list_makes_a_reader_wait_no_longer_than_a_moment(
    api: LoopbackApi, cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listwatch, "FIRST_LIST", 0.1)
    api.list_delay = 1.0
    began = time.monotonic()
    assert weights(cluster) == "90/10"
    assert time.monotonic() - began < 0.9
    assert f"GET /api/v1/namespaces/{NS}/configmaps/router" in api.requests


# Bounds.


def test_an_object_too_large_to_be_kept_is_read_directly(
    api: LoopbackApi, cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LARGEST_OBJECT", 1000)
    api.cluster.put(configmap("large", weights="x" * 2000))
    assert weights(cluster) == "90/10"
    with api.asked() as requests:
        assert weights(cluster, "large") == "x" * 2000
        assert len(cluster.list("ConfigMap", NS, {})) == 2
    assert len(requests) == 2
    api.cluster.vanish("ConfigMap", NS, "large")
    becomes(cluster, None, "large")


def test_there_are_no_more_watches_than_allowed(
    api: LoopbackApi, cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MOST_WATCHES", 1)
    weights(cluster)
    assert cluster.get("Service", NS, "x") is None
    assert cluster.get("Service", NS, "x") is None
    assert api.requests.count(f"GET /api/v1/namespaces/{NS}/services/x") == 2
    assert len(api.watches) == 1


def test_a_watch_that_nobody_reads_ends_and_begins_again_when_it_is_wanted(
    api: LoopbackApi, cluster: WatchedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights(cluster)
    monkeypatch.setattr(watching, "UNASKED", 0.05)
    time.sleep(0.06)
    cluster.get("Service", NS, "x")
    monkeypatch.setattr(watching, "UNASKED", 900)
    edit(api, weights="75/25")
    assert weights(cluster) == "75/25"
    assert api.requests.count(f"GET /api/v1/namespaces/{NS}/configmaps") == 2


def test_closing_ends_every_thread(api: LoopbackApi, cluster: WatchedCluster) -> None:
    for kind in watching.WATCHED:
        cluster.list(kind, NS, {})
    watches = list(cluster._watches.values())
    cluster.close()
    assert [w for w in watches if w._thread.is_alive()] == []


def test_secrets_are_never_kept(api: LoopbackApi, cluster: WatchedCluster) -> None:
    for _ in range(2):
        assert cluster.get("Secret", NS, "kvquant-xds-tls") is None
    assert len(api.requests) == 2
    assert api.watches == []
