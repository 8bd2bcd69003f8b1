"""Completion in the shell: of the verbs, of their options, and of the names of rollouts."""

from __future__ import annotations

import re
import sys

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from kvquant import errors
from kvquant.api import names
from kvquant.cli.errors import Failure
from kvquant.cli.session import Access, Verb, connect

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_KVQUANT_COMPLETE"
PATIENCE = 2.0
"""Seconds to wait for a cluster: nobody presses Tab to wait."""

NO_FILES = ":4"
"""kubectl's word for: these are all, and files are none of them."""


def rollout_names(
    context: click.Context, _: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of the namespace's rollouts; none where the cluster cannot be asked."""
    given = context.params
    access = Access(given.get("kubeconfig"), given.get("context"), PATIENCE)
    try:
        connected = connect(access)
        namespace = given.get("namespace") or connected.namespace
        found = connected.cluster.list(names.KIND, namespace, {})
    except (errors.KVQuantError, Failure, OSError):
        # A message would end up in the middle of what somebody types.
        return []
    return [
        CompletionItem(name, help=str(obj.get("status", {}).get("phase") or ""))
        for obj in found
        if (name := str(obj["metadata"]["name"])).startswith(incomplete)
    ]


@click.command(
    cls=Verb,
    epilog="""
    {program} completion bash    # write it into a file, and source that in ~/.bashrc
    {program} completion zsh     # likewise, in ~/.zshrc
    {program} completion fish    # into ~/.config/fish/completions/kvquant.fish
    """,
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what completes verbs, options and names of rollouts in a shell.

    That is for `kvquant`. `kubectl kvquant` is completed by kubectl's own completion, which asks
    the program `kubectl_complete-kvquant`; it is installed along with this one.
    """
    class_ = get_completion_class(shell)
    assert class_ is not None  # noqa: S101 - click brings all three
    click.echo(class_(context.find_root().command, {}, "kvquant", VARIABLE).source())


def for_kubectl(program: click.Command, words: list[str]) -> list[str]:
    """Return candidates as kubectl wants them: a line each, with a tab before its explanation.

    Args:
        program: The program.
        words: The words of the line after `kubectl kvquant`; the last one is not complete.
    """
    *before, incomplete = words or [""]
    found = ShellComplete(program, {}, "kvquant", VARIABLE).get_completions(before, incomplete)
    lines = []
    for item in found:
        if item.type != "plain":
            return [":0"]
        told = re.sub(r"\s+", " ", item.help or "")
        lines.append(f"{item.value}\t{told}" if told else str(item.value))
    return [*lines, NO_FILES]


def main() -> None:
    """Complete for kubectl, as the program `kubectl_complete-kvquant`."""
    from kvquant.cli.program import kvquant

    for line in for_kubectl(kvquant, sys.argv[1:]):
        click.echo(line)
