"""Write what was asked, and wait until the status shows that the operator has taken it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from kvquant import errors
from kvquant.api import names
from kvquant.cli import rollouts, verbs
from kvquant.cli.errors import Failure, explain
from kvquant.cli.paint import tame
from kvquant.cli.rollouts import Seen
from kvquant.cli.session import Session

POLL = 0.25
"""Seconds between two looks while waiting: the operator answers within one, as a rule."""

ATTEMPTS = 8
"""Times that a write is tried again because the operator wrote first."""

T = TypeVar("T")


def ask(
    session: Session, verb: verbs.Verb, name: str, reason: str | None, wait: float | None
) -> None:
    """Ask one thing of a rollout.

    Args:
        session: The call.
        verb: What is asked.
        name: Name of the rollout.
        reason: Why, in the user's words.
        wait: Seconds to wait until the operator has taken it up; None does not wait.

    Raises:
        Failure: It cannot apply now, or was not taken up in time.
        errors.ClusterError: The API server did not do what was asked.
    """
    seen = rollouts.find(session.cluster, session.namespace, name)
    refuse(session, verb, seen)
    moot = verb.moot(seen)
    if moot is not None:
        click.echo(f"{seen.namespace}/{name} is {tame(moot)}; nothing to do")
        return
    click.echo(f"{seen.namespace}/{name} {verb.promise(seen)}.")
    token = _write(session, verb, seen, reason)
    follow_up(
        session,
        what=f"{seen.namespace}/{name}: {verb.name}",
        wait=wait,
        look=lambda: _taken_up(session, verb, name, token),
        withdraw=_withdrawal(session, verb, name),
    )


def follow_up(
    session: Session,
    what: str,
    wait: float | None,
    look: Callable[[], str | None],
    withdraw: str | None = None,
) -> None:
    """Wait until what was asked has been taken up, and say how long it took.

    Args:
        session: The call.
        what: What was asked of what, for people.
        wait: Seconds to wait; None does not wait.
        look: Returns what came of it, or None while nothing has.
        withdraw: How to take the request back, if that takes more than the opposite verb.

    Raises:
        Failure: It was not taken up in time.
    """
    if wait is None:
        click.echo("Asked; not waiting for the operator (--no-wait).")
        return
    begun, trouble, told = session.around.monotonic(), None, False
    while True:
        try:
            outcome, trouble = look(), None
        except errors.Unavailable as error:
            # The request is written already; a hiccup while waiting is no failure of it.
            outcome, trouble = None, explain(error, session.access.context)
        took = session.around.monotonic() - begun
        if outcome is not None:
            click.echo(f"Done after {took:.1f} s: {outcome}.")
            return
        if took >= wait:
            break
        if took >= 2 and not told:
            click.echo(f"Waiting up to {wait:g} s until the operator takes it up ...", err=True)
            told = True
        session.around.sleep(min(POLL, wait - took))
    because = trouble or (
        "the request stays, and is carried out once the operator looks. See whether it runs: "
        "kubectl get pods -A -l app.kubernetes.io/name=kvquant-operator"
    )
    raise Failure(
        f"{what} was asked and not taken up within {wait:g} s: {because}"
        + (f". To take the request back: {withdraw}" if withdraw else "")
    )


def refuse(session: Session, verb: verbs.Verb, seen: Seen) -> None:
    """Raise when the verb cannot apply now; the message names the verb that can.

    Raises:
        Failure: It cannot.
    """
    refusal = verb.refusal(seen)
    if refusal is None:
        return
    text = f"{seen.namespace}/{seen.name}: cannot {verb.name}, because {refusal.why}"
    if refusal.instead:
        text += f". Use: {session.command(refusal.instead, seen.name, seen.namespace)}"
    raise Failure(text)


def _write(session: Session, verb: verbs.Verb, seen: Seen, reason: str | None) -> str | None:
    """Write the annotation; return its value.

    A one-shot request carries the version of the rollout that was read, because it is meant for
    the state that its author has seen: a promote for step 2 must not hit step 3.
    """
    step = seen.status.step, seen.status.phase
    for _ in range(ATTEMPTS):
        value = session.signed(reason, exact=verb.once) if verb.sets else None
        metadata: dict[str, object] = {"annotations": {verb.annotation: value}}
        if verb.once:
            metadata["resourceVersion"] = seen.resource_version
        try:
            session.cluster.patch(names.KIND, seen.namespace, seen.name, {"metadata": metadata})
        except errors.Conflict:
            seen = rollouts.find(session.cluster, seen.namespace, seen.name)
            refuse(session, verb, seen)
            if verb is verbs.PROMOTE and (seen.status.step, seen.status.phase) != step:
                raise Failure(
                    f"{seen.namespace}/{seen.name} moved on by itself meanwhile (step "
                    f"{seen.status.step_label}); nothing was asked"
                ) from None
            continue
        return value
    raise Failure(
        f"{seen.namespace}/{seen.name} is written to so often that the request found no gap; try "
        "again"
    )


def _taken_up(session: Session, verb: verbs.Verb, name: str, token: str | None) -> str | None:
    seen = rollouts.find(session.cluster, session.namespace, name)
    if verb.done(seen, token):
        return verb.outcome(seen)
    if verb is verbs.UNKILL and not seen.asked(names.ANNOTATION_KILLED):
        _refuse_under_cluster_kill(session, seen)
    if verb.once and (overtaken := verb.refusal(seen)) is not None:
        raise Failure(f"{seen.namespace}/{name}: {verb.name} came too late: {overtaken.why}")
    return None


def _refuse_under_cluster_kill(session: Session, seen: Seen) -> None:
    """Say at once when something else holds the kill switch.

    Raises:
        Failure: The switch for the whole cluster is on.
    """
    condition = seen.status.condition("Killed")
    told = condition.message if condition else ""
    if told.startswith("whole cluster"):
        raise Failure(
            f"{seen.namespace}/{seen.name} stays killed, by the {told}. Its own switch is lifted; "
            f"for the other one: {session.program} unkill --all"
        )


def _withdrawal(session: Session, verb: verbs.Verb, name: str) -> str | None:
    if not verb.once:
        return None
    return f"kubectl -n {session.namespace} annotate kvqr {name} {verb.annotation}-"
