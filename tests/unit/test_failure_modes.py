"""Every row of docs/failure-modes.md names a test that exists."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY

NAMED = re.compile(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`")


def test_every_test_that_a_row_names_exists() -> None:
    text = (REPOSITORY / "docs" / "failure-modes.md").read_text()
    missing, file, found = [], "", 0
    for match in NAMED.finditer(text):
        # A name without a file belongs to the file before it.
        file = match[1] or file
        path = REPOSITORY / file
        found += 1
        if not path.is_file() or (match[2] and f"def {match[2]}(" not in path.read_text()):
            missing.append(match[0])
    assert missing == []
    assert found > 40
