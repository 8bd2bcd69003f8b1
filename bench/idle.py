"""What the operator costs while nothing happens: memory, CPU, and requests to the API server.

A real etcd and API server without a node or controllers, the operator as a process with the rights
of an installation, a stub for Prometheus. Rollouts come from the simulated world of the tests,
written to the server as they ended there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from kvlocal.apiserver import ApiServer, free_ports, kubectl_command
from kvquant.adapters.cluster import RESOURCES
from kvquant.adapters.connection import Connection
from tests.conftest import apply_crd
from tests.site import Site
from tests.transplant import holding, make_namespace, promoted, rolled_back, transplant, waiting

REPOSITORY = Path(__file__).parents[1]
HOME = "kvquant-system"
A_NAMESPACE = 10
"""Rollouts in each namespace."""

AT_REST: tuple[Callable[[], Site], ...] = (promoted, rolled_back, waiting)
COUNTED = {resource.plural for resource in RESOURCES.values()} | {"tokenreviews"}
"""What the operator has to do with; the API server asks itself for other things all the time."""

ALONE = 400.0
"""Seconds for which the API server is looked at without an operator: what it asks of itself, such
as a list of Services every three minutes, is no request of the operator's."""

SETTLED_AFTER = 15.0
"""Seconds without a write after which the operator has come to rest."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    rollouts: str
    rss_mib: float
    cpu_share: float
    queries: float
    requests: dict[str, float]


class Prometheus:
    """Answers every query with nothing, and counts them."""

    def __init__(self) -> None:
        self.queries = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.queries += 1
                kind = "matrix" if "query_range" in self.path else "vector"
                data = {"resultType": kind, "result": []}
                body = json.dumps({"status": "success", "data": data}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, nargs="+", default=[1, 20, 100])
    parser.add_argument("--seconds", type=float, default=60, help="length of each measurement")
    chosen = parser.parse_args()
    prometheus = Prometheus()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ApiServer(Path(folder)) as server:
        connection = Connection.from_kubeconfig(str(server.kubeconfig))
        apply_crd(connection)
        kubeconfig = _install(server.kubeconfig, Path(folder))
        print(f"without an operator: {ALONE:g} s", file=sys.stderr, flush=True)
        alone = _requests_in(connection, ALONE)
        made = 0
        for count in sorted(chosen.rollouts):
            _stage(connection, AT_REST, "rest", made, count)
            made = count
            row = _measure(kubeconfig, connection, prometheus, f"{count} at rest", chosen.seconds)
            rows.append(row)
        _stage(connection, (holding,), "busy", 0, made)
        name = f"{made} at rest, {made} mid-step"
        rows.append(_measure(kubeconfig, connection, prometheus, name, chosen.seconds))
        connection.close()
    _print(rows, alone)
    return 0


def _install(admin: Path, folder: Path) -> Path:
    """Install the operator's rights and return a kubeconfig with them and no others."""
    kubectl = [*kubectl_command(), f"--kubeconfig={admin}", f"--cache-dir={folder / 'cache'}"]
    manifest = str(REPOSITORY / "examples" / "install" / "operator.yaml")
    _run([*kubectl, "apply", "--server-side", "-f", manifest])
    account = ["create", "token", "kvquant-operator", "-n", HOME, "--duration=8h"]
    document = yaml.safe_load(admin.read_text())
    document["users"][0]["user"] = {"token": _run([*kubectl, *account]).strip()}
    path = folder / "operator.conf"
    path.write_text(yaml.safe_dump(document))
    return path


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _stage(
    connection: Connection, kinds: Sequence[Callable[[], Site]], name: str, first: int, end: int
) -> None:
    for number in range(first, end):
        namespace = f"{name}-{number // A_NAMESPACE}"
        if number % A_NAMESPACE == 0:
            make_namespace(connection, namespace)
        transplant(connection, kinds[number % len(kinds)](), namespace, f"m{number:03d}")


