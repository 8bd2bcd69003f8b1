"""The verbs that ask something of one rollout: pause, resume, promote, abort and retry."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from kvquant.cli import verbs
from kvquant.cli.asking import ask
from kvquant.cli.completing import rollout_names
from kvquant.cli.session import Session, Verb, with_session
from kvquant.cli.times import Seconds

LONGEST_REASON = 500


def _one_line(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return a reason on one line, as it is going to stand in annotations, events and reports."""
    if value is None:
        return None
    text = " ".join("".join(c if c.isprintable() else " " for c in value).split())
    if len(text) > LONGEST_REASON:
        raise click.BadParameter(
            f"{len(text)} characters; say it in {LONGEST_REASON} and link to the rest", ctx, param
        )
    return text or None


def asking_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --reason, --timeout and --no-wait; it is called with `reason` and `wait`.

    `wait` is the number of seconds to wait, or None.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, timeout: float, no_wait: bool, **arguments: Any) -> Any:
        return function(*args, wait=None if no_wait else timeout, **arguments)

    for option in (
        click.option("--no-wait", is_flag=True, help="Do not wait until it is taken up."),
        click.option(
            "--timeout",
            type=Seconds(),
            default="30s",
            show_default=True,
            help="Longest wait until the status shows that the operator has taken it up.",
        ),
        click.option(
            "--reason",
            callback=_one_line,
            help="Why, for whoever reads the status, the events or the report later.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def _asking(verb: verbs.Verb, text: str, example: str) -> click.Command:
    @click.command(name=verb.name, cls=Verb, help=text, epilog=example)
    @click.argument("name", shell_complete=rollout_names)
    @asking_options
    @with_session
    def command(session: Session, name: str, reason: str | None, wait: float | None) -> None:
        ask(session, verb, name, reason, wait)

    return command


pause = _asking(
    verbs.PAUSE,
    "Hold a rollout at its step.\n\nTraffic stays as it is. The rollout still rolls back by itself "
    "when a signal fails.",
    """
    {program} pause llama-fp8 --reason "freeze until Monday"
    """,
)

resume = _asking(
    verbs.RESUME,
    "Let a paused rollout go on.",
    """
    {program} resume llama-fp8
    """,
)

promote = _asking(
    verbs.PROMOTE,
    "Go one step on without waiting for more evidence.\n\nFrom the last step, this promotes the "
    "canary. A signal that fails still rolls back, and the regime proof is never skipped.",
    """
    {program} promote llama-fp8 --reason "too little traffic at night"
    """,
)

abort = _asking(
    verbs.ABORT,
    "Roll back now: traffic first, pods after.\n\nWorks until the rollback window of a promoted "
    "rollout closes. The same spec is not tried again until retry.",
    """
    {program} abort llama-fp8 --reason "customers report odd answers"
    """,
)

retry = _asking(
    verbs.RETRY,
    "Try a rolled-back rollout once more.\n\nThe same spec begins a new attempt at the first step.",
    """
    {program} retry llama-int8 --reason "driver was updated"
    """,
)
