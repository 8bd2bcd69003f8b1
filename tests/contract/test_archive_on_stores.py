"""What the archive of decisions promises, on a folder and on a real S3 server alike."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvquant.adapters.archive import ObjectArchive
from kvquant.errors import ArchiveError
from tests.s3_server import S3Server, binary
from tests.waiting import wait_until

PATH = "inference/llama-fp8/u-1/000001.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    binary()  # built, if need be, before any time-out runs
    one = S3Server(tmp_path_factory.mktemp("s3"))
    one.start()
    yield one
    one.stop()


@pytest.fixture(params=["file", "s3"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """Return a URL and the folder that lies behind it."""
    if request.param == "file":
        return f"file://{tmp_path}/records", tmp_path / "records"
    server: S3Server = request.getfixturevalue("server")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"records-{os.urandom(4).hex()}"
    return f"s3://{bucket}/kvquant/", server.make_bucket(bucket) / "kvquant"


def test_an_object_is_written_whole_below_the_prefix(place: tuple[str, Path]) -> None:
    url, folder = place
    ObjectArchive(url).put(PATH, '{"message":"é\\n"}')
    assert (folder / PATH).read_text(encoding="utf-8") == '{"message":"é\\n"}'
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / PATH]


def test_what_was_written_first_stays(place: tuple[str, Path]) -> None:
    url, folder = place
    archive = ObjectArchive(url)
    for text in ("first", "first", "another"):
        archive.put(PATH, text)
    ObjectArchive(url).put(PATH, "of the next process")
    assert (folder / PATH).read_text() == "first"


def test_a_server_that_is_away_is_an_error_and_then_is_not(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    folder = server.make_bucket("back-again")
    archive = ObjectArchive("s3://back-again")
    server.stop()
    try:
        with pytest.raises(ArchiveError):
            archive.put(PATH, "text")
    finally:
        server.start()

    def written() -> bool:
        try:
            archive.put(PATH, "text")
        except ArchiveError:
            return False
        return True

    wait_until(written, 20, "the object should be written")
    assert (folder / PATH).read_text() == "text"


@pytest.mark.parametrize("wrong", ["AWS_SECRET_ACCESS_KEY", "bucket"])
def test_what_the_server_refuses_is_an_error_that_tells_no_secret(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    if wrong != "bucket":
        server.make_bucket("not-for-you")
        monkeypatch.setenv(wrong, "a-secret-of-somebody")
    with pytest.raises(ArchiveError) as refused:
        ObjectArchive("s3://not-for-you" if wrong != "bucket" else "s3://nowhere").put(PATH, "text")
    assert "a-secret-of-somebody" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 260


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    archive = ObjectArchive(f"file://{tmp_path}")
    (tmp_path / "inference").write_text("in the way")
    with pytest.raises(ArchiveError):
        archive.put(PATH, "text")


def test_a_server_that_hangs_is_an_error_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvquant.adapters.archive._CLIENT", {"timeout": "1s"})
    monkeypatch.setattr("kvquant.adapters.archive._RETRIES", {"max_retries": 0})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        with pytest.raises(ArchiveError):
            ObjectArchive("s3://bucket").put(PATH, "text")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "records",
        "/var/records",
        "file://host/folder",
        "file://relative",
        "http://bucket/prefix",
        "ftp://bucket",
        "s3://",
        "s3://key:secret@bucket/prefix",
        "s3://bucket/prefix?token=secret",
        "s3://bucket/prefix#x",
        "memory:///",
    ],
)
def test_a_url_of_nothing_that_we_write_to_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="without credentials") as refused:
        ObjectArchive(url)
    assert "secret" not in str(refused.value)
