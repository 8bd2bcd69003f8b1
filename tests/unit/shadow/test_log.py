"""The log of pairs on a volume: rotation, the cap, a full disk, a killed process."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvquant.core.shadow_settings import LogSettings
from kvquant.shadow import segment_log
from kvquant.shadow.log import PairLog, open_log
from kvquant.shadow.segment_log import DISK_MARGIN, Surroundings
from kvquant.shadow.spool import Spool
from tests.waiting import wait_until

HOUR = 3600.0


def opened(folder: Path, run: str = "run-1", **options: Any) -> PairLog:
    settings = LogSettings(url=f"file://{folder}", **options.pop("settings", {}))
    place = {"namespace": "inference", "rollout": "llama", "attempt": 2}
    return open_log(settings, run=run, **{**place, **options})


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "inference" / "llama").glob("attempt-*/*.jsonl"))


def records(*files: Path) -> list[dict[str, Any]]:
    """Every line of the files, each of which has to be whole."""
    lines = [line for file in files for line in file.read_bytes().split(b"\n")[:-1]]
    assert all(file.read_bytes().endswith(b"\n") for file in files)
    return [json.loads(line) for line in lines]


async def until(predicate: Callable[[], object], message: str) -> None:
    await asyncio.to_thread(wait_until, predicate, 20, message, 0.01)


async def until_it_takes(log: PairLog, number: int, *, taken: bool) -> None:
    for _ in range(2000):
        if await log.write({"number": number}) is taken:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"write() should have returned {taken}")


async def test_every_record_is_a_line_of_the_rollouts_own_folder(tmp_path: Path) -> None:
    log = opened(tmp_path)
    await log.start()
    assert all([await log.write({"number": n, "text": "größer\u2028\n"}) for n in range(50)])
    await log.close()
    (file,) = segments(tmp_path)
    assert file == tmp_path / "inference/llama/attempt-2/run-1-000001.jsonl"
    assert records(file) == [{"number": n, "text": "größer\u2028\n"} for n in range(50)]
    assert (log.counts.written, log.counts.refused, log.counts.lost) == (50, 0, 0)
    assert file.stat().st_mode & 0o007 == 0, "prompts are not for everybody on the node"


async def test_a_segment_ends_by_its_size_or_its_age_and_can_be_read_then(tmp_path: Path) -> None:
    clock = [0.0]
    log = opened(
        tmp_path,
        settings={"rotate_bytes": 1000},
        rotate_seconds=300,
        around=Surroundings(monotonic=lambda: clock[0]),
    )
    await log.start()
    for number in range(10):
        await log.write({"number": number, "text": "x" * 300})
    await until(lambda: log.counts.written == 10, "all lines should be written")
    by_size = segments(tmp_path)
    assert [len(records(file)) for file in by_size] == [4, 4], "each a line beyond 1000 bytes"
    clock[0] = 301
    await until(lambda: len(segments(tmp_path)) == 3, "the rest should be sealed for its age")
    assert [r["number"] for r in records(*segments(tmp_path))] == list(range(10))
    await log.close()


async def test_the_share_of_the_rollout_is_kept_and_others_are_left_alone(tmp_path: Path) -> None:
    home = tmp_path / "inference/llama/attempt-2"
    home.mkdir(parents=True)
    others = [
        home / "notes.txt",
        home / "dataset.jsonl",
        tmp_path / "inference/llama/run-1-000001.jsonl",
        tmp_path / "inference/llama-2/attempt-2/run-1-000001.jsonl",
    ]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"x" * 50_000)
        os.utime(other, (0, 0))
    log = opened(tmp_path, settings={"rotate_bytes": 2000, "max_bytes": 10_000})
    await log.start()
    for number in range(200):
        await log.write({"number": number, "text": "x" * 480})
    await until(lambda: log.counts.written == 200, "all lines should be written")
    await log.close()
    kept = [file for file in segments(tmp_path) if file not in others]
    assert sum(file.stat().st_size for file in kept) <= 10_000
    numbers = [r["number"] for r in records(*kept)]
    assert numbers == list(range(numbers[0], 200)), "the newest stay"
    assert len(numbers) >= 10
    assert log.counts.removed > 0
    assert all(other.stat().st_size == 50_000 for other in others)


async def test_old_segments_go_whatever_attempt_they_are_of(tmp_path: Path) -> None:
    first = opened(tmp_path, run="early", attempt=1)
    await first.start()
    await first.write({"number": 1})
    await first.close()
    second = opened(tmp_path, run="late", attempt=2)
    await second.start()
    await second.write({"number": 2})
    await second.close()
    early, late = segments(tmp_path)
    os.utime(early, (1_000_000, 1_000_000))
    os.utime(late, (1_000_000 + 2 * HOUR, 1_000_000 + 2 * HOUR))
    now = 1_000_000 + 25 * HOUR
    third = opened(
        tmp_path, settings={"retention_hours": 24}, around=Surroundings(now=lambda: now), run="x"
    )
    await third.start()
    await until(lambda: not early.exists(), "what is older than a day should go")
    await third.close()
    assert late.exists()


async def test_a_disk_that_fills_up_refuses_and_takes_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_log, "LOOK_SECONDS", 0.01)
    free = [DISK_MARGIN + 1]
    log = opened(tmp_path, around=Surroundings(free=lambda _: free[0]))
    await log.start()
    assert await log.write({"number": 1})
    free[0] = DISK_MARGIN - 1
    await until_it_takes(log, 2, taken=False)
    written = log.counts.written
    free[0] = DISK_MARGIN + 1
    await until_it_takes(log, 3, taken=True)
    await log.close()
    assert log.counts.refused >= 1
    assert log.counts.lost == 0
    assert records(*segments(tmp_path))[0] == {"number": 1}
    assert log.counts.written > written


async def test_memory_is_bounded_while_the_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_log, "MEMORY_BYTES", 10_000)
    log = opened(tmp_path)
    # Not started: nothing is taken from memory, as with a disk that hangs.
    taken = [await log.write({"text": "x" * 900}) for _ in range(100)]
    assert taken == [True] * 10 + [False] * 90
    assert log.counts.refused == 90
    await log.close()
    assert log.counts.lost == 10, "what could not be written is owned up to"


async def test_one_record_beyond_the_memory_is_taken_when_none_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_log, "MEMORY_BYTES", 100)
    log = opened(tmp_path)
    await log.start()
    assert await log.write({"text": "x" * 1000})
    assert not await log.write({"text": "y"})
    await log.close()
    assert len(records(*segments(tmp_path))) == 1


async def test_a_failing_disk_is_tried_again_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvquant.shadow.trouble._FIRST_PAUSE", 0.01)
    real, failures = os.write, [3]

    def write(file: int, data: bytes) -> int:
        if len(data) > 20 and failures[0]:
            failures[0] -= 1
            # As a disk does that becomes full in the middle of a line.
            real(file, data[:7])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    monkeypatch.setattr("kvquant.shadow.spool.os.write", write)
    log = opened(tmp_path)
    await log.start()
    with caplog.at_level(logging.WARNING):
        for number in range(20):
            await log.write({"number": number, "text": "a secret of somebody"})
        await until(lambda: log.counts.written == 20, "the lines should be written in the end")
    await log.close()
    assert [r["number"] for r in records(*segments(tmp_path))] == list(range(20))
    assert (log.counts.errors, log.counts.lost) == (3, 0)
    assert "No space left on device" in caplog.text
    assert "secret" not in caplog.text


async def test_a_folder_that_cannot_be_made_never_ends_the_service(tmp_path: Path) -> None:
    (tmp_path / "inference").write_text("a file where the folder should be")
    log = opened(tmp_path)
    await log.start()
    await log.write({"number": 1})
    await until(lambda: log.counts.errors, "the failure should be counted")
    await log.close()
    assert log.counts.lost == 1


async def test_a_record_that_is_no_json_is_dropped_without_telling_what_was_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = opened(tmp_path)
    await log.start()
    assert not await log.write({"mail": b"jo@example.org"})
    assert not await log.write({"drift": float("nan"), "mail": "jo@example.org"})
    assert await log.write({"text": "half an emoji \ud83d"})
    await log.close()
    assert records(*segments(tmp_path)) == [{"text": "half an emoji \ud83d"}]
    assert "cannot be written as JSON" in caplog.text
    assert "jo@" not in caplog.text


WRITES_ON = """
import asyncio, sys
from kvquant.core.shadow_settings import LogSettings
from kvquant.shadow.log import open_log

