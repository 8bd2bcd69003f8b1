"""The promise of `-o json`: these names stay, and docs/cli.md names all of them.

A name that is added here is new; one that has to be taken away breaks somebody's script.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kvquant.cli.reference import PRINTED, reference
from tests.unit.cli import made
from tests.unit.cli.stage import Stage

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "cli.md"

ARM = {"pool", "slot", "dtype", "replicas", "weight", "requests", "p99Ms"}
MEASURED = {"requests", "failed", "pageFaults", "pageFaultsPer100"}
MEASURED |= {"p50Seconds", "p90Seconds", "p99Seconds"}
ANALYSIS = {"at", "verdict", "message", "baselineRequests", "canaryRequests", "baselineP99Ms"}
ANALYSIS |= {"canaryP99Ms", "loadRatio", "provisional", "replicasNeeded", "etaSeconds"}
ANALYSIS |= {"budgetSpentPercent", "signals"}
SIGNAL = {"name", "family", "verdict", "baseline", "canary", "tolerance", "effect", "lower"}
SIGNAL |= {"upper", "requests", "budgetSpentPercent", "message"}
SHADOW = {"at", "verdict", "message", "pairs", "minPairs", "noisePairs", "exactPercent"}
SHADOW |= {"noiseExactPercent", "etaSeconds", "live", "copied", "copiedPercent", "replaced"}
SHADOW |= {"dropped", "signals", "buckets", "notEvaluated"}
COPIES = {
    "shadow": SHADOW,
    "shadow.dropped[]": {"reason", "count"},
    "shadow.signals[]": SIGNAL,
    "shadow.buckets[]": {"bucket", "live", "copied", "pairs", "covered"},
}
ROLLOUT: dict[str, set[str]] = {
    "": {
        *("name", "namespace", "createdAt", "target", "dtype", "resolvedDtype", "router", "phase"),
        *("phaseStartedAt", "attempt", "paused", "killed", "settled", "deleting", "step"),
        *("totalSteps", "stepStartedAt", "steps", "weights", "verdict", "waiting", "cause"),
        *(
            "adoption",
            "baseline",
            "canary",
            "analysis",
            "regimeProof",
            "conditions",
            "decisions",
            "warnings",
        ),
        *("verbs", "alerts", "evaluation", "shadow"),
    },
    "steps[]": {"weight", "soakSeconds", "state"},
    "weights": {"baseline", "canary", "mirror"},
    "waiting": {"reason", "message", "since", "soakLeftSeconds"},
    "baseline": ARM,
    "canary": ARM,
    "analysis": ANALYSIS,
    "analysis.signals[]": SIGNAL,
    "regimeProof[]": {
        *("pod", "containerId", "verdict", "dtype", "capacityTokens", "factor", "expectedFactor"),
        "message",
    },
    "conditions[]": {
        *("type", "status", "reason", "message", "observedGeneration", "lastTransitionTime"),
    },
    "decisions[]": {"number", "at", "kind", "reason", "step", "weight", "message"},
}
DECISION: dict[str, set[str]] = {
    "": {
        *("number", "at", "kind", "reason", "message", "attempt", "fingerprint", "step"),
        *("totalSteps", "weights", "baseline", "canary", "analysis", "signalsLeftOut", "changes"),
        "shadow",
    },
    "weights": {"baseline", "canary", "mirror"},
    "baseline": {"pool", "dtype", "replicas"},
    "canary": {"pool", "dtype", "replicas"},
    "analysis": ANALYSIS,
    "analysis.signals[]": SIGNAL,
}
REPORT: dict[str, set[str]] = {
    "": {
        *("generatedAt", "version", "summary", "startedAt", "endedAt", "source", "problems"),
        *("lookSeconds", "rollout", "steps", "points", "evidence"),
    },
    "steps[]": {"step", "weight", "startedAt", "endedAt", "baseline", "canary"},
    "steps[].baseline": MEASURED,
    "steps[].canary": MEASURED,
    "points[]": {"at", "baseline", "canary"},
    "points[].baseline": MEASURED,
    "points[].canary": MEASURED,
    "evidence[]": {"at", "step", "signal", "verdict", "effect", "lower", "upper"},
}


def names(value: Any, path: str = "") -> dict[str, set[str]]:
    """Return the names of every object in a document, by its place."""
    found: dict[str, set[str]] = {}
    if isinstance(value, dict):
        found[path] = set(value)
        for key, inner in value.items():
            found |= names(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            for place, keys in names(inner, f"{path}[]").items():
                assert found.setdefault(place, keys) == keys, "items of a list differ in names"
    return found


def printed(raw: dict[str, Any], *arguments: str) -> Any:
    stage = Stage()
    stage.put(raw)
    result = stage.run(*arguments, raw["metadata"]["name"], "-o", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_names_of_a_rollout() -> None:
    assert names(printed(made.progressing(), "status")) == ROLLOUT


def test_the_names_of_copied_requests() -> None:
    found = names(printed(made.shadowing(made.answers(50)), "status"))
    assert {place: keys for place, keys in found.items() if "shadow" in place} == COPIES


@pytest.mark.parametrize("raw", [made.fresh(), made.killed(), made.rolled_back(), made.promoted()])
def test_what_is_not_known_is_null_and_never_absent(raw: dict[str, Any]) -> None:
    assert names(printed(raw, "status"))[""] == ROLLOUT[""]


def test_the_names_of_a_report() -> None:
    from kvquant.cli.report.document import document
    from kvquant.cli.report.judged import judge
    from kvquant.cli.report.measured import measure
    from tests.unit.cli import story
    from tests.unit.cli.made import seen

    rollout = seen(story.split(story.promoted()))
    measured = measure(rollout, story.good(), story.end())
    judged = judge(rollout, story.good(), story.end(), timedelta(seconds=5))
    fields = document(rollout, measured, judged, story.end()).model_dump(mode="json", by_alias=True)
    found = names(fields)
    assert {place: keys for place, keys in found.items() if "rollout" not in place} == REPORT
    assert found["rollout"] == ROLLOUT[""]


def test_the_names_of_an_explanation() -> None:
    stage = Stage()
    raw = made.condemned()
    stage.put(raw, made.recorded(raw))
    shared = ("explain", "llama-int8", "-o", "json")
    one = json.loads(stage.run(*shared, "--decision", "4").stdout)
    assert names(one) == DECISION
    every = json.loads(stage.run(*shared).stdout)
    assert set(every) == {"name", "namespace", "decisions", "problems"}
    assert every["decisions"][3] == one
    assert {frozenset(decision) for decision in every["decisions"]} == {frozenset(DECISION[""])}


def test_the_names_of_an_alert() -> None:
    raw = made.progressing()
    raw["status"]["alerts"] = [made.alert()]
    (alert,) = printed(raw, "status")["alerts"]
    assert set(alert) == {"name", "since", "policy", "learned", "beforeTraffic"}


def test_the_names_of_an_evaluation() -> None:
    found = names(printed(made.evaluating("Fail"), "status"))
    assert found["evaluation"] == {
        *("run", "job", "startedAt", "endedAt", "verdict", "reason", "message", "examples"),
        *("answered", "failures", "measures"),
    }
    assert found["evaluation.measures[]"] == {
        *("name", "bucket", "pairs", "difference", "lower", "upper", "margin", "verdict"),
    }


def test_the_names_of_a_version() -> None:
    fields = json.loads(Stage().run("version", "-o", "json").stdout)
    assert set(fields) == {"clientVersion", "apiVersion", "operatorImage"}


def test_instants_are_rfc_3339_in_utc() -> None:
    fields = printed(made.progressing(), "status")
    assert fields["createdAt"] == made.before(minutes=12)
    assert fields["decisions"][0]["at"] == made.before(minutes=11)


def test_the_documentation_is_what_the_code_says() -> None:
    text = DOCUMENTATION.read_text()
    assert text == reference(), "run: python -m kvquant.cli.reference > docs/cli.md"


def test_every_field_has_a_description() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 90
    assert [row for row in rows if row.rstrip().endswith("|  |")] == []
    assert len(PRINTED) == 9
