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
from kvquant.weights_identity import SECRET, load_or_make
from tests.fakes.cluster import FakeCluster, Fault

NAMESPACE, HOST = "kvquant-system", "kvquant-xds.kvquant-system.svc"


def secret(identity: ServerIdentity, **changes: str | None) -> Object:
    data = {
        "ca.crt": base64.b64encode(identity.ca).decode(),
        "tls.crt": base64.b64encode(identity.certificate).decode(),
        "tls.key": base64.b64encode(identity.key).decode(),
    }
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
