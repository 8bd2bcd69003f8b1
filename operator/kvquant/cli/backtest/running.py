"""Read the past and replay it: the part of `backtest` between its options and its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from kvquant.api.v1alpha1 import AnalysisSettings
from kvquant.cli.backtest import document
from kvquant.cli.backtest.document import BacktestDocument, SplitsDocument
from kvquant.cli.errors import Failure
from kvquant.core.analysis import Settings
from kvquant.core.analysis.samples import Arm, Tick
from kvquant.core.backtest import question
from kvquant.core.backtest.question import HistoricStep, Moment
from kvquant.core.backtest.replay import Replay
from kvquant.core.backtest.splitting import Splits, draw, room
from kvquant.core.backtest.thresholds import Thresholds
from kvquant.core.custom_signals import LatencyQuery, SignalQuery, queries_of
from kvquant.core.judgement import settings_of
from kvquant.core.scope import Scope
from kvquant.core.ticking import in_effect

if TYPE_CHECKING:
    from kvquant.adapters.past import PrometheusPast, Scraped

LOOK_BACK = timedelta(minutes=15)
"""Of the time before the start that is read too, as the operator does."""

NAMED = 8
"""Pods that an error names."""

Progress = Callable[[float], None]
"""Told of the instant that has been reached."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user wants to know.

    Attributes:
        source: The Prometheus, for people; without credentials.
        client: Makes a client for labels and a time between two ticks.
        scope: How Prometheus labels the pods.
        pod_label: Whether the user named the label that tells pods apart.
        baseline: Matchers of the baseline's pods.
        canary: Matchers of the canary's pods; None for A/A.
        router: Matchers of the routers' pods; None: the engines' own metrics have to do.
        slots: The routers' slots of baseline and canary.
        start: When the first step began.
        end: Last instant of interest.
        steps: The steps as they were; None: one step, or the usual ladder for A/A.
        time_scale: Factor by which recorded time was compressed.
        analysis: Tolerances.
        splits: Splits of an A/A test.
        seed: Of the random splits.
    """

    source: str
    client: Callable[[Scope, timedelta | None], PrometheusPast]
    scope: Scope
    pod_label: bool
    baseline: str
    canary: str | None
    router: str | None
    slots: tuple[str, str]
    start: datetime
    end: datetime
    steps: tuple[HistoricStep, ...] | None
    time_scale: float
    analysis: AnalysisSettings
    splits: int
    seed: int

    @property
    def settings(self) -> Settings:
        """The analysis' settings, as the operator has them."""
        return replace(settings_of(self.analysis), time_scale=self.time_scale)

    @property
    def signals(self) -> tuple[SignalQuery, ...]:
        """What the user's own signals need of Prometheus."""
        return queries_of(self.analysis.custom)

    @property
    def look_back(self) -> timedelta:
        """How much of the time before the start is read."""
        return LOOK_BACK / self.time_scale

    @property
    def length(self) -> timedelta:
        """How long the past is."""
        return self.end - self.start


def run(asked: Asked, progress: Progress) -> BacktestDocument | SplitsDocument:
    """Return the answer.

    Raises:
        Failure: The question cannot be answered; the message names the option and the remedy.
        MetricsError: Prometheus did not answer.
    """
    probe = asked.client(asked.scope, None)
    found = _pods(asked, probe, "--baseline", asked.baseline)
    others: list[Scraped] = []
    if asked.canary is not None:
        others = _pods(asked, probe, "--canary", asked.canary)
        both = {one.instance for one in found} & {one.instance for one in others}
        shared = sorted(one.pod or one.instance for one in found if one.instance in both)
        if shared:
            raise Failure(
                f"--baseline and --canary both select {_named(shared)}: write selectors that no "
                "pod matches both of"
            )
    named = [bool(one.pod) for one in [*found, *others]]
    scope = asked.scope
    if not any(named) and not asked.pod_label:
        # Engines without Kubernetes have addresses and no names.
        scope = Scope(scope.namespace, "instance", scope.matchers)
    elif not all(named):
        raise Failure(
            f"some of the engines have no label {scope.pod}: name the label that tells pods apart "
            "with --pod-label (for addresses: --pod-label instance)"
        )
    densest = max(one.samples for one in [*found, *others])
    interval = question.interval_of(asked.length.total_seconds(), densest)
    grid = question.grid_of(asked.time_scale, interval)
    client = asked.client(scope, grid)
    _look_for_signals(asked, client)
    pods = sorted({one.pod or one.instance for one in found})
    if asked.canary is None:
        return _splits(asked, client, grid, pods, progress)
    canary_pods = sorted({one.pod or one.instance for one in others})
    return _pair(asked, client, grid, (pods, canary_pods), progress)


