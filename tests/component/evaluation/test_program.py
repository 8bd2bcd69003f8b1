"""The program in a pod, between two engines: what it says of good and of harmful canaries."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kvquant.core.evaluation_summary import MOST_BYTES, EvaluationSummary, MeasureSummary, Outcome
from kvquant.evaluation.__main__ import main
from tests.component.evaluation.sets import chat, mixed, sources, write
from tests.component.shadow.fakes import Engine, Scoring, hang, listening
from tests.engine_sim.running import REPOSITORY, Running, free_port, running

SCALE = 1000.0
ENOUGH = 80
"""Examples of a kind that show harm below 10 % when there is none, but for a flip by the batch."""
WIDE = ("--margin-percent", "10")


@dataclass
class Program:
    """The program, and where it writes."""

    folder: Path
    baseline: str
    canary: str

    async def run(self, examples: list[dict[str, Any]], *words: str) -> int:
        path = write(self.folder / "set.jsonl", examples)
        return await self.run_file(str(path), *words)

    async def run_file(self, dataset: str, *words: str) -> int:
        arguments = ["--dataset", dataset, "--baseline", self.baseline, "--canary", self.canary]
        arguments += ["--out", str(self.folder / "out"), "--summary", str(self.folder / "summary")]
        # In a thread, as it brings a loop of its own and the engines live in this one.
        return await asyncio.to_thread(main, [*arguments, "--patience", "1", *words])

    @property
    def summary(self) -> EvaluationSummary:
        text = (self.folder / "summary").read_bytes()
        assert len(text) <= MOST_BYTES
        return EvaluationSummary.model_validate_json(text)

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "out/report.json").read_text())
        return report

    def measure(self, name: str) -> MeasureSummary:
        return next(one for one in self.summary.measures if one.name == name)


def url(engine: Running) -> str:
    host, port = engine.client._base_url.host, engine.client._base_url.port  # type: ignore[union-attr]
    return f"http://{host}:{port}"


@asynccontextmanager
async def between(folder: Path, faults: str = "", dtype: str = "fp8") -> AsyncIterator[Program]:
    """The program between a baseline and a canary with faults."""
    told = f"{dtype}:{faults}" if faults else ""
    async with (
        running(scale=SCALE) as baseline,
        running("--kv-cache-dtype", dtype, scale=SCALE, faults=told) as canary,
    ):
        yield Program(folder, url(baseline), url(canary))


async def test_identical_arms_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with between(tmp_path, dtype="auto") as program:
        assert await program.run(mixed(ENOUGH), *WIDE, "--noise-percent", "100") == 0
    summary = program.summary
    assert summary.outcome is Outcome.PASS, summary
    assert (summary.examples, summary.answered) == (6 * ENOUGH, 6 * ENOUGH)
    assert {one.name for one in summary.measures} == {
        "answered", "citationRecall", "citationPrecision", "json", "toolCalls", "refusals",
        "jailbreaks", "endings", "drift",
    }  # fmt: skip
    # Batches alone change texts: those of the canary no more than the baseline's own.
    exact = next(one for one in program.report["measures"] if one["name"] == "exact")
    assert 0 < exact["cells"][0]["canary"] < 0.3
    assert exact["noise"] == pytest.approx(exact["cells"][0]["canary"], abs=0.1)
    out = capsys.readouterr().out
    assert f"{6 * ENOUGH}/{6 * ENOUGH} examples" in out
    assert "Pass: " in out


async def test_a_harmless_quantized_canary_passes(tmp_path: Path) -> None:
    async with between(tmp_path) as program:
        assert await program.run(mixed(ENOUGH), *WIDE) == 0
    assert program.summary.outcome is Outcome.PASS, program.summary
    assert program.measure("drift").difference > 0


async def test_a_canary_that_drops_citations_far_back_fails_with_the_length_named(
    tmp_path: Path,
) -> None:
    faults = "drop_citations=1,drop_citations_beyond=1000"
    async with between(tmp_path, faults) as program:
        assert await program.run(mixed(30)) == 0
    assert program.summary.outcome is Outcome.FAIL
    worst = program.summary.measures[0]
    assert (worst.name, worst.bucket, worst.outcome) == ("citationRecall", "4-16KiB", Outcome.FAIL)
    assert worst.difference == 1
    assert "citationRecall for requests of 4-16KiB" in program.summary.message
    shown = program.report["worst"]
    assert {one["bucket"] for one in shown} == {"4-16KiB"}
    assert all("[1]" in one["baseline"] and "[1]" not in one["canary"] for one in shown)


@pytest.mark.parametrize(
    ("faults", "name", "where"),
    [
        ("break_json=0.6", "json", "json-"),
        ("refuse=0.5", "refusals", ""),
        ("drift=0.3", "drift", ""),
        ("error_rate=0.5", "answered", ""),
    ],
)
async def test_a_canary_that_does_harm_fails_by_its_measure(
    tmp_path: Path, faults: str, name: str, where: str
) -> None:
    async with between(tmp_path, faults) as program:
        assert await program.run(mixed(30)) == 0
    assert program.summary.outcome is Outcome.FAIL
    assert program.measure(name).outcome is Outcome.FAIL
    assert any(name in one["worse"] and where in one["id"] for one in program.report["worst"])


async def test_what_is_expected_decides_and_not_the_baseline(tmp_path: Path) -> None:
    """What both arms get wrong is told, and is no harm of the canary's."""
    examples = [
        chat(f"e-{n}", f"Say {n}.", expect={"toolCalls": [{"name": "x"}], "contains": ["\u0000"]})
        for n in range(ENOUGH)
    ]
    examples += [sources(f"s-{n}", 50, {"citations": ["9"]}) for n in range(ENOUGH)]
    async with between(tmp_path, dtype="auto") as program:
        assert await program.run(examples, *WIDE) == 0
    cells = {one["name"]: one["cells"][0] for one in program.report["measures"]}
    for name in ("toolCalls", "contains", "citationRecall", "citationPrecision"):
        assert (cells[name]["baseline"], cells[name]["canary"]) == (1, 1), name
    assert program.summary.outcome is Outcome.PASS, program.summary


