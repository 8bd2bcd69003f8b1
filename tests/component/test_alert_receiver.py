"""The webhook receiver over real HTTP: who is heard, what is understood, and what floods cost."""

from __future__ import annotations

import copy
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from kvquant.alerting import receiver as receiving
from kvquant.alerting.access import Access
from kvquant.alerting.board import MOST_ALERTS, AlertBoard
from kvquant.alerting.receiver import LARGEST_BODY, AlertReceiver
from kvquant.api.v1alpha1 import Phase
from kvquant.config import ConfigError
from kvquant.core.alerts import Watch, services
from kvquant.router.pki import make_identity
from tests.component.test_alerts import BURN, has_traffic
from tests.site import Site
from tests.waiting import wait_until

TOKEN = "s3cret-that-is-long-enough"
WATCH = Watch("inference", "llama-fp8", services("llama", "llama-router", "llama-fp8-pool"))
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)

GOLDEN: dict[str, Any] = {
    "receiver": "kvquant",
    "status": "firing",
    "alerts": [
        {
            "status": "firing",
            "labels": BURN,
            "annotations": {"summary": "The error budget burns"},
            "startsAt": "2026-11-25T11:59:58.123456789Z",
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://prometheus:9090/graph?g0.expr=x",
            "fingerprint": "c5b4ba4d1a4f3f6a",
        }
    ],
    "groupLabels": {"alertname": "LlamaErrorBudgetBurn"},
    "commonLabels": BURN,
    "commonAnnotations": {"summary": "The error budget burns"},
    "externalURL": "http://alertmanager:9093",
    "version": "4",
    "groupKey": '{}:{alertname="LlamaErrorBudgetBurn"}',
    "truncatedAlerts": 0,
}
"""What Alertmanager 0.31 sends."""