def _look_for_signals(asked: Asked, client: PrometheusPast) -> None:
    """See to it that the metrics of the user's signals are there: else all would wait for them.

    Raises:
        Failure: One is not.
    """
    arms = [("--baseline", asked.baseline)]
    if asked.canary is not None:
        arms.append(("--canary", asked.canary))
    for signal in asked.signals:
        # Counters of rare events are shown with the first of them only.
        if isinstance(signal, LatencyQuery):
            needed = replace(signal.histogram, metric=f"{signal.histogram.metric}_bucket")
        else:
            needed = signal.total
        for option, selector in arms:
            if not client.shown(needed, [selector], asked.start, asked.end):
                raise Failure(
                    f"signal {signal.name}: no pod of {option} {selector} has shown {needed} "
                    "between --start and --end: correct its name or matchers, or leave it out"
                )


def _pair(
    asked: Asked,
    client: PrometheusPast,
    grid: timedelta,
    pods: tuple[Sequence[str], Sequence[str]],
    progress: Progress,
) -> BacktestDocument:
    assert asked.canary is not None  # noqa: S101 - the caller's business
    steps = asked.steps or (HistoricStep(_weight(asked, client)),)
    spans = question.spans(steps, asked.start)
    if spans[-1].since >= asked.end:
        raise Failure(
            f"--steps: the last step begins {question.total(steps[:-1])} after --start, and --end "
            "comes before that: give a later --end, or shorter steps"
        )
    replay, thresholds = Replay(asked.settings, spans), Thresholds(asked.time_scale)
    for tick in _ticks(asked, client, (len(pods[0]), len(pods[1]))):
        progress(tick.at)
        replay.take(tick)
        step = in_effect(tick, spans).step
        thresholds.take(tick.at, step, tick.baseline, tick.canary)
    outcome = replay.outcome()
    report = outcome.report
    return BacktestDocument(
        verdict=outcome.verdict,
        decision=document.DECISIONS[outcome.verdict],
        decided_at=document.instant(outcome.decided_at),
        message=outcome.message,
        source=asked.source,
        start=asked.start,
        end=asked.end,
        time_scale=asked.time_scale,
        tick_seconds=grid.total_seconds(),
        baseline_pods=tuple(pods[0]),
        canary_pods=tuple(pods[1]),
        budget_spent=None if report is None else report.budget_spent,
        load_ratio=None if report is None else report.load.ratio,
        provisional=report is not None and report.provisional,
        eta_seconds=None if report is None else report.eta_seconds,
        signals=() if report is None else tuple(document.evidence(s) for s in report.signals),
        steps=document.passages(outcome),
        thresholds=document.thresholds(thresholds.ruled()),
    )


def _ticks(asked: Asked, client: PrometheusPast, pods: tuple[int, int]) -> Iterator[Tick]:
    """Yield both arms at every instant; the weights are not in effect yet."""
    assert asked.canary is not None  # noqa: S101 - the caller's business
    begin = asked.start - asked.look_back
    router = None if asked.router is None else [asked.router]
    slots = () if router is None else asked.slots
    own = asked.signals
    baseline = client.moments([asked.baseline], router, begin, asked.end, pods[0], slots, own)
    canary = client.moments([asked.canary], None, begin, asked.end, pods[1], signals=own)
    for one, other in zip(baseline, canary, strict=True):
        yield Tick(
            at=one.at,
            step=0,
            weight=0.0,
            baseline=_arm(one, one, asked.slots[0]),
            canary=_arm(other, one, asked.slots[1]),
        )