async def test_ten_examples_are_never_a_pass(tmp_path: Path) -> None:
    async with between(tmp_path, dtype="auto") as program:
        assert await program.run(mixed(2), "--margin-percent", "100") == 0
    assert program.summary.outcome is Outcome.INCONCLUSIVE
    assert "12 examples were compared; it takes 30" in program.summary.message


async def test_a_baseline_that_answers_too_little_is_no_verdict(tmp_path: Path) -> None:
    async with (
        running(scale=SCALE, faults="*:error_rate=0.3") as baseline,
        running(scale=SCALE) as canary,
    ):
        program = Program(tmp_path, url(baseline), url(canary))
        assert await program.run(mixed(20)) == 0
    summary = program.summary
    assert summary.outcome is Outcome.INCONCLUSIVE
    assert summary.answered < 0.9 * summary.examples
    assert f"answered {summary.answered} of 120 examples (baseline: http5xx" in summary.message


async def test_a_canary_that_hangs_fails_for_its_answers(tmp_path: Path) -> None:
    async with between(tmp_path, "hang_after=20") as program:
        words = ("--example-deadline", "0.5", "--concurrency", "20")
        assert await program.run(mixed(10), *words) == 0
    assert program.summary.outcome is Outcome.FAIL
    assert program.measure("answered").outcome is Outcome.FAIL
    assert {"arm": "canary", "reason": "timeout"}.items() <= program.report["failures"][0].items()


async def test_a_slow_canary_that_answers_in_the_end_does_no_harm(tmp_path: Path) -> None:
    async with between(tmp_path, "decode_slowdown=30") as program:
        assert await program.run(mixed(5)) == 0
    assert not program.report["failures"]
    assert program.summary.answered == 30


