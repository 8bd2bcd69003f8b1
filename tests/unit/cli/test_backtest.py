"""What `backtest` says to options that make no sense and to a Prometheus that does not answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.unit.cli.stage import Stage

URL = ("--prometheus", "http://127.0.0.1:1")
ARMS = ("--baseline", 'pod="a"', "--canary", 'pod="b"')
THEN = ("--start", "2026-11-24T10:00:00Z", "--end", "2026-11-24T12:00:00Z")


def run(*arguments: str) -> Result:
    result = Stage().run("backtest", *arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*ARMS, *THEN), "--prometheus"),
        ((*URL, *THEN), "--baseline"),
        ((*URL, *ARMS), "--start"),
        (
            (*URL, *ARMS, "--start", "2026-11-24T12:00:00Z", "--end", "2026-11-24T10:00:00Z"),
            "--start: 2026-11-24T12:00:00Z is not before --end, 2026-11-24T10:00:00Z",
        ),
        ((*URL, *ARMS, *THEN[:2], "--end", "2026-11-24T10:00:00Z"), "is not before --end"),
        (
            (*URL, *ARMS, "--start", "2026-12-24T12:00:00Z", "--end", "2026-12-25T12:00:00Z"),
            "--start: it lies in the future",
        ),
        ((*URL, *ARMS, "--start", "2026-11-24T12:00:00"), "names no time zone: add Z for UTC"),
        ((*URL, *ARMS, "--start", "yesterday"), "write it like 2026-11-25T12:00:00Z, 2h (ago)"),
        ((*URL, "--baseline", "llama", *THEN), "--baseline: 'llama' is no selector of pods"),
        ((*URL, *ARMS[:2], "--canary", "{}", *THEN), "--canary: '{}' is no selector"),
        ((*URL, *ARMS, *THEN, "--router", "x"), "--router: 'x' is no selector"),
        ((*URL, *ARMS[:2], *THEN, "--router", 'pod="r"'), "name a --canary, or leave it out"),
        ((*URL, *ARMS, *THEN, "--slots", "blue"), "--slots: 'blue': write two, as in"),
        ((*URL, *ARMS, *THEN, "--slots", "a,a"), "--slots"),
        ((*URL, *ARMS, *THEN, "--steps", "10-15m"), "--steps: '10-15m' is no step"),
        ((*URL, *ARMS, *THEN, "--steps", "10,25:5m"), "only the last step may go without a length"),
        ((*URL, *ARMS, *THEN, "--steps", "0:5m"), "a weight is between 1 and 100 per cent"),
        ((*URL, *ARMS, *THEN, "--steps", "10:0s"), "a step lasts longer than nothing"),
        ((*URL, *ARMS, *THEN, "--steps", ","), "there is no step"),
        ((*URL, *ARMS, *THEN, "--time-scale", "0"), "--time-scale"),
        ((*URL, *ARMS[:2], *THEN, "--splits", "0"), "--splits"),
        (("--prometheus", "prometheus:9090", *ARMS, *THEN), "--prometheus: it is no URL such as"),
        (("--prometheus", "http://x:y", *ARMS, *THEN), "--prometheus: it is no URL such as"),
        ((*URL, *ARMS, *THEN, "--pod-label", "a-b"), "'a-b' is no name of a label"),
        ((*URL, *ARMS, *THEN, "--filename", "/nowhere"), "--filename"),
        ((*URL, *ARMS, *THEN, "--prometheus-auth", "/nowhere"), "--prometheus-auth"),
    ],
)
def test_wrong_usage_names_the_option_and_the_remedy(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr.replace("Invalid value for ", "").replace("'--", "--")


def test_a_prometheus_that_is_down_is_named_with_the_option() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    result = run("--prometheus", f"http://u:secret@127.0.0.1:{port}", *ARMS, *THEN)
    assert result.exit_code == 1
    assert f"Prometheus at 127.0.0.1:{port} cannot be reached" in result.stderr
    assert "whether --prometheus names it" in result.stderr
    assert "secret" not in result.output
    assert "KVQUANT_" not in result.stderr


@pytest.fixture
def another() -> Iterator[str]:
    """A web server that is no Prometheus."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Welcome</html>")

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_no_prometheus_is_told(another: str) -> None:
    result = run("--prometheus", another, *ARMS, *THEN)
    assert result.exit_code == 1
    assert "does not speak like Prometheus" in result.stderr
    assert "whether --prometheus names its API" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it holds 0 KVQuantRollouts, and not one"),
        ("{", "--filename"),
        ("- 1", "--filename"),
        ("kind: Deployment", "it holds 0 KVQuantRollouts"),
        ("kind: KVQuantRollout\nmetadata: {name: x}", "spec"),
    ],
)
def test_a_manifest_that_is_none_is_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rollout.yaml"
    path.write_text(text)
    result = run(*URL, *ARMS, *THEN, "--filename", str(path))
    assert result.exit_code == 1
    assert f"--filename {path}: " in result.stderr
    assert said in result.stderr


# Signals of the user's own.

SIGNAL = """
- name: toolErrors
  ratio: {events: 'tool_calls_total{outcome="error"}', total: tool_calls_total}
  tolerancePercent: 5
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write a list of signals"),
        ("[]", "write a list of signals"),
        ("kind: KVQuantRollout", "a whole manifest goes to --filename"),
        ("{", "while parsing"),
        ("- toolErrors", "custom.0"),
        (SIGNAL.replace("tolerancePercent: 5", ""), "custom.0.tolerancePercent"),
        (SIGNAL.replace("total: tool_calls_total", "total: 'rate(x[5m])'"), "no functions"),
        (SIGNAL.replace("  ratio:", "  ratios:"), "custom.0"),
        (SIGNAL + SIGNAL, "toolErrors: names must differ"),
        (SIGNAL.replace("toolErrors", "failures"), "failures: that is a signal which the operator"),
        (
            "- {name: rerank, latency: {histogram: x}, direction: decrease, tolerancePercent: 5}",
            "rerank: direction is for a ratio",
        ),
        ("".join(SIGNAL.replace("toolErrors", f"s{n}") for n in range(9)), "custom"),
    ],
)
def test_signals_that_a_cluster_would_refuse_are_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "signals.yaml"
    path.write_text(text)
    result = run(*URL, *ARMS, *THEN, "--custom", str(path))
    assert result.exit_code == 1, result.output
    assert f"--custom {path}: " in result.stderr
    assert said in result.stderr
