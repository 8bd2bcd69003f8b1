"""The certificate of the weights service survives restarts, and nothing useless is kept."""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvquant.errors import Unavailable
from kvquant.ports import Object
from kvquant.router.pki import VALIDITY, ServerIdentity, make_identity
from kvquant.weights_identity import SECRET, Renewer, load_or_make
from tests.fakes.cluster import FakeCluster, Fault

NAMESPACE, HOST = "kvquant-system", "kvquant-xds.kvquant-system.svc"


def secret(
    identity: ServerIdentity, *, ca_key: bytes | None = None, **changes: str | None
) -> Object:
    data = {
        "ca.crt": base64.b64encode(identity.ca).decode(),
        "tls.crt": base64.b64encode(identity.certificate).decode(),
        "tls.key": base64.b64encode(identity.key).decode(),
    }
    if ca_key is not None:
        data["ca.key"] = base64.b64encode(ca_key).decode()
    for name, value in changes.items():
        data.pop(name.replace("_", "."))
        if value is not None:
            data[name.replace("_", ".")] = value
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "data": data,
    }


@pytest.mark.parametrize("verb", ["get", "apply"])
def test_an_identity_that_cannot_be_kept_is_not_used(verb: str) -> None:
    cluster = FakeCluster()
    cluster.faults.append(Fault(Unavailable("time-out"), verb=verb))
    with pytest.raises(Unavailable):
        load_or_make(cluster, NAMESPACE, HOST)


def test_what_is_kept_is_used_again_after_a_restart() -> None:
    cluster = FakeCluster()
    first = load_or_make(cluster, NAMESPACE, HOST)
    cluster.calls.clear()
    assert load_or_make(cluster, NAMESPACE, HOST) == first
    assert [call.verb for call in cluster.calls] == ["get"], "routers trust the CA they have"


@pytest.mark.parametrize(
    "kept",
    [
        secret(make_identity(["another.svc"])),
        secret(make_identity([HOST], datetime.now(UTC) - VALIDITY - timedelta(days=1))),
        secret(make_identity([HOST], datetime.now(UTC) - VALIDITY + timedelta(days=29))),
        secret(make_identity([HOST]), tls_crt="bm90IFBFTQ=="),
        secret(make_identity([HOST]), tls_crt="%%%"),
        secret(make_identity([HOST]), ca_crt=None),
        {**secret(make_identity([HOST]), tls_key=None), "type": "Opaque"},
    ],
    ids=[
        "another host",
        "ended",
        "ends soon",
        "no certificate",
        "no base64",
        "a part is missing",
        "of another type",
    ],
)
def test_what_is_of_no_use_is_replaced(kept: Object, tmp_path: Path) -> None:
    cluster = FakeCluster()
    cluster.put(kept)
    identity = load_or_make(cluster, NAMESPACE, HOST)
    assert load_or_make(cluster, NAMESPACE, HOST) == identity, "and the new one is kept"
    (tmp_path / "crt").write_bytes(identity.certificate)
    (tmp_path / "key").write_bytes(identity.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")


def due(cluster: FakeCluster) -> ServerIdentity:
    """Return a kept certificate that is due, of an authority that is not."""
    identity = make_identity([HOST], validity=timedelta(days=29))
    cluster.put(secret(identity, ca_key=identity.ca_key))
    return identity


def test_the_authority_stays_when_its_certificate_is_renewed() -> None:
    cluster = FakeCluster()
    old = due(cluster)
    new = load_or_make(cluster, NAMESPACE, HOST)
    assert (new.ca, new.ca_key) == (old.ca, old.ca_key)
    assert new.certificate != old.certificate
    assert load_or_make(cluster, NAMESPACE, HOST) == new, "and it is kept"


def test_a_certificate_for_another_host_is_made_by_the_same_authority() -> None:
    cluster = FakeCluster()
    old = load_or_make(cluster, NAMESPACE, "another.svc")
    assert load_or_make(cluster, NAMESPACE, HOST).ca == old.ca


def test_a_running_operator_asks_nothing_until_it_is_due() -> None:
    cluster = FakeCluster()
    identity = load_or_make(cluster, NAMESPACE, HOST)
    cluster.calls.clear()
    used: list[ServerIdentity] = []
    renewer(cluster, identity, used).look()
    assert cluster.calls == []
    assert used == []


@pytest.mark.parametrize("verb", ["get", "apply"])
def test_a_renewal_that_fails_is_tried_again_and_nothing_unkept_is_used(verb: str) -> None:
    cluster = FakeCluster()
    used: list[ServerIdentity] = []
    looking = renewer(cluster, due(cluster), used)
    cluster.faults.append(Fault(Unavailable("time-out"), verb=verb))
    looking.look()
    assert used == []
    looking.look()
    assert used == [load_or_make(cluster, NAMESPACE, HOST)]
    looking.look()
    assert len(used) == 1


def test_what_another_has_put_there_meanwhile_is_used() -> None:
    cluster = FakeCluster()
    used: list[ServerIdentity] = []
    looking = renewer(cluster, due(cluster), used)
    theirs = load_or_make(cluster, NAMESPACE, HOST)
    looking.look()
    assert used == [theirs]


def renewer(cluster: FakeCluster, identity: ServerIdentity, used: list[ServerIdentity]) -> Renewer:
    return Renewer(identity, lambda: load_or_make(cluster, NAMESPACE, HOST), used.append, HOST)