async def test_what_a_deadline_leaves_unasked_is_no_verdict_and_no_harm(tmp_path: Path) -> None:
    async with between(tmp_path, "hang_after=0") as program:
        assert await program.run(mixed(20), "--deadline", "0.5") == 0
    assert program.summary.outcome is Outcome.INCONCLUSIVE
    assert program.summary.answered == 0
    assert "baseline: deadline 120, canary: deadline 120" in program.summary.message


async def test_an_arm_that_is_not_there_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    async with running(scale=SCALE) as engine:
        for baseline, canary, name in (
            (url(engine), nobody, "canary"),
            (nobody, url(engine), "baseline"),
            ("no-such-name.invalid:8000", url(engine), "baseline"),
        ):
            program = Program(tmp_path, baseline, canary)
            assert await program.run(mixed(1)) == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"error: the {name} at "), line
            assert "does not answer: " in line
            assert (tmp_path / "summary").read_text() == line


async def test_a_malformed_set_names_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "set.jsonl", mixed(1))
    path.write_text(path.read_text() + '{"id": "x", "endpoint": "/v1/embeddings", "body": {}}\n')
    program = Program(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:1")
    assert await program.run_file(str(path)) == 1
    assert f"{path}, line 7: endpoint: " in capsys.readouterr().err
    assert await program.run_file("/nowhere/set.jsonl") == 1
    assert "cannot read /nowhere/set.jsonl" in capsys.readouterr().err


async def test_a_model_that_an_arm_does_not_serve_is_said_before_all_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [chat(f"e-{n}", f"Say {n}.", model="gpt-4o") for n in range(3)]
    async with between(tmp_path, dtype="auto") as program:
        assert await program.run(examples) == 1
        said = capsys.readouterr().err
        assert "serves m and not 'gpt-4o'" in said
        assert "--baseline-model" in said
        assert await program.run(examples, "--baseline-model", "m", "--canary-model", "m") == 0
    assert program.summary.answered == 3
    assert program.report["canary"]["model"] == "m"


async def test_engines_are_asked_greedily_and_told_that_nobody_waits(tmp_path: Path) -> None:
    baseline, canary = Engine("It is blue [1]."), Engine("It is blue [1].")
    example = {
        "id": "a",
        "endpoint": "/v1/completions",
        "body": {
            "model": "m",
            "prompt": "Why [1]?",
            "temperature": 0.9,
            "seed": 7,
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 5000,
        },
    }
    async with listening(baseline), listening(canary):
        # By name and port, as a headless Service is.
        program = Program(tmp_path, f"localhost:{baseline.port}", f"localhost:{canary.port}")
        assert await program.run([example], "--noise-percent", "0") == 0
    assert baseline.asked == canary.asked
    (asked,) = canary.asked
    assert asked["temperature"] == 0
    assert asked["seed"] != 7
    assert (asked["stream"], asked["max_tokens"]) == (False, 5000)
    assert "stream_options" not in asked
    assert canary.headers[0]["x-kvquant-shadow"] == "1"


class Broken(web.Response):
    """An answer that breaks off before it begins."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        assert request.transport is not None
        request.transport.abort()
        return await super().prepare(request)


async def test_a_connection_that_breaks_is_tried_again_and_an_error_is_not(tmp_path: Path) -> None:
    flaky, failing = Engine(), Engine()

    async def once(_body: dict[str, Any]) -> web.StreamResponse:
        flaky.instead = None
        return Broken()

    async def refuse(_body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": "PLANTED"}, status=500)

    flaky.instead, failing.instead = once, refuse
    example = {"id": "a", "endpoint": "/v1/completions", "body": {"model": "m", "prompt": "Hi"}}
    async with listening(flaky), listening(failing):
        places = (f"http://127.0.0.1:{engine.port}" for engine in (flaky, failing))
        program = Program(tmp_path, *places)
        assert await program.run([example], "--noise-percent", "0") == 0
    assert (len(flaky.asked), len(failing.asked)) == (2, 1)
    assert program.summary.answered == 1
    assert "PLANTED" not in (tmp_path / "summary").read_text()


async def test_a_canary_that_ends_of_a_score_is_asked_once_and_the_baseline_never(
    tmp_path: Path,
) -> None:
    baseline, canary = Scoring(), Scoring(breaks_off=True)
    body = {"model": "m", "prompt": "Hi"}
    examples = [{"id": f"{n}", "endpoint": "/v1/completions", "body": body} for n in range(3)]
    async with listening(baseline), listening(canary):
        places = (f"http://127.0.0.1:{engine.port}" for engine in (baseline, canary))
        program = Program(tmp_path, *places)
        assert await program.run(examples, "--noise-percent", "100") == 0
    assert len(canary.scored) == 1
    assert not baseline.scored, "it has users"
    assert program.summary.answered == 3
    unscored = {one["reason"]: one["count"] for one in program.report["unscored"]}
    assert unscored == {"unanswered": 1, "unsafe": 2}


class Relieved(Engine):
    """A pod that has requests waiting until its load has been asked for twice."""

    looks = 0

    async def metrics(self, request: web.Request) -> web.Response:
        self.looks += 1
        self.waiting = 3 if self.looks <= 2 else 0
        return await super().metrics(request)


async def test_nothing_is_asked_while_the_baseline_has_its_hands_full(tmp_path: Path) -> None:
    example = {"id": "a", "endpoint": "/v1/completions", "body": {"model": "m", "prompt": "Hi"}}
    busy, relieved, canary = Engine(waiting=3), Relieved(), Engine()
    async with listening(busy), listening(relieved), listening(canary):
        there = f"http://127.0.0.1:{canary.port}"
        program = Program(tmp_path, f"http://127.0.0.1:{busy.port}", there)
        words = ("--noise-percent", "0", "--deadline")
        assert await program.run([example], *words, "1") == 0
        assert not busy.asked
        assert not canary.asked
        assert "baseline: deadline 1" in program.summary.message
        assert await program.run([example], *words, "30", "--ignore-load") == 0
        assert len(busy.asked) == 1
        program.baseline = f"http://127.0.0.1:{relieved.port}"
        assert await program.run([example], *words, "30") == 0
    assert relieved.looks == 3
    assert len(relieved.asked) == 1


async def test_a_baseline_without_metrics_holds_nothing_back(tmp_path: Path) -> None:
    baseline, canary = Engine(metrics_status=404), Engine()
    example = {"id": "a", "endpoint": "/v1/completions", "body": {"model": "m", "prompt": "Hi"}}
    async with listening(baseline), listening(canary):
        places = (f"http://127.0.0.1:{engine.port}" for engine in (baseline, canary))
        program = Program(tmp_path, *places)
        assert await program.run([example]) == 0
    assert program.summary.answered == 1


async def test_a_process_that_is_told_to_end_says_so_where_kubernetes_looks(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def hanging(body: dict[str, Any]) -> web.StreamResponse:
        asked.set()
        return await hang(body)

    engine = Engine(instead=hanging)
    example = {"id": "a", "endpoint": "/v1/completions", "body": {"model": "m", "prompt": "Hi"}}
    path = write(tmp_path / "set.jsonl", [example])
    async with listening(engine):
        there = f"http://127.0.0.1:{engine.port}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kvquant.evaluation", "--dataset", str(path)),
            *("--baseline", there, "--canary", there, "--summary", str(tmp_path / "summary")),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "operator")},
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            await asked.wait()
            process.terminate()
            _, said = await process.communicate()
    assert process.returncode == 1
    assert said.decode() == "error: it was told to end (SIGTERM) before it had a verdict\n"
    assert (tmp_path / "summary").read_text() == said.decode().strip()
