"""What the log of pairs promises, on a folder and on a real S3 server alike."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvquant.core.shadow_settings import LogSettings
from kvquant.shadow import publishing
from kvquant.shadow.log import PairLog, open_log
from kvquant.shadow.segment_log import Surroundings
from tests.s3_server import S3Server, binary
from tests.waiting import wait_until


class Place:
    """Where segments end up.

    Attributes:
        url: Its URL.
        folder: What lies behind it.
        spool: For what is not there yet.
    """

    def __init__(self, url: str, folder: Path, spool: Path) -> None:
        self.url = url
        self.folder = folder
        self.spool = spool

    def log(self, run: str = "run-1", around: Surroundings | None = None, **limits: int) -> PairLog:
        return open_log(
            LogSettings(url=self.url, **limits),
            namespace="inference",
            rollout="llama",
            attempt=2,
            run=run,
            spool=self.spool,
            around=around,
        )

    def segments(self) -> list[Path]:
        return sorted((self.folder / "inference/llama").glob("attempt-*/*.jsonl"))

    def records(self) -> list[dict[str, Any]]:
        texts = [segment.read_bytes() for segment in self.segments()]
        assert all(text.endswith(b"\n") for text in texts)
        return [json.loads(line) for text in texts for line in text.split(b"\n")[:-1]]

    def left(self) -> list[Path]:
        return [path for path in self.spool.rglob("*.jsonl*") if path.is_file()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    spool = tmp_path / "spool"
    if request.param == "file":
        return Place(f"file://{tmp_path}/log", tmp_path / "log", spool)
    return in_bucket(request.getfixturevalue("server"), spool, monkeypatch)


def in_bucket(server: S3Server, spool: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"pairs-{uuid.uuid4().hex[:8]}"
    return Place(f"s3://{bucket}/shadow", server.make_bucket(bucket) / "shadow", spool)


async def until(predicate: Callable[[], object], message: str) -> None:
    await asyncio.to_thread(wait_until, predicate, 30, message)


@pytest.mark.timeout(600)
def test_the_server_is_there() -> None:
    """Not a promise of the log: it takes the time of the build, once, from the tests below."""
    assert os.access(binary(), os.X_OK)


async def test_records_arrive_whole_and_in_order(place: Place) -> None:
    log = place.log(rotate_bytes=10_000)
    await log.start()
    for number in range(100):
        assert await log.write({"number": number, "text": "für 猫 " * 100})
    await log.close()
    assert [record["number"] for record in place.records()] == list(range(100))
    assert len(place.segments()) > 5
    assert place.segments()[0].name == "run-1-000001.jsonl"
    assert place.left() == []
    assert (log.counts.written, log.counts.errors, log.counts.lost) == (100, 0, 0)


async def test_a_segment_of_many_parts_arrives_whole(place: Place) -> None:
    log = place.log()
    await log.start()
    for number in range(30):
        assert await log.write({"number": number, "text": "x" * 1_000_000})
    await log.close()
    assert [len(record["text"]) for record in place.records()] == [1_000_000] * 30


async def test_the_share_is_kept_and_what_we_did_not_write_is_left_alone(place: Place) -> None:
    others = [
        place.folder / "inference/llama/attempt-2/dataset.jsonl",
        place.folder / "inference/llama-2/attempt-2/run-1-000001.jsonl",
    ]
    for other in others:
        other.parent.mkdir(parents=True)
        other.write_bytes(b"x" * 50_000)
        os.utime(other, (0, 0))
    log = place.log(rotate_bytes=2000, max_bytes=10_000)
    await log.start()
    for number in range(200):
        await log.write({"number": number, "text": "x" * 480})
        # One by one, as a bucket's uploads must not fall behind: that would be refused.
        await until(lambda n=number: log.counts.written + log.counts.refused > n, "it should go on")  # type: ignore[misc]
    await log.close()
    ours = [segment for segment in place.segments() if segment not in others]
    assert sum(segment.stat().st_size for segment in ours) <= 10_000
    assert log.counts.removed > 0
    assert ours
    assert all(other.stat().st_size == 50_000 for other in others)


async def test_segments_go_when_they_are_too_old(place: Place) -> None:
    first = place.log("early")
    await first.start()
    await first.write({"number": 1})
    await first.close()
    (early,) = place.segments()
    written = early.stat().st_mtime
    fresh = place.log("x", Surroundings(now=lambda: written + 23 * 3600), retention_hours=24)
    await fresh.start()
    await fresh.close()
    assert early.exists()
    late = place.log("y", Surroundings(now=lambda: written + 25 * 3600), retention_hours=24)
    await late.start()
    await late.close()
    assert not early.exists()
    assert late.counts.removed == 1


async def test_a_dead_server_is_waited_for_and_nothing_is_lost(
    server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("kvquant.shadow.trouble._LONGEST_PAUSE", 0.2)
    place = in_bucket(server, tmp_path / "spool", monkeypatch)
    log = place.log(rotate_bytes=1000)
    await log.start()
    server.stop()
    taken = 0
    try:
        # Room for four segments and the memory: then it has to refuse.
        for number in range(500):
            if await log.write({"number": number, "text": "a secret " * 50}):
                taken += 1
            elif log.counts.errors:
                break
            await asyncio.sleep(0.01)
        assert 0 < taken < 200
        await until(lambda: log.counts.errors >= 2, "it should have tried again")
        assert log.counts.uploaded == 0
    finally:
        await asyncio.to_thread(server.start)
    await until(lambda: not place.left(), "all should be uploaded when the server is back")
    await log.close()
    assert [record["number"] for record in place.records()] == list(range(taken))
    assert log.counts.lost == 0
    assert "secret" not in caplog.text
    assert place.url in caplog.text


async def test_what_a_dead_process_had_not_uploaded_is_uploaded_by_the_next(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = in_bucket(server, tmp_path / "spool", monkeypatch)
    left = place.spool / "inference/llama/attempt-1"
    left.mkdir(parents=True)
    (left / "dead-000001.jsonl").write_bytes(b'{"number":1}\n')
    (left / "dead-000002.jsonl.open").write_bytes(b'{"number":2}\n{"numb')
    log = place.log()
    await log.start()
    await log.close()
    assert [record["number"] for record in place.records()] == [1, 2]
    assert place.left() == []


async def test_a_segment_that_no_bucket_ever_took_is_dropped_and_owned_up_to(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "GIVE_UP_SECONDS", -1.0)
    in_bucket(server, tmp_path / "spool", monkeypatch)
    place = Place("s3://no-such-bucket/shadow", tmp_path / "nowhere", tmp_path / "spool")
    log = place.log()
    await log.start()
    await log.write({"number": 1})
    await log.write({"number": 2})
    await log.close()
    assert (log.counts.written, log.counts.lost) == (2, 2)
    assert place.left() == []
