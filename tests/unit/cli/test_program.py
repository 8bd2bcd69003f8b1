"""The program as a whole: help that teaches, versions, and how it finds a cluster."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from kvquant import __version__
from kvquant.cli.program import kvquant
from kvquant.errors import Refused
from tests.fakes.cluster import Fault
from tests.unit.cli import made
from tests.unit.cli.stage import Stage

VERBS = [*kvquant.commands]


def really(*arguments: str, **environment: str) -> Result:
    """Run the program with the real way to connect."""
    clean = {"KUBECONFIG": None, "KUBERNETES_SERVICE_HOST": None, **environment}
    return CliRunner(env=clean).invoke(kvquant, arguments, prog_name="kvquant")


def config(path: Path, server: str, **context: str) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "secret-token"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", **context}}],
    }
    path.write_text(yaml.safe_dump(document))
    return str(path)


# How it finds a cluster, and fails to.


def test_without_a_kubeconfig_it_says_where_it_looked(tmp_path: Path) -> None:
    result = really("status", HOME=str(tmp_path), KUBECONFIG=str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "the kubeconfig $KUBECONFIG or ~/.kube/config cannot be used" in result.stderr
    assert "Traceback" not in result.output


def test_a_named_kubeconfig_that_is_not_there_is_wrong_usage() -> None:
    result = really("status", "--kubeconfig", "/nowhere/config")
    assert result.exit_code == 2
    assert "/nowhere/config: there is no such file" in result.stderr


@pytest.mark.parametrize("text", ["{", "- 1\n", "contexts: 7\n", ""])
def test_a_broken_kubeconfig_is_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    result = really("status", "--kubeconfig", str(path))
    assert result.exit_code == 1
    assert str(path) in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_an_unknown_context_is_a_sentence(tmp_path: Path) -> None:
    path = config(tmp_path / "config", "https://127.0.0.1:1")
    result = really("status", "--kubeconfig", path, "--context", "elsewhere")
    assert result.exit_code == 1
    assert "elsewhere" in result.stderr
    assert "kubectl config get-contexts" in result.stderr


def test_a_server_that_is_down_is_named_with_its_address_and_never_a_secret(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = config(tmp_path / "config", f"https://127.0.0.1:{port}")
    result = really("status", "--kubeconfig", path)
    assert result.exit_code == 1
    assert f"no answer from the API server at 127.0.0.1:{port}: " in result.stderr
    assert "refused" in result.stderr
    assert "secret-token" not in result.output


def test_a_server_that_never_answers_is_not_waited_for_longer_than_asked(tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        path = config(tmp_path / "config", f"http://127.0.0.1:{mute.getsockname()[1]}")
        result = really("status", "--kubeconfig", path, "--request-timeout", "200ms")
    assert result.exit_code == 1
    assert "timed out" in result.stderr


def test_namespace_context_and_kubeconfig_reach_the_connection(tmp_path: Path) -> None:
    path = config(tmp_path / "config", "https://127.0.0.1:1")
    stage = Stage(namespace="of-the-context")
    stage.put(made.progressing(namespace="of-the-context"), made.progressing("b", "chat"))
    shared = ("--kubeconfig", path, "--context", "here", "--request-timeout", "3s")
    assert "llama-fp8" in stage.run("status", *shared).stdout
    access = stage.accesses[0]
    assert (access.kubeconfig, access.context, access.timeout) == (path, "here", 3.0)
    assert stage.run("status", "b", "-n", "chat").exit_code == 0


# Versions.


def test_versions_of_both_sides() -> None:
    stage = Stage()
    stage.put(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "kvquant-operator", "namespace": "kvquant-system"},
            "spec": {"template": {"spec": {"containers": [{"image": "r.example/operator:9"}]}}},
        }
    )
    text = stage.run("version").stdout
    assert __version__ in text
    assert "kvquant.dev/v1alpha1" in text
    assert "r.example/operator:9" in text
    elsewhere = stage.run("version", "--operator-namespace", "ops", "-o", "json")
    assert json.loads(elsewhere.stdout)["operatorImage"] is None


def test_a_version_that_may_not_be_seen_is_unknown_and_says_why() -> None:
    denial = (
        'deployments.apps "kvquant-operator" is forbidden: User "alice" cannot get resource '
        '"deployments" in API group "apps" in the namespace "kvquant-system" (HTTP 403)'
    )
    stage = Stage()
    stage.cluster.faults.append(Fault(Refused(denial)))
    result = stage.run("version")
    assert result.exit_code == 0
    assert "unknown" in result.stdout
    assert "Ask for the right to get deployments in namespace kvquant-system" in result.stdout


# Help.


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("program", ["kvquant", "kubectl kvquant"])
def test_the_help_of_every_verb_teaches_by_an_example(verb: str, program: str) -> None:
    text = Stage().run(verb, "--help", program=program).stdout
    examples = text.partition("Examples:\n")[2].splitlines()
    assert examples
    assert all(line.startswith(f"  {program} {verb}") for line in examples)
    assert "{program}" not in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_is_a_command_line_that_the_program_takes(verb: str) -> None:
    for line in Stage().run(verb, "--help").stdout.partition("Examples:\n")[2].splitlines():
        called, *words = shlex.split(line.partition("|")[0], comments=True)
        assert (called, words[0]) == ("kvquant", verb)
        # Raises when an option or an argument is none of the verb's.
        kvquant.commands[verb].make_context(verb, words[1:])


def test_the_verbs_stand_in_the_order_of_need() -> None:
    text = Stage().run("--help").stdout
    places = [text.index(f"\n  {verb} ") for verb in VERBS]
    assert places == sorted(places)
    assert VERBS[0] == "status"
    assert "Exit status" in text


def test_an_unknown_verb_is_wrong_usage() -> None:
    result = Stage().run("stauts")
    assert result.exit_code == 2
    assert "status" in result.stderr


# The process.


def process(*arguments: str, called: str = "kvquant", **more: Any) -> subprocess.Popen[str]:
    code = f"import sys; sys.argv[0] = {called!r}; from kvquant.cli import main; main()"
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root / "operator")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


@pytest.mark.parametrize(
    ("called", "usage"),
    [("/usr/bin/kubectl-kvquant", "Usage: kubectl kvquant"), ("/bin/kvquant", "Usage: kvquant")],
)
def test_it_calls_itself_as_it_was_called(called: str, usage: str) -> None:
    with process("--help", called=called) as child:
        out, _ = child.communicate(timeout=60)
    assert out.startswith(usage)


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with process("status", "--help") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        said = child.stderr.read()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_help_comes_without_the_kubernetes_client() -> None:
    code = (
        "import sys; from kvquant.cli.program import kvquant; "
        "kvquant.main(['status', '--help'], standalone_mode=False); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in ('kubernetes', 'kopf')))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root / "operator")},
        text=True,
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"
