"""The twenty lines of the documentation do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "how-it-decides.md"


def test_the_documented_entry_runs_and_finds_the_slow_canary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    assert re.match(r"after \d+ s: FAIL\. latencyP90: ", capsys.readouterr().out)
