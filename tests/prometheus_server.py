"""A real Prometheus on loopback, and an exporter whose page the test writes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until

SCRAPE_INTERVAL = "200ms"

CONFIG = """
global: {{scrape_interval: {interval}, scrape_timeout: {interval}}}
scrape_configs:
- job_name: pods
  static_configs:
  - targets: {targets}
"""


class Exporter:
    """Shows a page of metrics to Prometheus; None answers 500, as a target that is ill."""

    def __init__(self) -> None:
        self.page: str | None = ""
        self.pause = 0.0
        """Seconds that each answer takes."""
        self.scrapes = 0
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page = exporter.page
                time.sleep(exporter.pause)
                body = (page or "").encode()
                self.send_response(500 if page is None else 200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                exporter.scrapes += 1

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def show(self, page: str | None) -> None:
        """Change the page and wait until it has certainly been scraped and stored."""
        self.page = page
        seen = self.scrapes
        # The first may have been under way with the old page; the third means the second is done.
        wait_until(lambda: self.scrapes >= seen + 3, 20, "Prometheus should scrape the exporter")

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def binary(name: str = "prometheus") -> str:
    """Return the path of Prometheus, or of its promtool: named, on the PATH, cached, or Debian's.

    Args:
        name: `prometheus` or `promtool`.
    """
    named = os.environ.get(f"KVQUANT_{name.upper()}_BIN") or shutil.which(name)
    if named:
        return named
    default = Path.home() / ".cache" / "kvquant"
    path = Path(os.environ.get("KVQUANT_CACHE", default)) / "prometheus-debian" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            try:
                _run("apt-get", "download", "-qq", "prometheus", cwd=folder)
                package = next(Path(folder).glob("*.deb"))
                _run("dpkg-deb", "-x", str(package), f"{folder}/files")
            except (OSError, StopIteration, subprocess.CalledProcessError) as error:
                pytest.fail(
                    "These tests need Prometheus: install it (Debian: apt-get install prometheus) "
                    f"or name its binary in KVQUANT_{name.upper()}_BIN. ({error})"
                )
            Path(folder, "files", "usr", "bin", name).replace(path)
    return str(path)


def backfill(folder: Path, samples: Iterable[str]) -> None:
    """Let a Prometheus that starts with this folder remember samples of the past.

    Args:
        folder: As `prometheus` gets it.
        samples: Lines of the exposition format, each with its instant in seconds at its end.
    """
    page = folder / "backfill.txt"
    with page.open("w") as file:
        file.writelines(f"{line}\n" for line in samples)
        file.write("# EOF\n")
    data = folder / "data"
    data.mkdir(exist_ok=True)
    _run(binary("promtool"), "tsdb", "create-blocks-from", "openmetrics", str(page), str(data))
    page.unlink()


@contextmanager
def prometheus(exporters: Exporter | Sequence[Exporter], folder: Path) -> Iterator[str]:
    """Run Prometheus against the exporters and yield its URL.

    The folder keeps what it stores; a `rules.yml` that lies in it is evaluated.
    """
    exporters = [exporters] if isinstance(exporters, Exporter) else exporters
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    config = folder / "prometheus.yml"
    targets = [f"127.0.0.1:{exporter.port}" for exporter in exporters]
    rules = f"rule_files: ['{folder}/rules.yml']\n"
    config.write_text(CONFIG.format(interval=SCRAPE_INTERVAL, targets=targets) + rules)
    url = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("a") as log:
        process = subprocess.Popen(
            [
                binary(),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(
                lambda: _is_ready(url),
                30,
                f"Prometheus should become ready (its log: {log.name})",
            )
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=1) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        # Its 503 while it starts is an answer too, whose connection has to be closed.
        error.close()
        return False


def _run(*command: str, cwd: str | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
