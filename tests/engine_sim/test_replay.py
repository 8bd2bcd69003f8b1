"""The simulation is as quick, as slow and as full as the recorded servers were."""

from __future__ import annotations

import asyncio

import pytest

from engine_sim import calibrate
from engine_sim.recording import Recording, load, quantile
from tests.engine_sim.running import IMAGE, RECORDINGS, Running, running

ALLOWED = 0.25


@pytest.mark.parametrize("dtype", calibrate.RECORDED)
def test_replayed_arrivals_end_within_a_quarter_of_the_recording(dtype: str) -> None:
    recording = load(RECORDINGS, dtype)
    recorded, simulated = recording.outcome, calibrate.simulate(recording)
    assert simulated.p50 == pytest.approx(recorded.p50, rel=ALLOWED)
    assert simulated.p99 == pytest.approx(recorded.p99, rel=ALLOWED)
    assert simulated.tokens_per_second == pytest.approx(recorded.tokens_per_second, rel=ALLOWED)
    assert simulated.first_token == pytest.approx(recorded.first_token, rel=ALLOWED)
    assert simulated.capacity == recorded.capacity
    assert simulated.finished == recorded.finished
    assert abs(simulated.preemptions - recorded.preemptions) <= 1


def test_the_dtypes_keep_their_order() -> None:
    auto, fp8, int8 = (
        calibrate.simulate(load(RECORDINGS, dtype)).tokens_per_second
        for dtype in calibrate.RECORDED
    )
    assert fp8 / auto == pytest.approx(548 / 461, rel=0.05)
    assert int8 / auto == pytest.approx(168 / 461, rel=0.1)


def test_int8_which_kept_no_single_requests_has_the_arrivals_of_the_others() -> None:
    auto, fp8, int8 = (load(RECORDINGS, dtype) for dtype in calibrate.RECORDED)
    assert int8.arrivals == fp8.arrivals
    assert not int8.firsts
    for ours, theirs in zip(auto.arrivals, fp8.arrivals, strict=True):
        assert (ours.prompt_tokens, ours.output_tokens) == (
            theirs.prompt_tokens,
            theirs.output_tokens,
        )
        assert abs(ours.at - theirs.at) < 0.02


def test_the_readme_shows_the_table_that_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    calibrate.main(["--recordings", str(RECORDINGS)])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 5
    assert printed in (IMAGE / "README.md").read_text()


def test_a_missing_folder_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        calibrate.main(["--recordings", "nowhere"])
    assert ended.value.code == 2
    assert "no folder nowhere; run from the repository's root" in capsys.readouterr().err


async def replay(engine: Running, recording: Recording, scale: float) -> list[float]:
    """Send the recorded arrivals over HTTP, quicker; latencies in the recording's seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    latencies: list[float] = []

    async def one(prompt: int, output: int) -> None:
        sent = loop.time()
        await engine.complete(prompt=[1] * prompt, max_tokens=output, ignore_eos=True)
        latencies.append((loop.time() - sent) * scale)

    async with asyncio.TaskGroup() as group:
        for arrival in recording.arrivals:
            await asyncio.sleep(began + arrival.at / scale - loop.time())
            group.create_task(one(arrival.prompt_tokens, arrival.output_tokens))
    return latencies


async def test_the_server_takes_over_http_the_time_that_the_virtual_clock_says() -> None:
    recording = load(RECORDINGS, "auto")
    async with running("--kv-cache-dtype", "auto", scale=8) as engine:
        latencies = await replay(engine, recording, scale=8)
        tokens = await engine.value("vllm:generation_tokens_total")
    assert tokens == recording.tokens
    # A busy machine adds to what the clock says and never takes from it, so that this holds on any.
    assert quantile(latencies, 0.5) >= recording.outcome.p50 * (1 - ALLOWED)
    assert quantile(latencies, 0.99) >= recording.outcome.p99 * (1 - ALLOWED)
