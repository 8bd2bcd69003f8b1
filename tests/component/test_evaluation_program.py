"""The evaluation's Job and the program that it runs understand each other."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from kvquant.core.evaluation_manifests import PROGRAM, job_object
from kvquant.core.evaluation_reading import read
from tests.fakes import evaluations
from tests.unit.test_evaluation_manifests import JOB

program = import_module(f"{PROGRAM[-1]}.__main__")


def test_it_takes_what_the_job_tells_it_and_its_last_words_name_what_is_wrong(
    tmp_path: Path,
) -> None:
    (container,) = job_object(replace(JOB, model="llama"))["spec"]["template"]["spec"]["containers"]
    told = tmp_path / "termination-log"
    here = {"--summary": told, "--out": tmp_path / "out", "--dataset": tmp_path / "missing.jsonl"}
    words = dict(word.split("=", 1) for word in container["args"]) | here
    # An argument that it does not know would raise SystemExit.
    assert program.main([f"{flag}={value}" for flag, value in words.items()]) == 1
    end = evaluations.ended(told.read_text(), 1)
    failed = evaluations.job(evaluations.JOB, ("Failed", "BackoffLimitExceeded"))
    found = read(failed, [evaluations.pod(end)])
    assert found.summary is None
    assert found.failure is not None
    assert found.failure.reason == "EvaluationBroken"
    assert "missing.jsonl" in found.failure.message
