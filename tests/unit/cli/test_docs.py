"""Every command line of ours in the documentation is one that the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kvquant.cli.program import kvquant
from tests.conftest import REPOSITORY

PAGES = sorted({*(REPOSITORY / "docs").rglob("*.md"), REPOSITORY / "README.md"})
GENERATED = {REPOSITORY / "docs" / "cli.md"}
CALLED = re.compile(r"^\s*(?:kubectl kvquant|kubectl-kvquant|kvquant) (?=[a-z])")


def command_lines(page: Path) -> Iterator[tuple[str, bool]]:
    """Yield calls in blocks of shell, which are whole, and in sentences, which need not be."""
    text = page.read_text()
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if CALLED.match(line):
                yield line.strip(), True
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for inline in re.findall(r"`([^`]+)`", prose):
        if CALLED.match(inline) and "..." not in inline and "[" not in inline:
            yield " ".join(inline.split()), False


@pytest.mark.parametrize(
    ("page", "line", "whole"),
    [
        (page.name, *found)
        for page in PAGES
        if page not in GENERATED
        for found in dict.fromkeys(command_lines(page))
    ],
)
def test_a_command_line_in_the_docs_is_taken(page: str, line: str, whole: bool) -> None:
    words = shlex.split(line.partition("|")[0].partition(" > ")[0], comments=True)
    words = words[2:] if words[0] == "kubectl" else words[1:]
    command: click.Command = kvquant
    # A command remembers the options of its help from the first context that it is given.
    parent = kvquant.make_context("kvquant", [], resilient_parsing=True)
    while isinstance(command, click.Group):
        name, *words = words
        assert name in command.commands, f"{page} calls {name!r}"
        command = command.commands[name]
        if isinstance(command, click.Group) and not words:
            return
    if "--help" in words:
        return
    try:
        command.make_context(name, words, parent=parent)
    except click.MissingParameter:
        assert not whole, line
