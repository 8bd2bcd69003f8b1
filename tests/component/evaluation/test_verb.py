"""`kubectl kvquant eval` between two engines: what it prints, writes and refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvquant.cli.program import kvquant
from kvquant.evaluation.document import EvaluationDocument
from tests.component.evaluation.sets import chat, mixed, write
from tests.component.evaluation.test_program import SCALE, between, url
from tests.engine_sim.running import free_port, running
from tests.unit.cli.page import Page

DROPS = "drop_citations=1,drop_citations_beyond=1000"


def call(*words: str) -> Result:
    return CliRunner().invoke(kvquant, ["eval", *words], prog_name="kubectl kvquant")


async def evaluate(
    folder: Path, examples: list[dict[str, Any]], faults: str, *words: str
) -> Result:
    path = write(folder / "set.jsonl", examples)
    async with between(folder, faults) as program:
        places = ("--baseline", program.baseline, "--canary", program.canary)
        return await asyncio.to_thread(call, "--dataset", str(path), *places, *words)


async def test_it_tells_the_verdict_the_measures_and_the_worst(tmp_path: Path) -> None:
    result = await evaluate(tmp_path, mixed(20), DROPS)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "✗ Fail"
    assert "citationRecall for requests of 4-16KiB" in result.stdout
    (row,) = (line.split() for line in lines if line.split()[:1] == ["4-16KiB"])
    assert row[1:4] == ["20", "0.0", "100.0"]
    assert row[-1] == "Fail"
    assert "Worst: long-" in result.stdout
    assert "120/120 examples" in result.stderr


async def test_it_prints_json_and_nothing_else(tmp_path: Path) -> None:
    result = await evaluate(tmp_path, mixed(20), DROPS, "-o", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["outcome"] == "Fail"
    assert EvaluationDocument.model_validate(told).examples == 120
    assert len(told["results"]) == 120
    assert told["canary"]["fingerprints"] != told["baseline"]["fingerprints"]
    recall = next(one for one in told["measures"] if one["name"] == "citationRecall")
    (long,) = (cell for cell in recall["cells"] if cell["name"] == "4-16KiB")
    assert (long["outcome"], long["difference"]) == ("Fail", 1.0)
    assert long["sure"] > recall["margin"]


async def test_the_report_loads_nothing_and_takes_nothing_for_markup(tmp_path: Path) -> None:
    odd = "<script>alert(1)</script> [1] one [2] two"
    examples = [chat(f"<b>{n}</b>", odd, max_tokens=60) for n in range(30)]
    file = tmp_path / "eval.html"
    result = await evaluate(
        tmp_path, examples, "drop_citations=1,drop_citations_beyond=1", "--report", str(file)
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"Report: {file}"
    page = Page(file.read_text())
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert not [one for one in page.attributes if one[1] in ("src", "href", "xlink:href")]
    assert odd in page.text
    assert page.tags.count("svg") >= 3
    assert page.tags.count("details") == 20
    assert "open" not in [name for tag, name, _ in page.attributes if tag == "details"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--baseline", "localhost", "--canary", "http://b"), "'localhost': write a base URL"),
        (("--baseline", "ftp://a", "--canary", "http://b"), "'ftp://a': write a base URL"),
        (("--baseline", "http://u:p@a", "--canary", "http://b"), "without credentials"),
        (("--baseline", "http://a:99999", "--canary", "http://b"), "write a base URL"),
        (("--baseline", "http://a", "--canary", "http://b", "--concurrency", "0"), "concurrency"),
        (("--baseline", "http://a"), "--canary"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_asked(words: tuple[str, ...], said: str) -> None:
    result = call("--dataset", "/nowhere", *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_set_that_cannot_be_read_is_said_in_a_sentence() -> None:
    arms = ("--baseline", "http://a", "--canary", "http://b")
    for name, said in (
        ("/nowhere.jsonl", "cannot read /nowhere.jsonl"),
        ("ftp://x/y", "ftp://x/y: write a path"),
        ("s3://key:secret@bucket/x", "without credentials in it"),
    ):
        result = call("--dataset", name, *arms)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert said in result.stderr


async def test_an_arm_that_is_away_and_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    path = str(write(tmp_path / "set.jsonl", mixed(1)))
    async with running(scale=SCALE) as engine:
        there, away = url(engine), f"http://127.0.0.1:{free_port()}"
        arms = ("--dataset", path, "--baseline", there)
        result = await asyncio.to_thread(call, *arms, "--canary", away)
        assert result.exit_code == 1
        assert f"error: the canary at {away} does not answer" in result.stderr
        nowhere = ("--report", str(tmp_path / "no/such/folder/x.html"))
        result = await asyncio.to_thread(call, *arms, "--canary", there, *nowhere)
        assert result.exit_code == 1
        assert "cannot write" in result.stderr
