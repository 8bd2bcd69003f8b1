"""The kill switch: every request to the baseline, for one rollout or the whole cluster.

This has to work when little else does. So it reads no more of a rollout than it must, and writes
before it looks at what cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable

import click

from kvquant import errors
from kvquant.api import names
from kvquant.cli import rollouts, verbs
from kvquant.cli.asking import ask, follow_up
from kvquant.cli.asking_verbs import asking_options
from kvquant.cli.completing import rollout_names
from kvquant.cli.errors import Failure, explain
from kvquant.cli.session import OPERATOR_NAMESPACE, Session, Verb, with_session
from kvquant.cli.times import stamp
from kvquant.ports import Object

_OPERATOR_NAMESPACE = click.option(
    "--operator-namespace",
    default=OPERATOR_NAMESPACE,
    show_default=True,
    envvar="KVQUANT_OPERATOR_NAMESPACE",
    help="Namespace of the operator, where the switch for the whole cluster lies.",
)
_ALL = click.option("--all", "everywhere", is_flag=True, help="Every rollout of the cluster.")


@click.command(
    cls=Verb,
    epilog="""
    {program} kill llama-fp8 --reason "answers are garbled"
    {program} kill --all --reason "incident 4711"
    """,
)
@click.argument("name", required=False, shell_complete=rollout_names)
@_ALL
@_OPERATOR_NAMESPACE
@asking_options
@with_session
def kill(
    session: Session,
    name: str | None,
    everywhere: bool,
    operator_namespace: str,
    reason: str | None,
    wait: float | None,
) -> None:
    """Send every request to the baseline at once, until unkill.

    The canary's pods stay as they are. Comes before everything else: pauses, holds, a Prometheus
    that is down.
    """
    _one_or_all(name, everywhere, "kill")
    if name is None:
        _kill_all(session, operator_namespace, reason, wait)
        return
    try:
        ask(session, verbs.KILL, name, reason, wait)
    except rollouts.Unreadable:
        _kill_unread(session, name, reason, wait)


@click.command(
    cls=Verb,
    epilog="""
    {program} unkill llama-fp8
    {program} unkill --all
    """,
)
@click.argument("name", required=False, shell_complete=rollout_names)
@_ALL
@_OPERATOR_NAMESPACE
@asking_options
@with_session
def unkill(
    session: Session,
    name: str | None,
    everywhere: bool,
    operator_namespace: str,
    reason: str | None,
    wait: float | None,
) -> None:
    """Lift the kill switch: rollouts start over at their first step."""
    _one_or_all(name, everywhere, "unkill")
    if name is not None:
        ask(session, verbs.UNKILL, name, reason, wait)
        return
    _unkill_all(session, operator_namespace, reason, wait)


def _one_or_all(name: str | None, everywhere: bool, verb: str) -> None:
    if (name is None) == (not everywhere):
        raise click.UsageError(f"say which: `{verb} NAME` for one rollout, or `{verb} --all`")


def _kill_all(
    session: Session, operator_namespace: str, reason: str | None, wait: float | None
) -> None:
    click.echo("Every request of every rollout goes to its baseline, and stays so until unkill.")
    session.cluster.apply(_switch(session, operator_namespace, reason, killed=True))
    follow_up(
        session,
        what="the kill switch of the whole cluster",
        wait=wait,
        look=lambda: _unless_hidden(session, "on", _all_killed),
    )


def _all_killed(session: Session) -> str | None:
    raws = session.cluster.list(names.KIND, "", {})
    promoted: list[Object] = []
    adopting: list[Object] = []
    for raw in raws:
        status = rollouts.status_of(raw)
        if rollouts.is_adopting(status):
            adopting.append(raw)
        elif status.get("phase") == "Promoted" and status.get("settled"):
            promoted.append(raw)
            continue
        if not rollouts.kill_holds(status):
            return None
    count = len(raws) - len(promoted) - len(adopting)
    text = f"{count} rollout{'' if count == 1 else 's'} at the baseline (canary 0 %)"
    for some, what in (
        (adopting, "stay on their promoted pools, which hand nothing over"),
        (promoted, "ended in promotion and have no old pool to go back to"),
    ):
        if some:
            listed = ", ".join(sorted(raw["metadata"]["name"] for raw in some))
            text += f"; {len(some)} more {what}: {listed}"
    return text


def _unkill_all(
    session: Session, operator_namespace: str, reason: str | None, wait: float | None
) -> None:
    found = session.cluster.get("ConfigMap", operator_namespace, names.KILL_SWITCH_CONFIGMAP)
    if found is None or (found.get("data") or {}).get("killed") != "true":
        click.echo(
            f"The kill switch of the whole cluster is not on (namespace {operator_namespace}); "
            "nothing to do"
        )
        return
    click.echo("Rollouts may take traffic again: their steps start over from the first.")
    session.cluster.apply(_switch(session, operator_namespace, reason, killed=False))
    follow_up(
        session,
        what="unkill of the whole cluster",
        wait=wait,
        look=lambda: _unless_hidden(session, "off", _all_unkilled),
    )


def _unless_hidden(
    session: Session, state: str, look: Callable[[Session], str | None]
) -> str | None:
    """Look at every rollout. Who may not must still hear that the switch itself was thrown.

    Raises:
        Failure: The rollouts of the cluster may not be listed.
    """
    try:
        return look(session)
    except errors.Refused as error:
        raise Failure(
            f"the kill switch of the whole cluster is {state}, and the operator acts on it; only "
            f"whether every rollout has followed is not seen: {explain(error)}"
        ) from error


def _all_unkilled(session: Session) -> str | None:
    """Tell when no rollout is held by the cluster's switch any more; some have one of their own."""
    own = []
    for raw in session.cluster.list(names.KIND, "", {}):
        if not rollouts.obeys_kill(rollouts.status_of(raw)):
            continue
        asked = (raw["metadata"].get("annotations") or {}).get(names.ANNOTATION_KILLED, "false")
        if asked.strip().lower() in ("", "false"):
            return None
        own.append(raw["metadata"]["name"])
    if not own:
        return "no rollout is killed"
    return f"lifted; still killed by switches of their own: {', '.join(sorted(own))}"


def _kill_unread(session: Session, name: str, reason: str | None, wait: float | None) -> None:
    """Kill a rollout whose other fields this version cannot read."""

    def killed() -> str | None:
        status = rollouts.status_of(rollouts.find_raw(session.cluster, session.namespace, name))
        if not rollouts.kill_holds(status):
            return None
        if rollouts.is_adopting(status):
            return "every request goes to the promoted pool, and nothing is handed over"
        return "every request goes to the baseline (canary 0 %)"

    click.echo(f"{session.namespace}/{name} sends every request to the baseline at once.")
    annotations = {names.ANNOTATION_KILLED: session.signed(reason)}
    session.cluster.patch(
        names.KIND, session.namespace, name, {"metadata": {"annotations": annotations}}
    )
    follow_up(session, f"{session.namespace}/{name}: kill", wait, killed)


def _switch(session: Session, namespace: str, reason: str | None, *, killed: bool) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.KILL_SWITCH_CONFIGMAP,
            "namespace": namespace,
            "labels": {names.LABEL_KILL_SWITCH: "true"},
        },
        "data": {
            "killed": "true" if killed else "false",
            "reason": reason or "",
            "by": session.around.user(),
            "at": stamp(session.around.now()),
        },
    }
