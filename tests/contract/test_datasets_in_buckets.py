"""Example sets in a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvquant.evaluation.examples import DatasetError
from kvquant.evaluation.fetching import fetch
from tests.s3_server import S3Server

LINE = '{"id": "a", "endpoint": "/v1/completions", "body": {"prompt": "Hi"}}\n'


@pytest.fixture
def server(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    yield server
    server.stop()


def test_a_set_is_read_from_a_bucket_and_what_is_not_there_is_said(server: S3Server) -> None:
    bucket = server.make_bucket("sets")
    (bucket / "ours.jsonl").write_text(LINE)
    (bucket / "broken.jsonl").write_text(LINE + "{")
    assert [example.id for example in fetch("s3://sets/ours.jsonl").examples] == ["a"]
    with pytest.raises(DatasetError, match=r"s3://sets/broken\.jsonl, line 2"):
        fetch("s3://sets/broken.jsonl")
    with pytest.raises(DatasetError, match=r"s3://sets/other\.jsonl: there is no such object"):
        fetch("s3://sets/other.jsonl")


def test_a_server_that_is_away_is_said_in_a_sentence(server: S3Server) -> None:
    server.stop()
    with pytest.raises(DatasetError) as raised:
        fetch("s3://sets/ours.jsonl")
    assert str(raised.value).startswith("cannot read s3://sets/ours.jsonl: ")
    assert len(str(raised.value)) < 400
