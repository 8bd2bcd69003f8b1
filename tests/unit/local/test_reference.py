"""docs/reference says what the code says."""

from __future__ import annotations

import re

from kvlocal import reference
from tests.conftest import REPOSITORY


def test_the_pages_are_what_the_code_makes() -> None:
    for name, text in reference.pages().items():
        assert (reference.FOLDER / name).read_text() == text, f"{name}: run make reference"


def test_every_reason_of_the_failure_modes_is_one_of_the_code() -> None:
    text = (REPOSITORY / "docs" / "failure-modes.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    named = {reason for row in rows for reason in re.findall(r"`([A-Z]\w+)`", row[3])}
    known = reference.told()
    assert len(named) > 40
    assert {reason for reason in named if reason not in known} == set()


def test_what_every_rollout_shows_is_there() -> None:
    known = reference.told()
    for reason in ("Promoted", "RolledBack", "AnalysisFailed", "RouteConflict", "Adopted"):
        assert reason in known, reason
