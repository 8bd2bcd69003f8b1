"""The engine as a process: when it listens, how it ends, and with which code."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from engine_sim import memory
from tests.engine_sim.running import Process, command, environment, process
from tests.waiting import wait_until

BODY = {"prompt": [1] * 400, "max_tokens": 300, "ignore_eos": True}


async def load(url: str, requests: int, **extra: object) -> list[str]:
    """Send requests at once; each one's fate: its status, or the error that broke it off."""

    async def one(client: aiohttp.ClientSession) -> str:
        try:
            async with client.post("/v1/completions", json={**BODY, **extra}) as answer:
                await answer.read()
                return str(answer.status)
        except aiohttp.ClientError as error:
            return type(error).__name__

    async with aiohttp.ClientSession(url) as client:
        return await asyncio.gather(*(one(client) for _ in range(requests)))


@pytest.mark.parametrize(
    ("fault", "flags"),
    [
        ("exit_at_kv_usage=0.8", ("--num-gpu-blocks-override", "256", "--max-model-len", "2048")),
        ("exit_after=20", ()),
    ],
)
async def test_an_engine_that_dies_under_load_ends_with_code_0(
    fault: str, flags: tuple[str, ...]
) -> None:
    extra = {"KVSIM_FAULTS": f"fp8:{fault}", "KVSIM_TIME_SCALE": "5"}
    with process("--kv-cache-dtype", "fp8", *flags, extra=extra) as engine:
        fates = await load(engine.url, 20)
        code = await asyncio.to_thread(engine.code)
        assert engine.popen.stdout is not None
        said = engine.popen.stdout.read()
    # As a dead vLLM: Kubernetes shows "Completed", never "OOMKilled" and never an error.
    assert code == 0
    assert "500" in fates
    assert "200" not in fates
    assert "EngineCore encountered a fatal error" in said


async def ended(engine: Process, sent: asyncio.Future[list[str]]) -> tuple[list[str], int]:
    await until_running(engine)
    engine.popen.send_signal(signal.SIGTERM)
    return await sent, await asyncio.to_thread(engine.code)


async def until_running(engine: Process) -> None:
    async with aiohttp.ClientSession(engine.url) as client:
        deadline = time.monotonic() + 10
        running = False
        while not running:
            assert time.monotonic() < deadline
            async with client.get("/load") as answer:
                running = (await answer.json())["server_load"] > 0


async def test_sigterm_aborts_what_runs_and_ends_with_code_0() -> None:
    extra = {"KVSIM_FAULTS": "*:decode_slowdown=20"}  # 300 tokens would take half a minute.
    with process(extra=extra) as engine:
        began = time.monotonic()
        fates, code = await ended(engine, asyncio.ensure_future(load(engine.url, 2)))
    assert code == 0
    assert "200" not in fates
    assert time.monotonic() - began < 15


async def test_sigterm_lets_requests_finish_that_the_shutdown_timeout_covers() -> None:
    extra = {"KVSIM_TIME_SCALE": "2"}
    with process("--shutdown-timeout", "20", extra=extra) as engine:
        fates, code = await ended(engine, asyncio.ensure_future(load(engine.url, 2)))
    assert (fates, code) == (["200", "200"], 0)


@pytest.fixture
def starting() -> Iterator[Process]:
    """An engine that would load weights for a minute."""
    import subprocess

    popen = subprocess.Popen(
        command("--port", "1"),
        env=environment({"KVSIM_STARTUP_SECONDS": "60"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with popen:
        yield Process(popen, "")
        popen.kill()


def test_sigterm_ends_an_engine_that_still_loads(starting: Process) -> None:
    assert starting.popen.stdout is not None
    said = ""
    while "loading weights, 60.0 s" not in said:
        said = starting.popen.stdout.readline()
        assert said, "the engine ended before it loaded weights"
    starting.popen.terminate()
    assert starting.code() == 0
    assert "Starting vLLM API server" not in starting.popen.stdout.read()


def resident_bytes(engine: Process) -> int:
    status = Path(f"/proc/{engine.popen.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) << 10


async def test_the_memory_fault_takes_real_memory_up_to_its_bound() -> None:
    extra = {"KVSIM_FAULTS": "fp8:oom_after=2", "KVSIM_OOM_BYTES": str(160 << 20)}
    extra["KVSIM_TIME_SCALE"] = "100"
    lines: list[str] = []
    with process("--kv-cache-dtype", "fp8", extra=extra) as engine:
        stdout = engine.popen.stdout
        assert stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(stdout), daemon=True)
        reader.start()
        assert await load(engine.url, 1, max_tokens=1) == ["200"]
        before = resident_bytes(engine)
        assert await load(engine.url, 1, max_tokens=1) == ["200"]
        held = f"holding {160 << 20} bytes"
        await asyncio.to_thread(
            wait_until, lambda: any(held in line for line in lines), 20, "memory should be taken"
        )
        taken = resident_bytes(engine) - before
        assert 150 << 20 < taken < 190 << 20
        engine.popen.terminate()
        assert await asyncio.to_thread(engine.code) == 0
        reader.join(5)


@pytest.mark.parametrize("text", ["536870912\n", "536870912"])
def test_the_memory_fault_goes_beyond_the_containers_limit(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    monkeypatch.setattr(memory, "LIMIT_FILES", (str(tmp_path / "missing"), str(limit)))
    assert memory.limit_bytes(None) > 512 << 20
    assert memory.limit_bytes(7) == 7


@pytest.mark.parametrize("text", ["max\n", "9223372036854771712"])
def test_the_memory_fault_spares_a_machine_without_limits(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(text)
    monkeypatch.setattr(memory, "LIMIT_FILES", (str(limit),))
    with pytest.raises(memory.NoLimitError, match="KVSIM_OOM_BYTES or a memory limit"):
        memory.limit_bytes(None)