def _measure(
    kubeconfig: Path, connection: Connection, prometheus: Prometheus, rollouts: str, seconds: float
) -> Row:
    """Start the operator, wait until it has come to rest, and look at it for a while."""
    print(f"{rollouts}: starting", file=sys.stderr, flush=True)
    with _operator(kubeconfig, prometheus.url) as process:
        _await_rest(connection, process, midway="mid-step" in rollouts)
        queries, cpu = prometheus.queries, _cpu_seconds(process.pid)
        began = time.monotonic()
        requests = _requests_in(connection, seconds)
        lasted = time.monotonic() - began
        return Row(
            rollouts,
            _rss_mib(process.pid),
            (_cpu_seconds(process.pid) - cpu) / lasted,
            (prometheus.queries - queries) / lasted,
            {what: count / lasted * 60 for what, count in requests.items()},
        )


@contextmanager
def _operator(kubeconfig: Path, prometheus: str) -> Iterator[subprocess.Popen[bytes]]:
    xds, metrics, health = free_ports(3)
    environment = {
        **os.environ,
        "KUBECONFIG": str(kubeconfig),
        "KVQUANT_NAMESPACE": HOME,
        "KVQUANT_PROMETHEUS_URL": prometheus,
        "KVQUANT_XDS_PORT": str(xds),
        "KVQUANT_METRICS_PORT": str(metrics),
        "KVQUANT_HEALTH_PORT": str(health),
    }
    log = kubeconfig.with_name("operator.log")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvquant"], env=environment, stdout=file, stderr=file
        )
        try:
            yield process
            if process.poll() is not None:
                raise RuntimeError(f"the operator ended: {log.read_text()[-2000:]}")
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()


def _await_rest(connection: Connection, process: subprocess.Popen[bytes], *, midway: bool) -> None:
    """Wait until nothing was written for a while.

    Rollouts in the middle of a step write a sign of life a minute: there, time must do.
    """
    deadline = time.monotonic() + 300
    quiet_since, before = time.monotonic(), _requests(connection)
    begun = False
    while not begun or time.monotonic() - quiet_since < SETTLED_AFTER:
        time.sleep(1)
        now = _requests(connection)
        sent = sum((now - before).values())
        # Two writes a second are what signs of life of a hundred come to.
        if sent > (3 if midway else 0):
            begun, quiet_since = True, time.monotonic()
        before = now
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the operator has ended, or does not come to rest")


def _requests_in(connection: Connection, seconds: float) -> Counter[str]:
    """Return the requests by verb and resource that come in a time."""
    before = _requests(connection)
    time.sleep(seconds)
    return _requests(connection) - before


def _requests(connection: Connection) -> Counter[str]:
    """Return what the API server has counted, watches aside."""
    text = connection.request("GET", "/metrics").text
    found: Counter[str] = Counter()
    for labels, value in re.findall(r"^apiserver_request_total\{(.*)\} (\S+)$", text, re.MULTILINE):
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if named["resource"] in COUNTED and named["verb"] not in ("WATCH", "CONNECT"):
            found[f"{named['verb']} {named['resource']}"] += int(float(value))
    return found


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0


def _own(row: Row, alone: Counter[str]) -> dict[str, float]:
    return {what: count for what, count in row.requests.items() if what not in alone}


def _print(rows: Sequence[Row], alone: Counter[str]) -> None:
    verbs = ("GET", "LIST", "POST", "PATCH", "PUT", "DELETE")
    heads = ["rollouts", "RSS MiB", "CPU cores", "PromQL/s", *(f"{v}/min" for v in verbs)]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        cells = [row.rollouts, f"{row.rss_mib:.0f}", f"{row.cpu_share:.3f}", f"{row.queries:.1f}"]
        for verb in verbs:
            sent = sum(n for what, n in _own(row, alone).items() if what.split()[0] == verb)
            cells.append(f"{sent:.0f}")
        print("| " + " | ".join(cells) + " |")
    print(f"Left out, because the API server sends it alone, in {ALONE:g} s: {dict(alone)}.")
    for row in rows:
        for what, count in sorted(_own(row, alone).items()):
            print(f"{row.rollouts}: {what} {count:.1f} a minute")
    rest = [row for row in rows if "mid-step" not in row.rollouts]
    total = sum(sum(_own(row, alone).values()) for row in rest)
    last = rest[-1]
    print(
        f"{last.rollouts}: {last.rss_mib:.0f} MiB, {last.cpu_share:.3f} cores; "
        f"requests of operators at rest to the API server, watches aside: {total:.1f} a minute."
    )


if __name__ == "__main__":
    sys.exit(main())
