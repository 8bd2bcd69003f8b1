"""The program: its verbs in the order in which one needs them."""

from __future__ import annotations

import click

from kvquant import __version__
from kvquant.cli import asking_verbs, kill_switch, reading_verbs
from kvquant.cli.backtest.verb import backtest
from kvquant.cli.completing import completion
from kvquant.cli.dataset.verb import dataset
from kvquant.cli.evaluation.verb import evaluate
from kvquant.cli.explain import explain
from kvquant.cli.report.verb import report


class Verbs(click.Group):
    """A group that lists its verbs as they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the verbs as they were added: those that read first, emergencies together."""
        return list(self.commands)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="kvquant")
def kvquant() -> None:
    """See and steer rollouts of a quantized KV cache.

    A KVQuantRollout moves the traffic of an LLM pool step by step to a canary with a quantized
    cache, and goes back by itself when the canary does harm. These verbs show it and step in.

    Exit status: 0 done; 1 refused, not found or not taken up in time; 2 wrong usage.
    """


for _command in (
    reading_verbs.status,
    explain,
    asking_verbs.pause,
    asking_verbs.resume,
    asking_verbs.promote,
    asking_verbs.abort,
    asking_verbs.retry,
    kill_switch.kill,
    kill_switch.unkill,
    report,
    backtest,
    dataset,
    evaluate,
    completion,
    reading_verbs.version,
):
    kvquant.add_command(_command)