def notification(*changes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a notification of as many alerts as there are changes to the golden one."""
    (golden,) = GOLDEN["alerts"]
    alerts = [{**copy.deepcopy(golden), **change} for change in changes or ({},)]
    return {**GOLDEN, "alerts": alerts, **fields}


class Post:
    """Posts to a receiver, with the token unless told otherwise."""

    def __init__(self, receiver: AlertReceiver) -> None:
        self.url = f"http://127.0.0.1:{receiver.port}/alerts"

    def __call__(
        self, body: Any = None, token: str | None = TOKEN, path: str = "", **more: Any
    ) -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body or GOLDEN).encode()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        method = more.pop("method", "POST")
        return requests.request(
            method, self.url + path, data=data, headers=headers, timeout=10, **more
        )


@pytest.fixture
def board() -> AlertBoard:
    return AlertBoard(lambda: NOW)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return file


@pytest.fixture
def start(board: AlertBoard, token_file: Path) -> Iterator[Callable[..., AlertReceiver]]:
    started: list[AlertReceiver] = []

    def begin(access: Access | None = None, on: AlertBoard | None = None) -> AlertReceiver:
        receiver = AlertReceiver(
            on or board, access or Access(token_file), 0, lambda: NOW, "127.0.0.1"
        )
        receiver.start()
        started.append(receiver)
        return receiver

    yield begin
    for receiver in started:
        receiver.stop()


@pytest.fixture
def post(start: Callable[..., AlertReceiver]) -> Post:
    return Post(start())


def test_what_alertmanager_sends_is_taken_in(board: AlertBoard, post: Post) -> None:
    assert post().status_code == 200
    (alert,) = board.heard(WATCH).firing
    assert alert.labels == BURN
    assert alert.since == datetime(2026, 11, 25, 11, 59, 58, 123456, UTC)


def test_a_group_tells_of_each_alert_what_is_so_of_that_alert(
    board: AlertBoard, post: Post
) -> None:
    over = {**BURN, "alertname": "Slow"}
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"labels": over, "status": "resolved", "endsAt": "2026-11-25T11:59:59Z"},
    )
    assert post(notification(*changes)).status_code == 200
    heard = board.heard(WATCH)
    assert [a.labels["alertname"] for a in heard.firing] == ["LlamaErrorBudgetBurn"]
    assert heard.ended
    assert list(heard.ended.values()) == [datetime(2026, 11, 25, 11, 59, 59, tzinfo=UTC)]


@pytest.mark.parametrize("given", [None, "", "wrong", TOKEN + "x", TOKEN[:-1], "ü"])
def test_without_the_token_nobody_is_heard(board: AlertBoard, post: Post, given: str) -> None:
    headers = {} if given is None else {"Authorization": f"Bearer {given}".encode()}
    answer = requests.post(post.url, json=GOLDEN, headers=headers, timeout=10)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert TOKEN not in answer.text
    assert board.heard(WATCH).firing == ()


@pytest.mark.parametrize("text", [None, "", "  \n", "short"])
def test_where_no_good_token_is_configured_nobody_is_heard(
    start: Callable[..., AlertReceiver], tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "other"
    if text is not None:
        file.write_text(text)
    for access in (Access(file), Access(None)):
        answer = Post(start(access))(token=(text or "").strip())
        assert answer.status_code == 401
        assert "configured" in answer.text


def test_a_token_that_is_changed_takes_effect_at_once(post: Post, token_file: Path) -> None:
    assert post().status_code == 200
    token_file.write_text("another-one-that-is-long-enough")
    assert post().status_code == 401
    assert post(token="another-one-that-is-long-enough").status_code == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
        ({**GOLDEN, "version": "3"}, "version"),
        ({key: value for key, value in GOLDEN.items() if key != "alerts"}, "alerts"),
        ({**GOLDEN, "alerts": {}}, "alerts"),
        ({**GOLDEN, "truncatedAlerts": -1}, "truncatedAlerts"),
        (notification({"labels": ["x"]}), "alerts.0.labels"),
        (notification({}, {"labels": {"x": 1}}), "alerts.1.labels.x"),
        (notification({"labels": {str(n): "x" for n in range(65)}}), "alerts.0.labels"),
        (notification({"startsAt": "yesterday"}), "alerts.0.startsAt"),
        (notification({"startsAt": "2026-11-25T12:00:00"}), "alerts.0.startsAt"),
        (notification({"status": "odd"}), "alerts.0.status"),
        (notification(*[{}] * 1001), "alerts"),
    ],
)
def test_what_is_malformed_is_refused_in_words_that_name_the_field(
    board: AlertBoard, post: Post, body: Any, told: str
) -> None:
    answer = post(body)
    assert answer.status_code == 400
    assert told in answer.text
    assert len(answer.text) < 400
    assert board.heard(WATCH).firing == ()


def test_a_body_that_is_too_long_is_not_read_to_its_end(post: Post) -> None:
    assert post(b" " * (LARGEST_BODY + 1)).status_code == 413
    chunks = (b" " * 2**16 for _ in range(10_000))
    try:
        answer = requests.post(
            post.url, data=chunks, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10
        )
        assert answer.status_code == 413
    except requests.ConnectionError:
        pass  # it hung up, in the middle of the body
    assert post().status_code == 200


def test_other_paths_and_methods_are_refused(post: Post) -> None:
    assert post(path="/other").status_code == 404
    answer = post(method="GET")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")


def test_a_replay_changes_nothing_and_wakes_nobody(board: AlertBoard, post: Post) -> None:
    woken: list[str] = []
    board.wake = lambda _, name: woken.append(name)
    board.stored(WATCH, board.heard(WATCH).mark)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(post)
        wait_until(lambda: woken, 10, "the rollout should be woken", 0.001)
        board.stored(WATCH, board.heard(WATCH).mark)
        assert first.result().status_code == 200
    heard = board.heard(WATCH)
    for _ in range(5):
        assert post().status_code == 200
    assert woken == ["llama-fp8"]
    assert board.heard(WATCH).firing == heard.firing


def test_an_old_one_that_comes_late_does_not_bring_an_alert_back(
    board: AlertBoard, post: Post
) -> None:
    over = {"status": "resolved", "endsAt": "2026-11-25T11:59:59Z"}
    assert post(notification(over)).status_code == 200
    assert post().status_code == 200
    assert board.heard(WATCH).firing == ()
    board.forget(WATCH.namespace, WATCH.rollout)
    again = {"startsAt": "2026-11-25T11:59:59.5Z"}
    assert post(notification(again)).status_code == 200
    assert post(notification(over)).status_code == 200
    (alert,) = board.heard(WATCH).firing
    assert alert.since.second == 59


def test_an_alert_of_the_future_is_taken_to_begin_now(board: AlertBoard, post: Post) -> None:
    assert post(notification({"startsAt": "2999-01-01T00:00:00Z"})).status_code == 200
    assert board.heard(WATCH).firing[0].since == NOW


def test_it_counts_as_told_only_when_the_rollouts_have_stored_it(
    board: AlertBoard, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "STORED_WITHIN", 0.2)
    board.heard(WATCH)
    assert post().status_code == 503, "Alertmanager tries again"
    board.stored(WATCH, board.heard(WATCH).mark)
    assert post().status_code == 200
    board.forget(WATCH.namespace, WATCH.rollout)
    assert post(notification({"startsAt": "2026-11-25T11:59:59Z"})).status_code == 200


def test_a_flood_is_bounded_in_rate_and_in_memory(board: AlertBoard, post: Post) -> None:
    def burst(number: int) -> int:
        many = [{"labels": {**BURN, "n": f"{number}-{n}"}} for n in range(100)]
        return post(notification(*many)).status_code

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(burst, range(200)))
    assert set(answers) == {200, 503}
    assert answers.count(200) < 150
    assert len(board.heard(WATCH).firing) == MOST_ALERTS


def test_connections_that_say_nothing_do_not_keep_others_out(post: Post) -> None:
    port = int(post.url.split(":")[2].split("/")[0])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        assert post().status_code == 200
    finally:
        for connection in silent:
            connection.close()


def test_a_port_that_is_taken_is_told(board: AlertBoard, start: Callable[..., Any]) -> None:
    port = start().port
    with pytest.raises(ConfigError, match=r"KVQUANT_ALERTS_PORT=\d+: .*in use"):
        AlertReceiver(board, Access(None), port, lambda: NOW, "127.0.0.1").start()


class TestTls:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "tls"
        folder.mkdir()
        identity = make_identity(["localhost"])
        (folder / "tls.crt").write_bytes(identity.certificate)
        (folder / "tls.key").write_bytes(identity.key)
        (tmp_path / "ca.pem").write_bytes(identity.ca)
        return folder

    def test_with_a_certificate_it_speaks_tls(
        self, start: Callable[..., AlertReceiver], folder: Path, token_file: Path
    ) -> None:
        post = Post(start(Access(token_file, folder)))
        with pytest.raises(requests.ConnectionError):
            post()
        post.url = post.url.replace("http://127.0.0.1", "https://localhost")
        ca = str(folder.parent / "ca.pem")
        assert post(verify=ca).status_code == 200
        assert post(verify=ca, token="wrong").status_code == 401

    def test_with_an_authority_clients_need_a_certificate_and_no_token(
        self, start: Callable[..., AlertReceiver], folder: Path, token_file: Path
    ) -> None:
        client = folder.parent / "client.pem"
        clients = folder.parent / "clients.pem"
        clients.write_bytes(_client(client))
        ca = str(folder.parent / "ca.pem")
        post = Post(start(Access(None, folder, clients)))
        post.url = post.url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(requests.ConnectionError):
            post(verify=ca, token=None)
        assert post(verify=ca, token=None, cert=str(client)).status_code == 200
        both = Post(start(Access(token_file, folder, clients)))
        both.url = both.url.replace("http://127.0.0.1", "https://localhost")
        assert both(verify=ca, token=None, cert=str(client)).status_code == 401
        assert both(verify=ca, cert=str(client)).status_code == 200

    def test_a_certificate_that_is_replaced_is_used_without_a_restart(
        self,
        start: Callable[..., AlertReceiver],
        folder: Path,
        token_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(receiving, "ROTATE", 0.05)
        port = start(Access(token_file, folder)).port
        before = ssl.get_server_certificate(("127.0.0.1", port))
        identity = make_identity(["localhost"])
        (folder / "tls.crt").write_bytes(identity.certificate)
        (folder / "tls.key").write_bytes(identity.key)
        until = time.monotonic() + 10
        while ssl.get_server_certificate(("127.0.0.1", port)) == before:
            assert time.monotonic() < until
            time.sleep(0.05)

    def test_with_tls_alone_nobody_is_heard(
        self, start: Callable[..., AlertReceiver], folder: Path
    ) -> None:
        post = Post(start(Access(None, folder)))
        post.url = post.url.replace("http://127.0.0.1", "https://localhost")
        assert post(verify=str(folder.parent / "ca.pem"), token=None).status_code == 401

    def test_without_what_tls_needs_it_does_not_start(
        self, board: AlertBoard, folder: Path, tmp_path: Path
    ) -> None:
        for access in (
            Access(None, tmp_path),
            Access(None, folder, tmp_path / "missing"),
            Access(None, None, tmp_path / "ca.pem"),
        ):
            receiver = AlertReceiver(board, access, 0, lambda: NOW, "127.0.0.1")
            with pytest.raises(ConfigError, match="KVQUANT_ALERTS_TLS_FOLDER"):
                receiver.start()


def _client(file: Path) -> bytes:
    """Write a client's certificate with its key; return the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alertmanager")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )
    file.write_bytes(
        certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return certificate


def test_a_notification_takes_the_traffic_from_the_canary(
    start: Callable[..., AlertReceiver],
) -> None:
    """The whole way: HTTP, board, wake, pass, status, weights."""
    site = Site()
    site.deploy()
    ref = site.apply()
    site.until(ref, has_traffic)
    site.turn(ref)
    woken = threading.Event()
    site.alerts.wake = lambda *_: woken.set()
    receiver = AlertReceiver(site.alerts, start()._access, 0, lambda: site.now, "127.0.0.1")
    receiver.start()
    try:
        body = notification({"startsAt": site.now.isoformat()})
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(Post(receiver), body)
            assert woken.wait(10)
            assert not answer.done()
            site.reconciler.reconcile(ref)
            assert answer.result(10).status_code == 200
        status = site.status(ref)
        assert (status.phase, status.weights.canary) == (Phase.ROLLING_BACK, 0)
        assert "AlertFiring" in site.reasons(ref)
    finally:
        receiver.stop()
