"""What one tick of many rollouts costs the operator: queries, bytes, seconds, memory.

A process of its own plays Prometheus: what it needs to answer is not measured.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import sys
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qs

from bench.fleet import Fleet
from kvquant.adapters.metrics import PrometheusMetrics
from kvquant.core.ticking import GRID

NUMBERS = (1, 20, 200, 1000)


def _serve(fleet: Fleet, ready: Connection) -> None:
    answers: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if text not in answers:
                query = {name: values[0] for name, values in parse_qs(text).items()}
                step = GRID.total_seconds()
                start, end = float(query["start"]), float(query["end"])
                result = fleet.matrix(query["query"], start, end, step)
                data = {"resultType": "matrix", "result": result}
                answers[text] = json.dumps({"status": "success", "data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answers[text])))
            self.end_headers()
            self.wfile.write(answers[text])
            told.append(len(answers[text]))

        def log_message(self, *_: Any) -> None:
            pass

    told: list[int] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ready.send(server.server_port)
    server.timeout = 0.1
    while not ready.poll():
        server.handle_request()
    ready.send((len(told) // 2, sum(told) // 2))


def measure(rollouts: int) -> None:
    """Read one tick of so many rollouts twice and print what the second time took."""
    fleet = Fleet(rollouts)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(fleet, theirs), daemon=True)
    process.start()
    metrics = PrometheusMetrics(f"http://127.0.0.1:{ours.recv()}", timeout=300)
    at = fleet.began + 40 * GRID.total_seconds()
    needs, now = fleet.needs(at), datetime.fromtimestamp(at + 2, UTC)
    metrics.ticks(needs, now)
    began, cpu = time.monotonic(), time.process_time()
    metrics.ticks(needs, now)
    took, cpu = time.monotonic() - began, time.process_time() - cpu
    ours.send("enough")
    queries, size = ours.recv()
    process.join()
    metrics.close()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pods = rollouts * (2 * fleet.pods + fleet.routers)
    print(
        f"| {rollouts} | {pods} | {queries} | {size / 1e6:.1f} MB | {took:.2f} s | {cpu:.2f} s "
        f"| {most:.0f} MiB |"
    )


def main() -> int:
    """Print a table."""
    gc.set_threshold(100_000, 20, 20)  # as the operator does
    print("| rollouts | pods | queries a tick | answers | read in | of it CPU | memory at most |")
    print("|---|---|---|---|---|---|---|")
    for rollouts in NUMBERS:
        measure(rollouts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
