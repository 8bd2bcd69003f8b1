"""What the process says of its mistakes, and what it does not."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kvquant.shadow.discreet import DiscreetFormatter, described, loop_said


def record(name: str, message: str, *, error: BaseException | None = None) -> logging.LogRecord:
    raised = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord(name, logging.ERROR, "x.py", 1, message, None, raised)


def fail() -> None:
    try:
        int("PLANTED")
    except ValueError as error:
        raise RuntimeError("PLANTED") from error


def raised() -> BaseException:
    with pytest.raises(RuntimeError) as caught:
        fail()
    return caught.value


def test_our_own_words_are_said() -> None:
    said = DiscreetFormatter().format(record("kvquant.shadow.service", "replays go on"))
    assert said.endswith("ERROR kvquant.shadow.service: replays go on")


def test_of_an_exception_only_the_kinds_are_said() -> None:
    said = DiscreetFormatter().format(record("kvquant.shadow.x", "it failed", error=raised()))
    assert "RuntimeError from ValueError" in said
    assert "PLANTED" not in said
    assert "PLANTED" not in described(raised())


@pytest.mark.parametrize("name", ["aiohttp.server", "asyncio", "py.warnings", "kvquantum"])
def test_the_words_of_others_are_not_said(name: str) -> None:
    said = DiscreetFormatter().format(record(name, "PLANTED", error=raised()))
    assert name in said
    assert "PLANTED" not in said


def test_complaints_of_the_loop_tell_only_kinds(caplog: Any) -> None:
    loop_said(None, {"message": "PLANTED", "exception": raised()})  # type: ignore[arg-type]
    assert "RuntimeError" in caplog.text
    assert "PLANTED" not in caplog.text


def test_an_exception_that_is_its_own_cause_is_described() -> None:
    error = ValueError()
    error.__cause__ = error
    assert described(error).startswith("ValueError at")
    assert described(None) == " at nowhere"
