"""The verb `backtest`."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
import yaml
from pydantic import ValidationError

from kvquant.api.v1alpha1 import AnalysisSettings, KVQuantRollout
from kvquant.cli.backtest import own_signals, words
from kvquant.cli.backtest.running import Asked, Progress, run
from kvquant.cli.errors import Failure
from kvquant.cli.reading_verbs import OUTPUT, dump
from kvquant.cli.session import Surroundings, Verb
from kvquant.cli.times import Seconds
from kvquant.core.backtest import question
from kvquant.core.scope import Scope
from kvquant.errors import MetricsError

if TYPE_CHECKING:
    from kvquant.adapters.past import PrometheusPast

WIDEST = 110

Client = Callable[[Scope, timedelta | None], "PrometheusPast"]

_OPTIONS = {
    "KVQUANT_PROMETHEUS_URL": "--prometheus",
    "KVQUANT_PROMETHEUS_AUTH_FOLDER": "--prometheus-auth",
    "KVQUANT_PROMETHEUS_TIMEOUT": "--request-timeout",
}
"""What the operator's configuration calls the options of this verb."""

_AGO = re.compile(r"-?((?:\d+(?:\.\d+)?(?:ms|s|m|h))+)")


class Instant(click.ParamType[datetime]):
    """An instant on the command line: RFC 3339, Unix seconds, `now`, or `2h` for so long ago."""

    name = "instant"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return the instant.

        Raises:
            click.BadParameter: The text is no instant.
        """
        if isinstance(value, datetime):
            return value
        now = (ctx.find_object(Surroundings) if ctx else None) or Surroundings()
        text = value.strip()
        if text == "now":
            return now.now()
        if match := _AGO.fullmatch(text):
            return now.now() - timedelta(seconds=Seconds().convert(match[1], param, ctx))
        try:
            if re.fullmatch(r"\d{9,10}(\.\d+)?", text):
                return datetime.fromtimestamp(float(text), UTC)
            found = datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no instant: write it like 2026-11-25T12:00:00Z, 2h (ago) or now",
                param,
                ctx,
            )
        if found.tzinfo is None:
            self.fail(f"{value!r} names no time zone: add Z for UTC, or +02:00", param, ctx)
        return found.astimezone(UTC)


@click.command(
    cls=Verb,
    epilog="\n".join(
        (
            "{program} backtest --prometheus http://localhost:9090 --start 8h --end 2h "
            "--baseline 'pod=~\"llama-.*\"'  # A/A",
            "{program} backtest --prometheus http://localhost:9090 --start 2026-11-25T12:00:00Z "
            "--baseline 'pod=~\"llama-7d.*\"' --canary 'pod=~\"llama-int8-.*\"' "
            "--steps 10:15m,25:15m,50",
        )
    ),
)
@click.option(
    "--prometheus",
    metavar="URL",
    envvar="KVQUANT_PROMETHEUS_URL",
    required=True,
    help="Prometheus that this machine reaches. [env: KVQUANT_PROMETHEUS_URL]",
)
@click.option(
    "--prometheus-auth",
    metavar="FOLDER",
    envvar="KVQUANT_PROMETHEUS_AUTH_FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Folder with the files of a Secret as in docs/prometheus.md: token, username, ca.crt.",
)
@click.option(
    "--baseline",
    metavar="SELECTOR",
    required=True,
    help="PromQL matchers of the baseline's engine pods. Without --canary, its pods are split in "
    "two at random, again and again.",
)
@click.option("--canary", metavar="SELECTOR", help="Matchers of the canary's engine pods.")
@click.option(
    "--router",
    metavar="SELECTOR",
    help="Matchers of the pods of kvquant's router, if it stood before them: latency and failures "
    "as clients saw them. Without it, the engines' own metrics have to do.",
)
@click.option(
    "--slots",
    default="blue,green",
    show_default=True,
    help="The router's slots of baseline and canary.",
)
@click.option("--start", type=Instant(), required=True, help="When the first step began.")
@click.option("--end", type=Instant(), default="now", show_default=True, help="Where to end.")
@click.option(
    "--steps",
    help="Weights and lengths of the steps as they were, such as 10:15m,25:15m,50; the last one "
    "lasts to the end. Default: one step with the weight that the traffic had; for A/A "
    f"{question.LADDER}, whose lengths alone count.",
)
@click.option(
    "--time-scale",
    type=click.FloatRange(min=1.0, max=1000.0),
    default=1.0,
    show_default=True,
    help="For a recording of compressed time: how many seconds each recorded one stands for.",
)
@click.option(
    "--filename",
    "-f",
    type=click.Path(exists=True, dir_okay=False),
    help="Manifest of a KVQuantRollout, whose spec.analysis holds the tolerances and your own "
    "signals.",
)
@click.option(
    "--custom",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="YAML with a list of signals of your own, as spec.analysis.custom has them.",
)
@click.option(
    "--splits",
    type=click.IntRange(min=1, max=10_000),
    default=200,
    show_default=True,
    help="Random splits to try without --canary.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the random splits.")
@click.option(
    "--namespace-label",
    default="namespace",
    show_default=True,
    envvar="KVQUANT_PROMETHEUS_NAMESPACE_LABEL",
    help="Label that holds a pod's namespace.",
)
@click.option(
    "--pod-label",
    envvar="KVQUANT_PROMETHEUS_POD_LABEL",
    help="Label that tells pods apart. Default: pod, or instance where no engine has that.",
)
@click.option(
    "--request-timeout",
    type=Seconds(),
    default="60s",
    show_default=True,
    help="Longest wait for one answer of Prometheus.",
)
@OUTPUT
@click.pass_context
def backtest(
    ctx: click.Context,
    *,
    prometheus: str,
    prometheus_auth: str | None,
    baseline: str,
    canary: str | None,
    router: str | None,
    slots: str,
    start: datetime,
    end: datetime,
    steps: str | None,
    time_scale: float,
    filename: str | None,
    custom: str | None,
    splits: int,
    seed: int,
    namespace_label: str,
    pod_label: str | None,
    request_timeout: float,
    output: str,
) -> None:
    """Replay the analysis over your own past, and see what it would have decided.

    Reads what Prometheus remembers of two groups of vLLM pods, at the same instants at which the
    operator would have looked, and feeds it to the operator's own analysis. Prints what would have
    been decided, when and why, and what static thresholds on p99 would have done.

    Without --canary it is an A/A test: the pods of one pool are split in two at random many times,
    and what is printed is how often an innocent canary would have been rolled back.

    It needs no cluster, only Prometheus. How many pods each step had is not known to it, so that
    steps are not refused for their load.
    """
    around = ctx.find_object(Surroundings) or Surroundings()
    if start >= end:
        raise click.BadParameter(
            f"{start:%Y-%m-%dT%H:%M:%SZ} is not before --end, {end:%Y-%m-%dT%H:%M:%SZ}",
            ctx,
            param_hint="--start",
        )
    if router is not None and canary is None:
        raise click.UsageError(
            "--router tells two arms apart by their slots: name a --canary, or leave it out", ctx
        )
    names = tuple(part.strip() for part in slots.split(","))
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise click.BadParameter(
            f"{slots!r}: write two, as in blue,green", ctx, param_hint="--slots"
        )
    scope = _scope(ctx, namespace_label, pod_label)
    asked = Asked(
        source=_source(ctx, prometheus),
        client=_clients(prometheus, prometheus_auth, request_timeout),
        scope=scope,
        pod_label=pod_label is not None,
        baseline=_matchers(ctx, "--baseline", baseline),
        canary=None if canary is None else _matchers(ctx, "--canary", canary),
        router=None if router is None else _matchers(ctx, "--router", router),
        slots=(names[0], names[1]),
        start=start,
        end=min(end, around.now()),
        steps=None if steps is None else _steps(ctx, steps),
        time_scale=time_scale,
        analysis=own_signals.added(_analysis(filename), custom),
        splits=splits,
        seed=seed,
    )
    if asked.end <= start:
        raise click.BadParameter("it lies in the future", ctx, param_hint="--start")
    paint = around.paint()
    try:
        found = run(asked, _progress(asked, sys.stderr.isatty() and output == "text"))
    except MetricsError as error:
        raise Failure(_in_options(str(error))) from error
    if output == "json":
        click.echo(dump(found))
        return
    width = shutil.get_terminal_size().columns if paint.interactive else WIDEST
    width = max(60, min(width, WIDEST))
    for line in words.lines(found, paint, width):
        click.echo(paint.shown(line).rstrip())


def _clients(url: str, folder: str | None, timeout: float) -> Client:
    # Imported here, because `--help` and usage errors need none of it.
    from kvquant.adapters.past import PrometheusPast
    from kvquant.adapters.prometheus_secret import MountedSecret
    from kvquant.core.ticking import GRID

    secret = MountedSecret(Path(folder) if folder else None)

    def client(scope: Scope, grid: timedelta | None) -> PrometheusPast:
        return PrometheusPast(
            url, timeout=timeout or 600.0, secret=secret, scope=scope, grid=grid or GRID
        )

    return client


def _scope(ctx: click.Context, namespace: str, pod: str | None) -> Scope:
    try:
        return Scope(namespace, pod or "pod")
    except ValueError as error:
        raise click.UsageError(f"--namespace-label, --pod-label: {error}", ctx) from error


def _matchers(ctx: click.Context, option: str, text: str) -> str:
    try:
        return question.matchers(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param_hint=option) from error


def _steps(ctx: click.Context, text: str) -> tuple[question.HistoricStep, ...]:
    try:
        return question.steps(text)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param_hint="--steps") from error


def _source(ctx: click.Context, url: str) -> str:
    """Return where the numbers come from, for people; never with credentials."""
    parts = urlsplit(url)
    try:
        host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    except ValueError:
        host = None
    if parts.scheme not in ("http", "https") or not host:
        raise click.BadParameter(
            "it is no URL such as http://prometheus.monitoring:9090", ctx, param_hint="--prometheus"
        )
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def _analysis(filename: str | None) -> AnalysisSettings:
    """Return the tolerances of a manifest, or the usual ones.

    Raises:
        Failure: The file holds no manifest of a rollout.
    """
    if filename is None:
        return AnalysisSettings()
    try:
        documents = [d for d in yaml.safe_load_all(Path(filename).read_text()) if d]
        rollouts = [d for d in documents if d.get("kind") == "KVQuantRollout"]
        if len(rollouts) != 1:
            raise ValueError(f"it holds {len(rollouts)} KVQuantRollouts, and not one")
        metadata = {"namespace": "default", **rollouts[0].get("metadata", {})}
        return KVQuantRollout.parse({**rollouts[0], "metadata": metadata}).spec.analysis
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Failure(f"--filename {filename}: {where}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, ValueError, AttributeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise Failure(f"--filename {filename}: {said}") from error


def _in_options(text: str) -> str:
    for variable, option in _OPTIONS.items():
        text = text.replace(variable, option)
    return text


def _progress(asked: Asked, shown: bool) -> Progress:
    """Return what tells, where somebody looks, how far reading has come."""
    told = [-1]

    def progress(at: float) -> None:
        begin = (asked.start - asked.look_back).timestamp()
        percent = int(100 * (at - begin) / max(1e-9, asked.end.timestamp() - begin))
        if shown and percent != told[0]:
            told[0] = percent
            click.echo(f"\r{percent:3} % of the past is read{'' if percent < 100 else chr(10)}",
                       nl=False, err=True)  # fmt: skip

    return progress
