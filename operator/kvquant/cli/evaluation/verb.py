"""The verb `eval`."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvquant.cli import rollouts
from kvquant.cli.completing import rollout_names
from kvquant.cli.errors import Failure
from kvquant.cli.files import write_whole
from kvquant.cli.reading_verbs import OUTPUT, dump
from kvquant.cli.session import Session, Surroundings, Verb, with_cluster
from kvquant.cli.times import Seconds

if TYPE_CHECKING:
    from kvquant.evaluation.document import EvaluationDocument
    from kvquant.evaluation.plan import Plan
    from kvquant.evaluation.results import Result
    from kvquant.shadow.replaying import Replayer

WIDEST = 110
FOREVER = 7 * 24 * 3600.0
"""Seconds that a deadline of 0 stands for."""
BAR_SECONDS = 0.2
PROGRESS_SECONDS = 5.0
"""Between two lines of progress where nobody looks at a terminal."""


@click.command(
    name="eval",
    cls=Verb,
    epilog="""
    {program} eval llama-fp8 --dataset set.jsonl --report eval.html
    {program} eval --dataset set.jsonl --baseline http://localhost:8001 --canary http://localhost:8002
    {program} eval llama-fp8 --dataset set.jsonl -o json | jq -r .outcome
    """,
)
@click.argument("name", required=False, shell_complete=rollout_names)
@click.option(
    "--dataset",
    metavar="FILE",
    required=True,
    help="Example set (docs/evaluation.md): a path, file://, s3:// or gs://.",
)
@click.option(
    "--baseline",
    metavar="URL",
    help="Base URL of the arm that is known to be good, such as that of a `kubectl port-forward`; "
    "or HOST:PORT of a headless Service, whose pods are asked in turn.",
)
@click.option("--canary", metavar="URL", help="The same of the arm in question.")
@click.option(
    "--baseline-model", metavar="NAME", help="Model to ask for there in place of the examples' own."
)
@click.option(
    "--canary-model", metavar="NAME", help="Model to ask for there in place of the examples' own."
)
@click.option(
    "--margin-percent",
    type=click.FloatRange(0.1, 100),
    default=5.0,
    show_default=True,
    help="Harm that is tolerated, in answers per 100 beyond the baseline's.",
)
@click.option(
    "--drift-percent",
    type=click.FloatRange(0.1, 100),
    default=5.0,
    show_default=True,
    help="Drift that is tolerated, in per cent of perplexity.",
)
@click.option(
    "--noise-percent",
    type=click.IntRange(0, 100),
    default=20,
    show_default=True,
    help="Share of the examples that the baseline is asked twice (A/A).",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="Examples under way at a time; each is two or three requests.",
)
@click.option(
    "--ignore-load",
    is_flag=True,
    help="Ask also while the baseline has requests waiting, or its KV cache more than 80 % full.",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(1, 65536),
    default=1024,
    show_default=True,
    help="Longest answer that is asked for where an example does not say.",
)
@click.option(
    "--deadline",
    type=Seconds(),
    default="1h",
    show_default=True,
    help="Longest time for the whole set; what is not asked by then counts as unanswered.",
)
@click.option(
    "--example-deadline",
    type=Seconds(),
    default="5m",
    show_default=True,
    help="Longest wait for the answers to one example.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Of the order of the examples and of the resampling.",
)
@click.option(
    "--report",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="HTML file to write as well. It quotes the examples in which the canary did worst.",
)
@OUTPUT
@with_cluster
@click.pass_context
def evaluate(
    ctx: click.Context,
    connecting: Callable[[], Session],
    *,
    name: str | None,
    dataset: str,
    baseline: str | None,
    canary: str | None,
    baseline_model: str | None,
    canary_model: str | None,
    margin_percent: float,
    drift_percent: float,
    noise_percent: int,
    concurrency: int,
    ignore_load: bool,
    answer_tokens: int,
    deadline: float,
    example_deadline: float,
    seed: int,
    report: Path | None,
    output: str,
) -> None:
    """Ask both arms the examples of a set, and say whether the canary's answers are as good.

    With the NAME of a rollout, its pods are asked through the API server, and no pod but them; else
    name the arms by --baseline and --canary.

    Each example is asked of both at the same time, greedily. What is measured, each with paired
    confidence intervals over all examples, by length and by kind: answers that are missing, broken
    JSON, wrong tool calls, missing and wrong citations, refusals, expected texts, answers cut off,
    and drift. What the examples expect decides; where they expect nothing, the baseline's answer.

    Pass: every measure is within its margin. Fail: one is beyond it for certain, corrected for how
    many there are. Inconclusive: too few examples or answers to tell. The exit status is 0 for all
    three; with -o json, the field `outcome` tells them apart.

    The arms do the work beside their users: while the baseline's metrics say that it has its hands
    full, nothing new is asked. An API key of the engines is read from the file that
    KVQUANT_SHADOW_ENGINE_KEY_FILE names.
    """
    # Imported here, because `--help` and usage errors need none of it.
    from kvquant.cli.evaluation import reaching
    from kvquant.evaluation.arms import ArmError, arm
    from kvquant.evaluation.cells import Margins
    from kvquant.evaluation.examples import DatasetError
    from kvquant.evaluation.fetching import fetch
    from kvquant.evaluation.plan import Plan
    from kvquant.evaluation.running import Pace
    from kvquant.shadow.settings import SettingsError, engine_key

    around = ctx.find_object(Surroundings) or Surroundings()
    given = (baseline, canary)
    if None in given and (name is None or given != (None, None)):
        raise click.UsageError("name a rollout, or both --baseline and --canary", ctx)
    models = (baseline_model, canary_model)
    pace = Pace(
        concurrency=concurrency,
        example_seconds=example_deadline or FOREVER,
        deadline_seconds=deadline or FOREVER,
        noise_percent=noise_percent,
        answer_tokens=answer_tokens,
        seed=seed,
        ignore_load=ignore_load,
    )
    rollout, replayer = name, None
    try:
        if baseline is not None and canary is not None:
            arms = arm("baseline", baseline, models[0]), arm("canary", canary, models[1])
        else:
            session = connecting()
            seen = rollouts.find(session.cluster, session.namespace, name or "")
            rollout = f"{seen.namespace}/{seen.name}"
            arms = reaching.arms(session, seen, models)
            replayer = reaching.ProxiedReplayer(session.proxied, pace.example_seconds)
    except ArmError as error:
        raise click.UsageError(str(error), ctx) from error
    try:
        plan = Plan(
            fetch(dataset),
            *arms,
            pace=pace,
            margins=Margins(margin_percent / 100, drift_percent / 100),
            patience=5.0,
            engine_key=engine_key(around.environment),
            rollout=rollout,
        )
        told = _run(plan, replayer)
    except (DatasetError, ArmError, SettingsError) as error:
        raise Failure(str(error)) from error
    _tell(told, report, output, around)


def _run(plan: Plan, replayer: Replayer | None) -> EvaluationDocument:
    from kvquant.evaluation.evaluating import evaluate as run
    from kvquant.evaluation.reporting import document

    looked_at = sys.stderr.isatty()
    heard = _progress(len(plan.dataset.examples), looked_at)
    told = document(asyncio.run(run(plan, heard, replayer)))
    if looked_at:
        click.echo(err=True)
    return told


def _progress(total: int, looked_at: bool) -> Callable[[Result], None]:
    """Return what tells how far it has come: on one line where somebody looks, else on many."""
    from kvquant.evaluation.progress import Progress

    if not looked_at:
        return Progress(total, lambda line: click.echo(line, err=True), PROGRESS_SECONDS)
    width = shutil.get_terminal_size().columns - 1

    def redraw(line: str) -> None:
        click.echo(f"\r{line[:width]:<{width}}", nl=False, err=True)

    return Progress(total, redraw, BAR_SECONDS)


def _tell(told: EvaluationDocument, report: Path | None, output: str, around: Surroundings) -> None:
    from kvquant.cli.evaluation import words

    if report is not None:
        from kvquant.evaluation.page import html

        write_whole(report, html(told))
    if output == "json":
        click.echo(dump(told))
        return
    paint = around.paint()
    width = shutil.get_terminal_size().columns if paint.interactive else WIDEST
    for line in words.lines(told, paint, max(60, min(width, WIDEST))):
        click.echo(paint.shown(line).rstrip())
    if report is not None:
        click.echo(f"Report: {report.resolve()}")
