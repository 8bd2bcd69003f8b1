"""kubectl, as a user has it, against the tests' API server."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvquant.adapters.connection import Connection


@dataclass(frozen=True)
class Kubectl:
    """Runs kubectl as administrator."""

    command: tuple[str, ...]
    kubeconfig: Path
    cache: Path

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run kubectl and return what it said; a failure is for the caller to judge."""
        return subprocess.run(
            [
                *self.command,
                f"--kubeconfig={self.kubeconfig}",
                f"--cache-dir={self.cache}",
                *arguments,
            ],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl, which must succeed, and return its output."""
        done = self(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def kubectl(
    kubeconfig: Path, connection: Connection, tmp_path_factory: pytest.TempPathFactory
) -> Kubectl:
    """kubectl: KVQUANT_TEST_KUBECTL names one; else it is the one in the control plane's binary."""
    given = os.environ.get("KVQUANT_TEST_KUBECTL")
    if given:
        command = tuple(given.split())
    else:
        from kvlocal.apiserver import kubectl_command

        command = kubectl_command()
    return Kubectl(command, kubeconfig, tmp_path_factory.mktemp("kubectl-cache"))


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    kubectl.ok("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
