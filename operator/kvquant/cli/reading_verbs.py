"""The verbs that only read: status and version."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import click

from kvquant import __version__, errors
from kvquant.api import names
from kvquant.api.fields import Model
from kvquant.cli import rollouts
from kvquant.cli.completing import rollout_names
from kvquant.cli.documents import ListDocument, RolloutDocument, describe
from kvquant.cli.errors import Failure, explain
from kvquant.cli.screen import screen, table
from kvquant.cli.session import OPERATOR_NAMESPACE, Session, Verb, with_session
from kvquant.cli.times import Seconds, stamp
from kvquant.cli.watching import Frame, Log

OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: stable field names, documented in docs/cli.md.",
)


def dump(document: Model, *, compact: bool = False) -> str:
    """Return a document as JSON with its documented names, nulls included."""
    fields = document.model_dump(mode="json", by_alias=True)
    return json.dumps(fields, indent=None if compact else 2, ensure_ascii=False)


@click.command(
    cls=Verb,
    epilog="""
    {program} status                     # every rollout of the namespace, one line each
    {program} status -A                  # of the whole cluster
    {program} status llama-fp8           # one rollout on one screen
    {program} status llama-fp8 --watch   # the same, redrawn in place
    {program} status llama-fp8 -o json | jq .waiting
    """,
)
@click.argument("name", required=False, shell_complete=rollout_names)
@click.option("-A", "--all-namespaces", is_flag=True, help="Rollouts of every namespace.")
@click.option(
    "-w",
    "--watch",
    is_flag=True,
    help="Keep looking until interrupted. Into a pipe: one line (or JSON document) per change.",
)
@click.option(
    "--interval", type=Seconds(), default="1s", show_default=True, help="Time between two looks."
)
@OUTPUT
@with_session
def status(
    session: Session,
    name: str | None,
    all_namespaces: bool,
    watch: bool,
    interval: float,
    output: str,
) -> None:
    """Show where rollouts stand, and why.

    Shows phase, steps and weights, both arms side by side with the three signals, what is being
    waited for, what the answers to copied requests say and of which lengths they say nothing, the
    regime proof of each pod, and the last decisions.
    """
    if name and all_namespaces:
        raise click.UsageError("a NAME belongs to one namespace: leave out -A, or the NAME")
    namespace = "" if all_namespaces else session.namespace
    if watch:
        _watch(session, name, namespace, max(0.1, interval), output)
        return
    found = _look(session, name, namespace)
    if output == "json":
        click.echo(dump(found[0] if name else ListDocument(items=tuple(found))))
        return
    for line in _drawn(session, name, namespace, found, None):
        click.echo(line)


def _look(session: Session, name: str | None, namespace: str) -> list[RolloutDocument]:
    now = session.around.now()
    if name:
        return [describe(rollouts.find(session.cluster, namespace, name), now)]
    return [describe(seen, now) for seen in rollouts.everything(session.cluster, namespace)]


def _drawn(
    session: Session,
    name: str | None,
    namespace: str,
    found: list[RolloutDocument],
    height: int | None,
) -> list[str]:
    paint, now = session.around.paint(), session.around.now()
    # Into a pipe nothing is cut: what reads it may be wider than any terminal.
    width = shutil.get_terminal_size().columns if paint.interactive else 0
    if name:
        return screen(found[0], now, paint, width or 80, height)
    if not found:
        where = f"namespace {namespace}" if namespace else "the cluster"
        return [f"No rollouts in {where}. Every namespace: {session.program} status -A"]
    return table(found, now, paint, width or 1000)


def _watch(
    session: Session, name: str | None, namespace: str, interval: float, output: str
) -> None:
    paint = session.around.paint()
    frame, log = Frame(), Log(paint)
    redraws = paint.interactive and output == "text"
    last: list[RolloutDocument] = []
    said: dict[str, str] = {}
    try:
        # The first look fails like any other command; later ones outlast a restart of the server.
        trouble: str | None = None
        last = _look(session, name, namespace)
        while True:
            if redraws:
                height = shutil.get_terminal_size().lines - (3 if trouble else 1)
                lines = _drawn(session, name, namespace, last, height)
                # On a low terminal, the end of the screen yields to what is wrong with it.
                bad = paint(trouble, "bad") if trouble else ""
                frame.draw([*lines[:height], "", bad] if trouble else lines)
            else:
                _tell(session, last, output, log, said)
                if trouble and trouble != said.get(""):
                    click.echo(f"warning: {trouble}", err=True)
                said[""] = trouble or ""
            session.around.sleep(interval)
            try:
                last, trouble = _look(session, name, namespace), None
            except errors.ClusterError as error:
                trouble = f"Not up to date: {explain(error, session.access.context)}"
    except KeyboardInterrupt:
        return
    finally:
        if redraws:
            frame.close()


def _tell(
    session: Session,
    found: list[RolloutDocument],
    output: str,
    log: Log,
    said: dict[str, str],
) -> None:
    for document in found:
        if output == "text":
            log.tell(document, stamp(session.around.now()))
            continue
        # What only time changes is no change.
        text, key = dump(document, compact=True), f"{document.namespace}/{document.name}"
        timeless = dump(document.model_copy(update={"waiting": None, "warnings": ()}))
        if said.get(key) != timeless:
            said[key] = timeless
            click.echo(text)
            sys.stdout.flush()


class VersionDocument(Model):
    """What `version -o json` prints."""

    client_version: str
    """Version of this program."""
    api_version: str
    """Version of the API that it speaks."""
    operator_image: str | None = None
    """Image that the operator runs; null where it cannot be seen."""


@click.command(
    cls=Verb,
    epilog="""
    {program} version
    {program} version -o json
    """,
)
@click.option(
    "--operator-namespace",
    default=OPERATOR_NAMESPACE,
    show_default=True,
    envvar="KVQUANT_OPERATOR_NAMESPACE",
    help="Namespace of the operator.",
)
@OUTPUT
@with_session
def version(session: Session, operator_namespace: str, output: str) -> None:
    """Show the versions of this program and of the operator."""
    image, why = None, "no Deployment kvquant-operator there"
    try:
        deployment = session.cluster.get("Deployment", operator_namespace, "kvquant-operator")
        if deployment is not None:
            image = _image(deployment)
    except errors.ClusterError as error:
        why = explain(error, session.access.context)
    if output == "json":
        document = VersionDocument(
            client_version=__version__, api_version=names.API_VERSION, operator_image=image
        )
        click.echo(dump(document))
        return
    click.echo(f"client    {__version__}")
    click.echo(f"API       {names.API_VERSION}")
    click.echo(f"operator  {image or f'unknown: {why} (namespace {operator_namespace})'}")


def _image(deployment: dict[str, Any]) -> str | None:
    try:
        return str(deployment["spec"]["template"]["spec"]["containers"][0]["image"])
    except (KeyError, IndexError, TypeError):
        raise Failure("the Deployment kvquant-operator has no container") from None