def _arm(engines: Moment, routers: Moment, slot: str) -> Arm:
    return Arm(
        routers=routers.routers.get(slot, {}),
        engines=engines.engines,
        replicas=max(1, len(engines.engines)),
    )


def _splits(
    asked: Asked,
    client: PrometheusPast,
    grid: timedelta,
    pods: Sequence[str],
    progress: Progress,
) -> SplitsDocument:
    if len(pods) < 2:
        raise Failure(
            f"--baseline selects one pod only ({pods[0]}): without --canary, its pods are split in "
            "two arms. Widen the selector to the whole pool, or name a --canary"
        )
    ladder = asked.steps
    if ladder is None:
        usual = question.steps(question.LADDER)
        ladder = tuple(
            HistoricStep(step.weight, (step.lasts or timedelta(0)) / asked.time_scale)
            for step in usual
        )
        if question.total(ladder) > asked.length:
            ladder = (HistoricStep(50.0, asked.length),)
    if ladder[-1].lasts is None:
        rest = asked.length - question.total(ladder)
        ladder = (*ladder[:-1], HistoricStep(ladder[-1].weight, rest))
    lasts = question.total(ladder)
    if lasts > asked.length or (ladder[-1].lasts or timedelta(0)) <= timedelta(0):
        raise Failure(
            f"--steps: they last {lasts}, and from --start to --end it is {asked.length}: give a "
            "longer past, or shorter steps"
        )
    begin, end = asked.start.timestamp(), asked.end.timestamp()
    drawn = draw(pods, begin, room(begin, end, lasts), asked.splits, asked.seed)
    splits = Splits(
        drawn,
        ladder,
        lasts.total_seconds(),
        asked.look_back.total_seconds(),
        len(pods),
        asked.settings,
    )
    since = asked.start - asked.look_back
    past = client.moments(
        [asked.baseline], None, since, asked.end, len(pods), signals=asked.signals
    )
    for moment in past:
        progress(moment.at)
        splits.take(moment)
    tried = splits.tried()
    back, through, held = document.rates(tried)
    return SplitsDocument(
        splits=len(tried),
        seed=asked.seed,
        source=asked.source,
        start=asked.start,
        end=asked.end,
        time_scale=asked.time_scale,
        tick_seconds=grid.total_seconds(),
        pods=tuple(pods),
        false_rollbacks=back,
        promoted=through,
        held=held,
        thresholds=document.threshold_rates(tried),
        examples=document.examples(tried),
    )


def _pods(asked: Asked, client: PrometheusPast, option: str, selector: str) -> list[Scraped]:
    """Return the engines that a selector finds.

    Raises:
        Failure: None; the message tells which ones there are.
    """
    found = client.scraped([selector], asked.start, asked.end)
    if found:
        return found
    between = f"between {asked.start:%Y-%m-%d %H:%M:%S} and {asked.end:%H:%M:%S} UTC"
    everything = client.scraped([], asked.start, asked.end)
    if not everything:
        raise Failure(
            f"--start, --end: Prometheus at {asked.source} has no vLLM engine's metrics {between}: "
            "look whether it keeps data for so long, and whether it scrapes the engines"
        )
    others = sorted({one.pod or one.instance for one in everything})
    raise Failure(
        f"{option} {selector}: no engine that was scraped {between} matches it. There were: "
        f"{_named(others)}"
    )


def _weight(asked: Asked, client: PrometheusPast) -> float:
    """Return the canary's share of the requests, in per cent.

    Raises:
        Failure: There was none.
    """
    assert asked.canary is not None  # noqa: S101 - the caller's business
    baseline = client.finished([asked.baseline], asked.start, asked.end)
    canary = client.finished([asked.canary], asked.start, asked.end)
    if not baseline + canary > 0:
        raise Failure(
            "--start, --end: neither arm has finished a request in this time: choose one with "
            "traffic"
        )
    return min(100.0, max(0.01, 100 * canary / (baseline + canary)))


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"