async def main():
    settings = LogSettings(url=sys.argv[1], rotate_bytes=300_000)
    log = open_log(settings, namespace="inference", rollout="llama", attempt=2, run="killed")
    await log.start()
    number = 0
    while True:
        if await log.write({"number": number, "text": "x" * 20_000}):
            number += 1
        await asyncio.sleep(0)

asyncio.run(main())
"""


async def test_a_process_killed_in_mid_write_leaves_whole_lines_only(tmp_path: Path) -> None:
    home = tmp_path / "inference/llama/attempt-2"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITES_ON, f"file://{tmp_path}"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        await until(lambda: len(segments(tmp_path)) >= 3, "it should be writing")
        # A pod that starts beside it, as in a rolling update, leaves its open segment alone.
        beside = opened(tmp_path, run="beside")
        await beside.start()
        await beside.close()
        number = len(segments(tmp_path))
        await until(lambda: len(segments(tmp_path)) > number, "it should still be writing")
    finally:
        process.kill()
        await process.wait()
    # Killed between one segment and the next, it had none open; killed right after it had begun
    # one, there is nothing in that to keep.
    left = {file: b"\n" in file.read_bytes() for file in home.glob("*.open")}
    assert len(left) <= 1
    for file in left:
        with file.open("ab") as last:
            last.write(b'{"number": 99999, "text": "cut off in the mi')
    after = opened(tmp_path, run="after")
    await after.start()
    await after.close()
    for file, has_lines in left.items():
        assert file.exists() is not has_lines
    numbers = [r["number"] for r in records(*segments(tmp_path))]
    assert numbers == list(range(len(numbers)))


def test_an_empty_segment_is_left_to_who_may_be_about_to_lock_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1, "run", 1000)
    spool.append(b"{}\n")
    fresh = tmp_path / "attempt-1/other-000001.jsonl.open"
    fresh.write_bytes(b"")
    old = tmp_path / "attempt-1/older-000001.jsonl.open"
    old.write_bytes(b"no line was ever whole")
    os.utime(old, (0, 0))
    assert Spool(tmp_path, 1, "next", 1000).recover() == 0
    assert fresh.exists()
    assert not old.exists()
    spool.seal()
    assert [name for _, name in spool.sealed()] == ["attempt-1/run-000001.jsonl"]


async def test_without_settings_nothing_is_kept_and_nothing_refused() -> None:
    log = open_log(None, namespace="inference", rollout="llama", attempt=1, run="run")
    await log.start()
    assert await log.write({"number": 1})
    await log.close()


@pytest.mark.parametrize(
    "url",
    ["/var/log", "file://host/folder", "ftp://host/folder", "s3:///key", "s3://id:key@bucket/x"],
)
def test_a_url_that_cannot_be_written_to_is_refused_with_what_can(url: str) -> None:
    with pytest.raises(ValueError, match="write file:///folder, s3://bucket/prefix or gs://"):
        open_log(LogSettings(url=url), namespace="n", rollout="r", attempt=1, run="run")


def test_a_run_that_would_leave_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be part of a file's name"):
        opened(tmp_path, run="../../elsewhere")
