"""A set from where it lies, and what is said when it is not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kvquant.evaluation.examples import DatasetError
from kvquant.evaluation.fetching import fetch

LINE = '{"id": "a", "endpoint": "/v1/completions", "body": {"prompt": "Hi"}}\n'


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_is_read_by_path_and_by_url(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "our set.jsonl"
    path.write_text(LINE)
    name = f"{prefix}{path}".replace(" ", "%20" if prefix else " ")
    dataset = fetch(name)
    assert [example.id for example in dataset.examples] == ["a"]
    assert dataset.digest == hashlib.sha256(LINE.encode()).hexdigest()
    assert dataset.name == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LINE + "{", "line 2: it is no JSON document"),
        (LINE + "\n" + LINE, "line 3: the id 'a' is that of line 1"),
        (LINE.replace("body", "boby"), "line 1: body: Field required"),
        ("\n", "there is no example in it"),
    ],
)
def test_a_malformed_set_names_the_file_and_the_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(text)
    with pytest.raises(DatasetError) as raised:
        fetch(path.as_uri())
    assert path.as_uri() in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "name", ["/no/such/file", "file:///no/such/file", "http://x/y.jsonl", "s3://", "s3://a:b@c/d"]
)
def test_what_is_no_set_is_said_with_its_name(name: str) -> None:
    with pytest.raises(DatasetError, match=name.replace("/", "/")):
        fetch(name)
