"""What the image is built from is there, and is what the tests ran with."""

from __future__ import annotations

import ast
import os
import re
import sys

from tests.engine_sim.running import IMAGE, REPOSITORY

DISTRIBUTIONS = {"aiohttp": "aiohttp", "prometheus_client": "prometheus-client"}


def pins(path: str) -> dict[str, str]:
    text = (REPOSITORY / path).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def test_everything_the_dockerfile_copies_exists() -> None:
    text = (IMAGE / "Dockerfile").read_text()
    sources = re.findall(r"^COPY (images/\S+) ", text, re.MULTILINE)
    assert len(sources) == 4
    assert all((REPOSITORY / source).exists() for source in sources)


def test_the_command_is_executable() -> None:
    assert os.access(IMAGE / "bin" / "vllm", os.X_OK)


def test_the_lock_holds_the_versions_that_the_tests_run_with() -> None:
    locked, tested = pins("images/engine-sim/requirements.lock"), pins("requirements-dev.lock")
    assert locked
    assert locked == {name: tested[name] for name in locked}


def test_the_lock_holds_all_that_is_imported() -> None:
    imported = set()
    for path in (IMAGE / "engine_sim").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    foreign = imported - sys.stdlib_module_names
    assert foreign == set(DISTRIBUTIONS)
    assert {DISTRIBUTIONS[name] for name in foreign} <= set(
        pins("images/engine-sim/requirements.lock")
    )
