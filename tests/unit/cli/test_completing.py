"""Completion: in the shells themselves where they are there, and for kubectl."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvquant.cli import completing
from kvquant.cli.completing import SHELLS, for_kubectl
from kvquant.cli.program import kvquant
from kvquant.cli.session import Connected
from tests.fakes.cluster import FakeCluster
from tests.site import NAMESPACE, rollout


@pytest.fixture
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = FakeCluster()
    for name in ("llama-fp8", "llama-int8", "mistral"):
        cluster.put(rollout(name))

    def connect(_: object) -> Connected:
        return Connected(cluster, NAMESPACE, None, None)  # type: ignore[arg-type]

    monkeypatch.setattr(completing, "connect", connect)


def test_kubectl_gets_verbs_options_and_nothing_but_them() -> None:
    verb, end = for_kubectl(kvquant, ["unk"])
    assert verb.startswith("unkill\t")
    assert end == ":4"
    options = for_kubectl(kvquant, ["status", "--all"])
    assert [line.partition("\t")[0] for line in options] == ["--all-namespaces", ":4"]
    assert for_kubectl(kvquant, [])[-1] == ":4"


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("verb", ["status", "explain", "pause", "abort", "kill", "report"])
def test_names_of_rollouts_are_offered(verb: str) -> None:
    lines = for_kubectl(kvquant, [verb, "llama"])
    assert [line.partition("\t")[0] for line in lines] == ["llama-fp8", "llama-int8", ":4"]
    assert for_kubectl(kvquant, [verb, "-n", "elsewhere", "llama"]) == [":4"]


def test_a_cluster_that_cannot_be_asked_is_no_news_while_somebody_types(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nowhere"))
    assert for_kubectl(kvquant, ["explain", ""]) == [":4"]
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_files_are_left_to_the_shell() -> None:
    assert for_kubectl(kvquant, ["status", "--kubeconfig", ""]) == [":0"]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_is_told_how(shell: str) -> None:
    told = CliRunner().invoke(kvquant, ["completion", shell])
    assert told.exit_code == 0
    assert "_KVQUANT_COMPLETE" in told.output
    refused = CliRunner().invoke(kvquant, ["completion", "tcsh"])
    assert refused.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in refused.output


def test_bash_completes_a_verb(tmp_path: Path) -> None:
    program = tmp_path / "kvquant"
    program.write_text(
        f"#!{sys.executable}\nfrom kvquant.cli.program import kvquant\n"
        "kvquant.main(prog_name='kvquant')\n"
    )
    program.chmod(0o755)
    script = (
        f"PATH={tmp_path}:$PATH\n"
        "source <(kvquant completion bash)\n"
        'COMP_WORDS=(kvquant unk) COMP_CWORD=1\n_kvquant_completion kvquant\necho "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["unkill"], done.stderr
