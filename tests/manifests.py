"""The manifests of examples/, for the tests that parse and apply them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[1] / "examples"

FILES = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.yaml"))


def documents(file: str) -> list[dict[str, Any]]:
    """Return the documents of a file of examples/."""
    return [doc for doc in yaml.safe_load_all((EXAMPLES / file).read_text()) if doc]


def of_kind(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """Return every document of a kind with the file that it stands in."""
    return [(file, doc) for file in FILES for doc in documents(file) if doc["kind"] == kind]
