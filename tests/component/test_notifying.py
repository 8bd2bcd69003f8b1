"""Notifications to a receiver that is slow, ill, choosy or away."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from kvquant import notifying
from kvquant.adapters.webhook import SecretWebhook
from kvquant.api.v1alpha1 import Phase, Status, Weights
from kvquant.core.turn import Announcement
from kvquant.errors import NotificationError
from kvquant.notifying import Notifier
from tests.waiting import wait_until

AT = datetime(2026, 11, 26, 12, tzinfo=UTC)
ROLLED_BACK = Announcement("Warning", "RolledBack", "p99 is 2.1 times as long <script> & more.")
STATUS = Status(phase=Phase.ROLLED_BACK, step=2, weights=Weights(baseline=100, canary=0))


class Receiver:
    """A web server that answers as it is told and keeps what came."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.bodies.append(json.loads(body))
                receiver.headers.append(dict(self.headers))
                status = receiver.answers.pop(0) if receiver.answers else 204
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks/SECRET"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def folder(receiver: Receiver, tmp_path: Path) -> Path:
    (tmp_path / "url").write_text(f"{receiver.url}\n")
    return tmp_path


Running = Callable[..., Notifier]


@pytest.fixture
def running(folder: Path) -> Iterator[Running]:
    made: list[Notifier] = []

    def run(**options: Any) -> Notifier:
        notifier = Notifier(SecretWebhook(folder), clock=lambda: AT, first_pause=0.01, **options)
        notifier.start()
        made.append(notifier)
        return notifier

    yield run
    for notifier in made:
        notifier.stop()


def counted(outcome: str) -> float:
    labels = {"outcome": outcome}
    return REGISTRY.get_sample_value("kvquant_notifications_total", labels) or 0.0


def test_what_happened_comes_as_a_cloud_event(receiver: Receiver, running: Running) -> None:
    running().tell("inference", "llama-fp8", ROLLED_BACK, STATUS)
    wait_until(lambda: receiver.bodies, 10, "it should be told")
    (event,) = receiver.bodies
    assert event.pop("id")
    assert event == {
        "specversion": "1.0",
        "source": "/apis/kvquant.dev/v1alpha1/namespaces/inference/kvquantrollouts/llama-fp8",
        "type": "kvquant.dev.rollout.RolledBack",
        "time": "2026-11-26T12:00:00Z",
        "subject": "inference/llama-fp8",
        "datacontenttype": "application/json",
        "data": {
            "namespace": "inference",
            "rollout": "llama-fp8",
            "severity": "Warning",
            "reason": "RolledBack",
            "message": ROLLED_BACK.message,
            "phase": "RolledBack",
            "step": 2,
            "canaryWeight": 0,
            "attempt": 0,
        },
    }
    assert receiver.headers[0]["Content-Type"] == "application/cloudevents+json"


def test_slack_gets_a_line_without_anybodys_markup(receiver: Receiver, running: Running) -> None:
    running(format_="slack").tell("inference", "llama-fp8", ROLLED_BACK, STATUS)
    wait_until(lambda: receiver.bodies, 10, "it should be told")
    (message,) = receiver.bodies
    assert message["text"].startswith(":warning: *inference/llama-fp8* RolledBack (RolledBack, ")
    assert message["text"].endswith("2.1 times as long &lt;script&gt; &amp; more.")


def test_credentials_lie_beside_the_address_and_may_change(
    receiver: Receiver, running: Running, folder: Path
) -> None:
    notifier = running()
    for token in ("first", "second"):
        (folder / "token").write_text(token)
        notifier.tell("inference", "llama-fp8", ROLLED_BACK, STATUS)
        wait_until(
            lambda token=token: any(  # type: ignore[misc]
                h.get("Authorization") == f"Bearer {token}" for h in receiver.headers
            ),
            10,
            "the new token should be used",
        )


def test_a_receiver_that_is_ill_is_told_again_with_the_same_id_and_in_order(
    receiver: Receiver, running: Running
) -> None:
    receiver.answers = [503, 429, 204]
    notifier = running()
    for reason in ("First", "Second"):
        notifier.tell("inference", "llama-fp8", Announcement("Normal", reason, "m"), STATUS)
    wait_until(lambda: len(receiver.bodies) == 4, 10, "both should be told")
    assert len({body["id"] for body in receiver.bodies[:3]}) == 1
    assert [b["data"]["reason"] for b in receiver.bodies] == ["First"] * 3 + ["Second"]


@pytest.mark.parametrize("status", [400, 404, 302])
def test_what_a_receiver_does_not_want_is_not_repeated_and_holds_nothing_up(
    receiver: Receiver, running: Running, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifying, "TRIES", 2)
    before = counted("dropped")
    receiver.answers = [status] * (2 if status == 302 else 1)
    notifier = running()
    for reason in ("Unwanted", "Wanted"):
        notifier.tell("inference", "llama-fp8", Announcement("Normal", reason, "m"), STATUS)
    wait_until(
        lambda: receiver.bodies[-1:] and receiver.bodies[-1]["data"]["reason"] == "Wanted", 10, "x"
    )
    assert counted("dropped") == before + 1


def test_nobody_waits_for_a_receiver_that_is_away_and_the_oldest_are_dropped(
    receiver: Receiver, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifying, "MOST_WAITING", 3)
    receiver.answers = [503] * 1000
    before, notifier = counted("dropped"), running()
    for number in range(10):
        notifier.tell("inference", "llama-fp8", Announcement("Normal", f"R{number}", "m"), STATUS)
    assert counted("dropped") >= before + 6
    notifier.stop()


@pytest.mark.parametrize("url", ["", "slack.com/hooks/SECRET", "file:///etc/passwd", "http://"])
def test_an_address_that_is_none_is_told_without_it(folder: Path, url: str) -> None:
    (folder / "url").write_text(url)
    with pytest.raises(NotificationError) as refused:
        SecretWebhook(folder).post(b"{}", "application/json")
    assert "url holds no http:// or https:// address" in str(refused.value)
    assert "SECRET" not in str(refused.value)


def test_a_receiver_that_cannot_be_reached_is_told_without_its_address(folder: Path) -> None:
    (folder / "url").write_text("http://127.0.0.1:1/hooks/SECRET")
    with pytest.raises(NotificationError) as refused:
        SecretWebhook(folder).post(b"{}", "application/json")
    assert "SECRET" not in str(refused.value)
    assert not refused.value.final
    (folder / "url").unlink()
    with pytest.raises(NotificationError, match="url cannot be read: FileNotFoundError"):
        SecretWebhook(folder).post(b"{}", "application/json")
