"""The verb `report`."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import click

from kvquant.cli import rollouts
from kvquant.cli.completing import rollout_names
from kvquant.cli.files import write_whole
from kvquant.cli.reading_verbs import dump
from kvquant.cli.report import document, render
from kvquant.cli.report.history import History, by_service, by_url
from kvquant.cli.report.judged import Judged, judge
from kvquant.cli.report.measured import measure
from kvquant.cli.session import Session, Verb, with_session
from kvquant.cli.times import Seconds


@click.command(
    cls=Verb,
    epilog="""
    {program} report llama-fp8 --prometheus-service monitoring/prometheus:9090
    {program} report llama-fp8 -o llama.html --prometheus http://localhost:9090
    {program} report llama-fp8 -o json | jq '.steps[].canary.p99Seconds'
    """,
)
@click.argument("name", shell_complete=rollout_names)
@click.option(
    "-o",
    "--output",
    metavar="FILE|json|-",
    help="HTML file to write; `json` prints the numbers instead; `-` prints the HTML. "
    "Default: NAME-report.html.",
)
@click.option(
    "--prometheus",
    metavar="URL",
    envvar="KVQUANT_PROMETHEUS_URL",
    help="Prometheus that this machine reaches. [env: KVQUANT_PROMETHEUS_URL]",
)
@click.option(
    "--prometheus-service",
    metavar="NAMESPACE/SERVICE:PORT",
    envvar="KVQUANT_PROMETHEUS_SERVICE",
    help="Prometheus inside the cluster, reached through the API server with the kubeconfig's "
    "credentials. [env: KVQUANT_PROMETHEUS_SERVICE]",
)
@click.option(
    "--tick",
    type=Seconds(),
    default="15s",
    show_default=True,
    envvar="KVQUANT_TICK_SECONDS",
    help="Time between two looks of the operator, where it was told another one.",
)
@with_session
def report(
    session: Session,
    name: str,
    output: str | None,
    prometheus: str | None,
    prometheus_service: str | None,
    tick: float,
) -> None:
    """Write one self-contained HTML file about the latest attempt.

    Plots of weights, latency, page faults and failures of both arms, and of each signal's effect
    with its bounds as the analysis saw them; the answers to copied requests against what is
    allowed, and their coverage by length; every decision with its numbers; the regime proof; the
    spec. Without Prometheus it holds what the status knows, and says what is missing.
    """
    if tick <= 0:
        raise click.BadParameter("it has to last", param_hint="--tick")
    history = _history(session, prometheus, prometheus_service)
    seen = rollouts.find(session.cluster, session.namespace, name)
    now = session.around.now()
    measured = measure(seen, history, now)
    judged = Judged()
    # When nothing was measured, the same Prometheus has nothing to judge either.
    if history is not None and (measured.baseline or measured.canary):
        judged = judge(seen, history, measured.shown.end, timedelta(seconds=tick))
    for problem in (*measured.problems, *([judged.problem] if judged.problem else [])):
        click.echo(f"warning: {problem}", err=True)
    if output == "json":
        click.echo(dump(document.document(seen, measured, judged, now)))
        return
    text = render.html(seen, measured, judged, now)
    if output == "-":
        sys.stdout.write(text)
        return
    path = Path(output or f"{name}-report.html")
    write_whole(path, text)
    click.echo(f"{document.summary(seen, now)}\nReport: {path.resolve()}")


def _history(session: Session, url: str | None, service: str | None) -> History | None:
    """Return where to ask. What was said on the command line wins over the environment."""
    ctx = click.get_current_context()
    if url and service:
        said = [
            option
            for option in ("prometheus", "prometheus_service")
            if ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE
        ]
        if len(said) != 1:
            raise click.UsageError("name one Prometheus: --prometheus or --prometheus-service")
        url, service = (url, None) if said == ["prometheus"] else (None, service)
    try:
        if url:
            return by_url(url, session.access.timeout or 60.0)
        if service:
            return by_service(service, session.fetch)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return None
