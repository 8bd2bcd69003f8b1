"""Credentials and trust for Prometheus from a mounted Secret: what fails, and what it says then."""

from __future__ import annotations

import base64
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.adapters.prometheus_secret import LONGEST, MountedSecret
from kvquant.errors import MetricsError
from kvquant.router.pki import ServerIdentity, make_identity

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
EMPTY = b'{"status":"success","data":{"resultType":"vector","result":[]}}'
PLANTED = "planted-secret-value"


class Guarded:
    """A server that lets in whoever has the right headers; keeps the headers of each request."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.status: Callable[[dict[str, str]], int] = lambda headers: 200
        self.location = ""
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.headers.append(dict(self.headers))
                self.send_response(outer.status(dict(self.headers)))
                if outer.location:
                    self.send_header("Location", outer.location)
                self.send_header("Content-Length", str(len(EMPTY)))
                self.end_headers()
                self.wfile.write(EMPTY)

            def do_GET(self) -> None:
                outer.headers.append(dict(self.headers))
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> tuple[socket.socket, Any]:
                # In the listening thread a client that fails its handshake is passed over.
                connection, address = super().get_request()
                if context is not None:
                    connection.settimeout(5)
                    connection = context.wrap_socket(connection, server_side=True)
                return connection, address

        self.http = Server(("127.0.0.1", 0), Handler)
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://localhost:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))

    def __enter__(self) -> Guarded:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server() -> Iterator[Guarded]:
    with Guarded() as server:
        yield server


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    return folder


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def ask(url: str, folder: Path | None, times: int = 1) -> None:
    metrics = PrometheusMetrics(url, timeout=2, secret=MountedSecret(folder))
    try:
        for _ in range(times):
            metrics.cache_configs("ns", ["pod"], NOW)
    finally:
        metrics.close()


def complaint(url: str, folder: Path | None) -> str:
    with pytest.raises(MetricsError) as caught:
        ask(url, folder)
    told = str(caught.value)
    assert PLANTED not in told
    return told


def refuse(status: int) -> Callable[[dict[str, str]], int]:
    return lambda headers: status


@pytest.mark.parametrize("status", [401, 403])
def test_who_has_no_secret_is_told_where_to_put_one(server: Guarded, status: int) -> None:
    server.status = refuse(status)
    told = complaint(server.url, None)
    assert f"refuses us access (HTTP status {status})" in told
    assert "KVQUANT_PROMETHEUS_AUTH_FOLDER" in told
    assert len(server.headers) == 1, "credentials do not become right by trying again"


def test_a_refusal_names_the_files_that_were_sent(server: Guarded, secret: Path) -> None:
    server.status = refuse(401)
    write(secret, token=PLANTED, header__X_Scope_OrgID="team-a")
    told = complaint(server.url, secret)
    assert f"wrong or has expired: look at {secret}/token, {secret}/header.X_Scope_OrgID" in told
    server.status = refuse(403)
    assert f"of somebody who may not read: look at {secret}/token" in complaint(server.url, secret)
    (secret / "token").unlink()
    write(secret, username="ada", password=PLANTED)
    assert f"{secret}/username, {secret}/password" in complaint(server.url, secret)


def test_a_secret_without_credentials_is_named(server: Guarded, secret: Path) -> None:
    server.status = refuse(401)
    assert f"{secret} has neither token nor username" in complaint(server.url, secret)


def test_a_token_that_has_expired_is_read_anew(server: Guarded, secret: Path) -> None:
    server.status = lambda headers: 200 if headers["Authorization"] == "Bearer second" else 401
    write(secret, token="first\n")
    metrics = PrometheusMetrics(server.url, timeout=2, secret=MountedSecret(secret))
    with pytest.raises(MetricsError, match="expired"):
        metrics.cache_configs("ns", ["pod"], NOW)
    write(secret, token="second\n")
    metrics.cache_configs("ns", ["pod"], NOW)
    metrics.close()


def test_all_files_of_a_secret_are_swapped_at_once(server: Guarded, secret: Path) -> None:
    """As the kubelet does it: by a link to a folder of each version."""
    for version in ("one", "two"):
        data = secret / f"..{version}"
        data.mkdir()
        write(data, username=version, password=version)
        fresh = secret / "..data_tmp"
        fresh.symlink_to(data.name)
        fresh.rename(secret / "..data")
        for name in ("username", "password"):
            if version == "one":
                (secret / name).symlink_to(f"..data/{name}")
        ask(server.url, secret)
    sent = [base64.b64decode(h["Authorization"].removeprefix("Basic ")) for h in server.headers]
    assert sent == [b"one:one", b"two:two"]


def test_everything_in_the_secret_is_sent(server: Guarded, secret: Path) -> None:
    write(secret, username="ada\n", password="pass wörd \n", **{"header__X-Scope-OrgID": "a|b\n"})
    ask(server.url, secret)
    sent = server.headers[0]
    expected = base64.b64encode("ada:pass wörd ".encode()).decode()
    assert (sent["Authorization"], sent["X-Scope-OrgID"]) == (f"Basic {expected}", "a|b")


def test_the_secret_goes_before_the_address(server: Guarded, secret: Path) -> None:
    write(secret, token="fresh")
    ask(server.url.replace("://", "://user:stale@"), secret)
    assert server.headers[0]["Authorization"] == "Bearer fresh"


def test_nobodys_netrc_is_sent(
    server: Guarded, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login other password other\n")
    monkeypatch.setenv("NETRC", str(netrc))
    write(secret, token="ours")
    ask(server.url, secret)
    assert server.headers[0]["Authorization"] == "Bearer ours"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"token": ""}, "token is empty"),
        ({"token": "\n"}, "token is empty"),
        ({"token": f"{PLANTED}\nX-Evil: 1"}, "token is not one line"),
        ({"token": "tökn"}, "token is not one line"),
        ({"token": "x" * (LONGEST + 1)}, "token is not one line"),
        ({"header__X-A": f"a\r\n{PLANTED}"}, "header.X-A is not one line"),
        ({"token": "x", "username": "ada"}, "has both token and username"),
        ({"username": "ada"}, "has username but no password"),
        ({"password": PLANTED}, "has password but no username"),
        ({"tls__key": PLANTED}, "has tls.key but no tls.crt"),
        ({"tls__crt": "x"}, "has tls.crt but no tls.key"),
    ],
)
def test_files_that_cannot_be_used_are_named_and_nothing_is_sent(
    server: Guarded, secret: Path, files: dict[str, str], told: str
) -> None:
    write(secret, **files)
    assert told in complaint(server.url, secret)
    assert server.headers == []


def test_a_secret_that_is_not_mounted_is_named(server: Guarded, tmp_path: Path) -> None:
    told = complaint(server.url, tmp_path / "nowhere")
    assert f"KVQUANT_PROMETHEUS_AUTH_FOLDER={tmp_path}/nowhere: No such file" in told


def test_a_token_that_cannot_be_read_is_named(server: Guarded, secret: Path) -> None:
    (secret / "token").mkdir()
    assert f"{secret}/token cannot be read: Is a directory" in complaint(server.url, secret)


def test_credentials_do_not_follow_a_redirect(server: Guarded, secret: Path) -> None:
    write(secret, token=PLANTED, **{"header__X-Api-Key": PLANTED})
    with Guarded() as elsewhere:
        server.status = refuse(302)
        server.location = f"{elsewhere.url}/login"
        told = complaint(server.url, secret)
        assert elsewhere.headers == []
    assert f"sends us on to {elsewhere.url.removeprefix('http://')}" in told


def test_nothing_of_the_secret_is_logged_or_shown(
    server: Guarded, secret: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write(secret, token=PLANTED, **{"header__X-Api-Key": PLANTED})
    ask(server.url, secret)
    server.status = refuse(500)
    complaint(server.url, secret)
    assert PLANTED not in caplog.text
    mounted = MountedSecret(secret)
    assert PLANTED not in f"{mounted!r} {mounted.credentials()!r}"


def server_context(folder: Path, identity: ServerIdentity) -> ssl.SSLContext:
    (folder / "server.crt").write_bytes(identity.certificate)
    (folder / "server.key").write_bytes(identity.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    return context


@pytest.fixture(scope="module")
def identity() -> ServerIdentity:
    return make_identity(["localhost"])


@pytest.fixture
def tls(tmp_path: Path, identity: ServerIdentity) -> Iterator[Guarded]:
    with Guarded(server_context(tmp_path, identity)) as server:
        yield server


def test_a_server_of_an_unknown_authority_is_not_believed(
    tls: Guarded, secret: Path, identity: ServerIdentity
) -> None:
    told = complaint(tls.url, None)
    assert "There is no TLS with Prometheus" in told
    assert "unable to get local issuer certificate" in told
    assert "ca.crt" in told
    (secret / "ca.crt").write_bytes(make_identity(["localhost"]).ca)
    write(secret, token=PLANTED)
    assert "There is no TLS" in complaint(tls.url, secret)
    assert tls.headers == [], "no token goes to a server that is not believed"
    # The right one is written while the operator runs.
    metrics = PrometheusMetrics(tls.url, timeout=2, secret=MountedSecret(secret))
    with pytest.raises(MetricsError):
        metrics.cache_configs("ns", ["pod"], NOW)
    (secret / "ca.crt").write_bytes(identity.ca)
    metrics.cache_configs("ns", ["pod"], NOW)
    metrics.close()


@pytest.mark.parametrize("text", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_an_authority_that_is_no_certificate_is_named(
    tls: Guarded, secret: Path, text: str
) -> None:
    write(secret, ca__crt=text)
    assert "ca.crt" in complaint(tls.url, secret)


def test_a_server_of_another_name_is_not_believed(tmp_path: Path, secret: Path) -> None:
    other = make_identity(["prometheus.elsewhere.svc"])
    (secret / "ca.crt").write_bytes(other.ca)
    with Guarded(server_context(tmp_path, other)) as server:
        assert "ostname mismatch" in complaint(server.url, secret)


def client_certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kvquant")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def test_a_client_certificate_opens_the_door(
    tmp_path: Path, secret: Path, identity: ServerIdentity
) -> None:
    certificate, key = client_certificate()
    context = server_context(tmp_path, identity)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=certificate.decode())
    (secret / "ca.crt").write_bytes(identity.ca)
    with Guarded(context) as server:
        complaint(server.url, secret)
        assert server.headers == []
        (secret / "tls.crt").write_bytes(certificate)
        (secret / "tls.key").write_bytes(key)
        ask(server.url, secret, times=2)
        assert len(server.headers) == 2
        write(secret, tls__key="no key")
        assert "tls.key" in complaint(server.url, secret)
