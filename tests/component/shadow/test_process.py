"""The service's own process between two simulated engines, and every byte that it writes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine_sim.running import REPOSITORY, free_port, process, sample
from tests.waiting import wait_until

SECRETS = ("jane.doe@example.org", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00", "Bearer-X")
FORBIDDEN = ("kubernetes", "kopf", "grpc", "numpy", "prometheus_api_client", "scipy", "requests")


@dataclass
class Service:
    """A process that listens."""

    popen: subprocess.Popen[str]
    port: int
    metrics_port: int

    def mirror(self, body: object, **headers: str) -> None:
        """Send a copy."""
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
            assert answer.status == 202

    def metrics(self) -> str:
        """What Prometheus reads."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as answer:
            return str(answer.read().decode())

    def value(self, name: str, **labels: str) -> float:
        """One sample."""
        return sample(self.metrics(), name, **labels)

    def end(self) -> str:
        """Tell it to end; returns all that it wrote."""
        self.popen.send_signal(signal.SIGTERM)
        said, _ = self.popen.communicate(timeout=15)
        return said


@contextmanager
def service(folder: Path, baseline: int, canary: int, **settings: object) -> Iterator[Service]:
    """A service between two ports."""
    path = folder / "shadow.json"
    arm = {"host": "127.0.0.1", "deployment": "llama"}
    whole = {
        "namespace": "inference",
        "rollout": "llama",
        "uid": "u",
        "attempt": 1,
        "baseline": {**arm, "port": baseline, "dtype": "auto"},
        "canary": {**arm, "port": canary, "dtype": "int4_per_token_head"},
        "log": {"url": f"file://{folder}/log"},
        **settings,
    }
    path.write_text(json.dumps(whole))
    ports = free_port(), free_port()
    popen = subprocess.Popen(
        [
            *(sys.executable, "-m", "kvquant.shadow", "--settings", str(path)),
            *("--host", "127.0.0.1", "--port", str(ports[0]), "--metrics-port", str(ports[1])),
            *("--log-level", "DEBUG"),
        ],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / "operator")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with popen:
        running = Service(popen, *ports)
        try:
            wait_until(running.metrics, 20, "the service should listen")
            yield running
        finally:
            popen.kill()


def prompts(number: int) -> dict[str, object]:
    """A prompt with planted values."""
    text = f"{number}: {SECRETS[0]} paid with {SECRETS[1]} from {SECRETS[2]}, says [1] and [2]."
    return {"model": "m", "prompt": text, "max_tokens": 40, "user": "PLANTED-USER"}


def written(folder: Path) -> str:
    """Everything under a folder but the settings."""
    files = [path for path in (folder / "log").rglob("*") if path.is_file()]
    return "".join(path.read_text() for path in files)


def test_drift_is_seen_on_simulated_engines_and_nothing_personal_is_written(tmp_path: Path) -> None:
    faults = {"KVSIM_TIME_SCALE": "20", "KVSIM_FAULTS": "int4_per_token_head:drift=0.2"}
    with (
        process(extra=faults) as baseline,
        process("--kv-cache-dtype", "int4_per_token_head", extra=faults) as canary,
        service(
            tmp_path,
            int(baseline.url.rsplit(":", 1)[1]),
            int(canary.url.rsplit(":", 1)[1]),
            noise_percent=100,
        ) as shadow,
    ):
        for number in range(8):
            shadow.mirror(prompts(number), Authorization=SECRETS[3], Cookie="PLANTED-COOKIE")
        shadow.mirror(b'{"prompt": "' + SECRETS[0].encode())
        wait_until(
            lambda: shadow.value("kvquant_shadow_scored_total", pair="canary", signal="drift",
                                 bucket="0-4KiB") == 8,
            30,
            "eight pairs should be scored",
        )  # fmt: skip
        wait_until(
            lambda: shadow.value("kvquant_shadow_dropped_total", reason="unreadable") == 1,
            10,
            "the broken one should be dropped",
        )
        harm = {
            pair: shadow.value(
                "kvquant_shadow_harm_total", pair=pair, signal="drift", bucket="0-4KiB"
            )
            for pair in ("canary", "noise")
        }
        metrics = shadow.metrics()
        said = shadow.end()
        assert shadow.popen.returncode == 0
        # 0.2 nats per token were put into the canary, and next to none into the baseline.
        assert harm["canary"] / 8 == pytest.approx(0.2, abs=0.1)
        assert harm["noise"] < harm["canary"] / 4
    lines = written(tmp_path).splitlines()
    assert sum("schema_version" in line for line in lines) == 8
    record = json.loads(next(line for line in lines if "schema_version" in line))
    assert set(record["pairs"]["canary"]["signals"]) >= {"drift", "answered", "exact"}
    assert record["arms"]["canary"]["regime"]["dtype"] == "int4_per_token_head"
    planted = (*SECRETS, "PLANTED-USER", "PLANTED-COOKIE", "4111111111111111", "jane.doe")
    for place, text in (("metrics", metrics), ("output", said), ("log", "\n".join(lines))):
        for value in planted:
            assert value not in text, f"{value} is in the {place}"


def test_it_ends_within_seconds_while_engines_hang(tmp_path: Path) -> None:
    faults = {"KVSIM_FAULTS": "*:hang_after=0"}
    with (
        process(extra=faults) as engine,
        service(tmp_path, port := int(engine.url.rsplit(":", 1)[1]), port) as shadow,
    ):
        shadow.mirror(prompts(0))
        wait_until(
            lambda: shadow.value("kvquant_shadow_in_flight") == 1, 20, "a pair should be in work"
        )
        said = shadow.end()
        assert shadow.popen.returncode == 0
        assert said.rstrip().endswith("ended")


def test_settings_that_cannot_be_read_end_it_with_2_and_without_their_values(
    tmp_path: Path,
) -> None:
    path = tmp_path / "shadow.json"
    path.write_text('{"namespace": 5, "rollout": "PLANTED", "uid": ["PLANTED"]}')
    ended = subprocess.run(
        [sys.executable, "-m", "kvquant.shadow", "--settings", str(path)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / "operator")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 2
    assert "namespace" in ended.stderr
    assert "PLANTED" not in ended.stderr + ended.stdout


def test_it_needs_no_more_than_its_image_has() -> None:
    look = "import sys, kvquant.shadow.__main__; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", look],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / "operator")},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout.split()
    assert not [name for name in loaded if name.split(".")[0] in FORBIDDEN]
    ours = {name for name in loaded if re.match(r"kvquant(?!\.shadow)", name)}
    assert ours == {"kvquant", "kvquant.core", "kvquant.core.shadow_settings", "kvquant.errors"}
