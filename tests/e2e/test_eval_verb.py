"""An example set, asked of a rollout's pods from a user's machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvquant.api.v1alpha1 import Phase
from tests.component.evaluation.sets import sources, write
from tests.e2e.stage import Stage
from tests.engine_sim.running import REPOSITORY

pytestmark = [pytest.mark.node, pytest.mark.timeout(420)]

FAULTS = "int4_per_token_head:drop_citations=0.9,drop_citations_beyond=1000"


def evaluate(stage: Stage, name: str, path: Path, report: Path) -> dict[str, Any]:
    """Run the verb as a user does."""
    words = [sys.executable, "-m", "kvquant.cli", "eval", name, "--dataset", str(path)]
    words += ["-n", stage.namespace, "--kubeconfig", str(stage.cluster.kubeconfig)]
    words += ["--report", str(report), "-o", "json", "--concurrency", "8"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "operator")}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_canary_that_loses_citations_far_back_fails_a_set_with_the_length_named(
    stage: Stage, tmp_path: Path
) -> None:
    examples = [sources(f"short-{n}", 100) for n in range(20)]
    examples += [sources(f"long-{n}", 2000) for n in range(20)]
    path = write(tmp_path / "set.jsonl", examples)
    stage.serve(replicas=2, faults=FAULTS)
    # Without live requests there is nothing to compare, so that it stays where it is.
    stage.roll_out("int4", "int4", shadow={"percent": 5, "minPairs": 100_000})
    stage.until("int4", lambda s: s.phase is Phase.SHADOWING, 180, "both pools should be there")
    told = evaluate(stage, "int4", path, tmp_path / "report.html")
    assert told["outcome"] == "Fail", told["message"]
    assert "citationRecall for requests of 4-16KiB" in told["message"]
    assert told["answered"] == len(examples)
    assert not told["failures"]
    assert told["rollout"] == f"{stage.namespace}/int4"
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert stage.weights == [0], "no user met it"
