"""`status --watch`: a screen that is redrawn, or lines for whoever reads a pipe."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest

from kvquant.cli.paint import Paint
from kvquant.cli.watching import BEGIN, END, HIDE, SHOW, Frame
from kvquant.errors import Unavailable
from tests.fakes.cluster import Fault
from tests.unit.cli import made
from tests.unit.cli.stage import Stage

SCREEN = Paint(colour=False, unicode=True, interactive=True)


def steps_on(raw: dict[str, Any]) -> None:
    raw["status"].update(step=3, stepLabel="3/4", weights={"baseline": 50, "canary": 50})


# What goes wrong.


def test_a_wrong_name_ends_it_before_anything_is_drawn() -> None:
    stage = Stage(paint=SCREEN, breaks_after=5)
    result = stage.run("status", "nobody", "--watch")
    assert result.exit_code == 1
    assert "no rollout 'nobody'" in result.stderr
    assert stage.waited == 0
    assert BEGIN not in result.stdout


def test_an_interrupt_ends_it_in_order_and_gives_the_cursor_back() -> None:
    stage = Stage(paint=SCREEN, breaks_after=3)
    stage.put(made.progressing())
    result = stage.run("status", "llama-fp8", "--watch")
    assert result.exit_code == 0
    assert result.stdout.count(BEGIN) == 3
    assert result.stdout.endswith(SHOW)
    assert "Aborted" not in result.output


def test_a_server_that_restarts_is_outlasted_and_told() -> None:
    stage = Stage(paint=SCREEN, breaks_after=4)
    stage.put(made.progressing())
    stage.cluster.faults.append(Fault(Unavailable("restarting (HTTP 503)"), skip=1, times=1))
    result = stage.run("status", "llama-fp8", "--watch")
    assert result.exit_code == 0
    frames = result.stdout.split(BEGIN)[1:]
    assert ["Not up to date" in frame for frame in frames] == [False, True, False, False]
    assert "25 % canary" in frames[1]


def test_into_a_pipe_trouble_goes_to_stderr_once() -> None:
    stage = Stage(breaks_after=6)
    stage.put(made.progressing())
    stage.cluster.faults.append(Fault(Unavailable("restarting (HTTP 503)"), skip=1, times=3))
    result = stage.run("status", "llama-fp8", "--watch")
    assert result.stderr.count("Not up to date") == 1
    assert len(result.stdout.splitlines()) == 1


def test_a_rollout_that_is_deleted_meanwhile_ends_it_with_a_sentence() -> None:
    stage = Stage(paint=SCREEN, breaks_after=9)
    stage.put(made.progressing())
    real = stage.cluster.get

    def get(kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if stage.waited > 3:
            stage.cluster.vanish(kind, namespace, name)
        return real(kind, namespace, name)

    stage.cluster.get = get  # type: ignore[method-assign]
    result = stage.run("status", "llama-fp8", "--watch")
    assert result.exit_code == 1
    assert "no rollout 'llama-fp8'" in result.stderr
    assert result.stdout.endswith(SHOW)


# What goes well.


def test_into_a_pipe_there_is_a_line_for_each_change_and_none_without() -> None:
    stage = Stage(breaks_after=8)
    stage.put(made.progressing())
    stage.operator = lambda raw: steps_on(raw) if stage.waited > 3 else None
    lines = stage.run("status", "llama-fp8", "--watch").stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("2026-11-24T14:00:00Z inference/llama-fp8 Progressing step 2/4")
    assert "step 3/4 canary 50 %" in lines[1]


def test_into_a_pipe_json_is_one_document_a_line_for_each_change() -> None:
    stage = Stage(breaks_after=8)
    stage.put(made.progressing(), made.progressing("qwen"))

    def moves(raw: dict[str, Any]) -> None:
        if stage.waited > 3 and raw["metadata"]["name"] == "qwen":
            steps_on(raw)

    stage.operator = moves
    lines = stage.run("status", "--watch", "-o", "json").stdout.splitlines()
    told = [(json.loads(line)["name"], json.loads(line)["step"]) for line in lines]
    assert told == [("llama-fp8", 2), ("qwen", 2), ("qwen", 3)]


def test_the_interval_is_kept_and_has_a_floor() -> None:
    stage = Stage(breaks_after=60)
    stage.put(made.progressing())
    stage.run("status", "llama-fp8", "--watch", "--interval", "30s")
    assert sum(call.verb == "get" for call in stage.cluster.calls) == 2
    hasty = Stage(breaks_after=1)
    hasty.put(made.progressing())
    hasty.run("status", "llama-fp8", "--watch", "--interval", "0")
    assert sum(call.verb == "get" for call in hasty.cluster.calls) <= 11


def test_a_length_of_time_that_is_none_is_wrong_usage() -> None:
    result = Stage().run("status", "llama-fp8", "--watch", "--interval", "soon")
    assert result.exit_code == 2
    assert "write it like 30s, 2m or 1m30s" in result.stderr


# The frame, on a terminal that is emulated: its lines and where its cursor stands.


def emulate(written: str, height: int) -> list[str]:
    """Return what a terminal shows after this was written to it."""
    rows, row = [""] * height, 0
    text = written
    for mark in (BEGIN, END, HIDE, SHOW):
        text = text.replace(mark, "")
    while text:
        if text.startswith("\x1b["):
            end = next(i for i, c in enumerate(text) if c.isalpha())
            code, count = text[end], int(text[2:end] or 1)
            if code == "A":
                row = max(0, row - count)
            elif code == "J":
                rows[row:] = [""] * (height - row)
            else:
                assert code == "K"
            text = text[end + 1 :]
        elif text[0] == "\r":
            rows[row] = ""
            text = text[1:]
        elif text[0] == "\n":
            row += 1
            assert row < height, "the screen scrolled"
            text = text[1:]
        else:
            rows[row] += text[0]
            text = text[1:]
    return rows


@pytest.mark.parametrize(
    "frames",
    [
        (["one", "two"], ["three", "four"]),
        (["one", "two", "three"], ["only"]),
        (["only"], ["one", "two", "three"]),
        (["x"] * 40, ["y"] * 40, ["z"]),
        (["w" * 200], ["short"]),
    ],
)
def test_a_frame_replaces_the_one_before_and_never_scrolls(frames: tuple[list[str], ...]) -> None:
    stream = io.StringIO()
    frame = Frame(stream, size=lambda: os.terminal_size((20, 10)))
    for lines in frames:
        frame.draw(lines)
    rows = emulate(stream.getvalue(), 10)
    expected = [line[:20] for line in frames[-1][:9]]
    assert rows == expected + [""] * (10 - len(expected))


def test_a_closed_stream_does_not_hide_why_it_ended() -> None:
    stream = io.StringIO()
    frame = Frame(stream)
    stream.close()
    frame.close()
