"""The analysis of one rollout: feed it ticks, read the verdict.

    analysis = Analysis()
    for tick in ticks:
        report = analysis.observe(tick)

It needs neither Kubernetes nor Prometheus and keeps nothing but what it was fed: the same ticks
give the same verdicts, so that a restarted operator that reads them again decides the same.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import signals
from kvquant.core.analysis.batches import QUEUEING, Closed, Ledger
from kvquant.core.analysis.comparing import RELAXED, Harm
from kvquant.core.analysis.deaths import SAME_INCIDENT, Deaths, e_value
from kvquant.core.analysis.load import judge_load
from kvquant.core.analysis.passing import passes
from kvquant.core.analysis.report import Evidence, Report, percent, seconds
from kvquant.core.analysis.samples import Tick
from kvquant.core.analysis.sequential import student
from kvquant.core.analysis.settings import Settings
from kvquant.core.analysis.slowness import Slowness
from kvquant.core.analysis.table import BASELINE, CANARY, Batches, finite

FOR_DEATHS = 0.25
"""Part of the error budget that is kept for deaths; the rest is split evenly over the tests."""

FEWEST_BATCHES, FEWEST_REQUESTS = 2, 20
"""Batches and canary requests below which nothing but deaths fails: fewer are an anecdote."""

LIKELY = 2.5
"""Standard errors beyond the tolerance that roll a step back which has waited for long."""

OVERLOADED = 1.25
"""Load per pod of canary to baseline beyond which only the baseline's past is a fair control."""

OTHER_TIME = 1.5
"""What a comparison with the baseline's past tolerates, as a multiple: traffic may have changed
since, so that only gross harm fails. What lies between that and the usual tolerance neither fails
nor passes."""

PASSES_OTHER_TIME = 1.1
"""What such a comparison allows a pass, likewise."""

BY_CHANCE = 1.1
"""Ratio of loads per pod that may be chance among a hundred requests."""

FAMILIES = {
    "latencyP50": "p99",
    "latencyP90": "p99",
    "latencyP99": "p99",
    "firstTokenP90": "p99",
    "firstTokenP99": "p99",
    "tokenTime": "p99",
    "delivered": "p99",
    "failures": "oomRetries",
    "deaths": "oomRetries",
    "pageFaults": "pageFaults",
}
"""Family of each built-in signal."""


class Analysis:
    """Sequential analysis of one rollout. Not safe to share between threads."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Begin without evidence.

        Args:
            settings: Tolerances and durations; the defaults fit production.
        """
        self.settings = settings or Settings()
        scaled = self.settings.scaled
        self.ledger = Ledger(scaled(self.settings.batch), scaled(self.settings.warm_up))
        self.deaths = (Deaths(), Deaths())
        self._step_deaths = [0, 0]
        self._served_until = -math.inf
        self._report: Report | None = None

    def observe(self, tick: Tick) -> Report:
        """Take in one instant and return the verdict on all that was seen so far.

        Args:
            tick: Both arms at an instant later than those before; an earlier one is ignored.
        """
        self.take(tick)
        return self.report()

    def take(self, tick: Tick) -> None:
        """Take in one instant and judge nothing yet; for a past that is read again."""
        before = self.ledger.visit
        closed = self.ledger.take(tick)
        if closed is not None:
            self._count_deaths(closed)
            self._report = None
        if self.ledger.visit != before:
            self._step_deaths = [0, 0]
            self._report = None

    def report(self) -> Report:
        """Return the verdict on what was taken in.

        Raises:
            ValueError: Nothing was.
        """
        last = self.ledger.last
        if last is None:
            raise ValueError("nothing was taken in yet")
        if self._report is None:
            self._report = self._judge(last)
        if self._report.at != last.at:
            self._report = replace(self._report, at=last.at)
        return self._report

    def _count_deaths(self, closed: Closed) -> None:
        apart = self.settings.scaled(SAME_INCIDENT)
        if closed.step > 0:
            self._served_until = closed.end
        # A canary whose only pod died has lost its traffic before the death is seen.
        at_risk = closed.end <= self._served_until + apart
        span = closed.seconds * self.settings.time_scale
        for arm in (BASELINE, CANARY):
            if arm == CANARY and not at_risk:
                continue
            deaths, pods = closed.deaths[arm], closed.replicas[arm]
            self.deaths[arm].add(deaths, pods, span, closed.end, apart)
            self._step_deaths[arm] += deaths

    def _judge(self, tick: Tick) -> Report:
        batches = self.ledger.table.all()
        step = batches.where(batches.fact("visit") == self.ledger.visit)
        usable = signals.usable(step)
        everywhere = signals.usable(batches) if self.ledger.visit > 1 else usable
        carried = [signals.carried(batches, arm, QUEUEING) for arm in (BASELINE, CANARY)]
        load = judge_load(tick, step, usable, QUEUEING, carried[CANARY], carried[BASELINE])
        measured = self._measure(batches, usable, "step", load.ratio, carried[BASELINE])
        if len(everywhere) > len(usable):
            # What all steps together show only adds failures to what this one shows.
            wider = self._measure(batches, everywhere, "rollout", load.ratio, carried[BASELINE])
            for name, evidence in wider.items():
                if measured[name].verdict is not Verdict.FAIL:
                    measured[name] = evidence
        measured["deaths"] = self._judge_deaths()
        ended = [float(usable.side("ended", arm).sum()) for arm in (BASELINE, CANARY)]
        report = Report(
            at=tick.at,
            step=tick.step,
            verdict=Verdict.INCONCLUSIVE,
            message="",
            signals=tuple(measured.values()),
            load=load,
            provisional=load.ratio is not None and load.ratio < 0.8,
            baseline_requests=ended[BASELINE],
            canary_requests=ended[CANARY],
            seconds=float(usable.seconds.sum()),
            budget_spent=max((e.spent for e in measured.values()), default=0.0),
            baseline_p99=self._quantile(usable, BASELINE),
            canary_p99=self._quantile(usable, CANARY),
        )
        failed = [e for e in measured.values() if e.verdict is Verdict.FAIL]
        if failed:
            return replace(
                report, verdict=Verdict.FAIL, message=" ".join(e.message for e in failed)
            )
        return passes(report, self.settings, self._pace(step))

    def _measure(
        self,
        known: Batches,
        batches: Batches,
        scope: str,
        ratio: float | None,
        carried: float,
    ) -> dict[str, Evidence]:
        settings, ledger = self.settings, self.ledger
        clear = below_limit = signals.clear(batches)
        history: Batches | None = None
        allowance, other_time = 1.0, 1.0
        pods = self._pods(batches)
        if pods is not None:
            allowance = 1 + signals.POOLING * max(0.0, 1 / pods[CANARY] - 1 / pods[BASELINE])
        if ratio is not None and ratio > OVERLOADED:
            history, other_time = self._history(known, batches), OTHER_TIME
            # A queue may be the hour's doing, so that it fails nobody; it passes nobody either.
            clear = batches.where(~signals.queues(batches, CANARY, QUEUEING))
            if not len(history):
                clear = clear.where(np.zeros(len(clear), dtype=np.bool_))
        elif ratio is not None:
            # A ratio that is a tenth off may be chance.
            allowance *= max(1.0, ratio / BY_CHANCE)
        found: dict[str, tuple[Harm | None, str]] = {}

        def factors(slowdown: float) -> tuple[float, float]:
            """Return the slow-down that fails, and the one that passes."""
            factor = (1 + slowdown) * allowance
            easy = factor * (PASSES_OTHER_TIME if history is not None else 1.0)
            return factor * other_time, 1 + RELAXED * (easy - 1)

        slowness = Slowness(ledger, clear, "latency", by_age=True, history=history)
        whole = slowness
        if history is not None:
            whole = Slowness(ledger, below_limit, "latency", by_age=True, history=history)
        for name, quantile, part in (
            ("latencyP50", 0.5, 0.6),
            ("latencyP90", 0.9, 0.8),
            ("latencyP99", 0.99, 1.0),
        ):
            fails, easy = factors(part * settings.slowdown)
            harm = slowness.beyond_quantile(quantile, fails, easy)
            if harm is not None and history is not None:
                wider = whole.beyond_quantile(quantile, fails, easy)
                harm = harm if wider is None else replace(harm, relax=wider.relax)
            found[name] = harm, f"{percent(fails - 1)} slower"
        fails, easy = factors(settings.first_token_slowdown)
        # The queue is the load's doing, and a prefill is not. Engines that do not tell them apart
        # are judged by both together.
        first = "prefill" if "engine.prefill" in ledger.bounds else "ttft"
        slowness = Slowness(ledger, clear, first, history=history)
        for name, quantile in (("firstTokenP90", 0.9), ("firstTokenP99", 0.99)):
            harm = slowness.beyond_quantile(quantile, fails, easy)
            found[name] = harm, f"{percent(fails - 1)} slower"
        fails, easy = factors(settings.token_slowdown)
        found["tokenTime"] = (
            signals.tokens_slower(clear, fails, easy, history),
            f"{percent(fails - 1)} slower",
        )
        found["delivered"] = (
            signals.less_delivered(
                batches,
                signals.DELIVERED,
                QUEUEING,
                carried,
            ),
            f"{percent(1 - signals.DELIVERED)} less",
        )
        found["failures"] = (
            signals.failures(batches, settings.failures, QUEUEING),
            f"{percent(settings.failures)} more",
        )
        found["pageFaults"] = (
            signals.page_faults(batches, settings.page_faults),
            f"{100 * settings.page_faults:g} per 100 requests beyond twice the baseline's",
        )
        for custom in settings.custom:
            found[custom.name] = (
                signals.custom_share(
                    batches,
                    custom.name,
                    custom.tolerance,
                    higher_is_worse=custom.higher_is_worse,
                ),
                f"{percent(custom.tolerance)} more",
            )
        alpha = settings.budget * (1 - FOR_DEATHS) / (2 * len(found))
        # What was compared with another time is never believed for waiting alone.
        span = 0.0 if history is not None else float(batches.seconds.sum()) * settings.time_scale
        length = span / max(1, len(batches))
        told: dict[str, Evidence] = {}
        for name, (harm, tolerance) in found.items():
            evidence = None
            if harm is not None:
                evidence = self._evidence(name, harm, tolerance, scope, alpha, length)
            elif scope == "step":
                evidence = _unmeasured(name, tolerance, scope, alone=history is not None)
            if evidence is not None:
                told[name] = evidence
        return told

    def _evidence(
        self, name: str, harm: Harm, tolerance: str, scope: str, alpha: float, length: float
    ) -> Evidence | None:
        """Return what a signal says; of other steps than this one, only when it is a failure."""
        family = FAMILIES.get(name, "custom")
        it = harm.estimate
        limit = it.limit(alpha)
        lower = it.value - limit * it.error
        enough = it.batches >= FEWEST_BATCHES and harm.requests >= FEWEST_REQUESTS
        waited = it.batches * length >= self.settings.patience
        patient = waited and it.beyond() >= student(LIKELY, it.freedom)
        fails = enough and (lower > 0 or patient)
        if scope != "step" and not fails:
            return None
        relaxed = harm.relax()
        if relaxed is None:
            return None if scope != "step" else _unmeasured(name, tolerance, scope, alone=False)
        upper = relaxed.sound_upper()
        verdict = Verdict.INCONCLUSIVE
        if fails:
            verdict = Verdict.FAIL
        elif upper <= 0:
            verdict = Verdict.PASS
        return Evidence(
            name=name,
            family=family,
            verdict=verdict,
            baseline=harm.baseline,
            canary=harm.canary,
            unit=_UNITS.get(name, "share"),
            effect=it.value,
            error=it.error,
            relaxed=relaxed.value,
            equal=harm.equal,
            lower=lower,
            upper=upper,
            tolerance=tolerance,
            spent=min(1.0, max(0.0, it.beyond()) / limit) if it.error > 0 else 0.0,
            scope=scope,
            batches=it.batches,
            requests=harm.requests,
            message=_sentence(name, harm, tolerance, verdict, certain=lower > 0),
        )

    def _judge_deaths(self) -> Evidence:
        baseline, canary = self.deaths[BASELINE], self.deaths[CANARY]
        against = e_value(canary, baseline, self.settings.deaths_per_hour)
        limit = 1 / (self.settings.budget * FOR_DEATHS)
        most = self.settings.most_deaths
        here = self._step_deaths
        verdict = Verdict.PASS
        message = f"deaths: {canary.deaths} of canary engines, {baseline.deaths} of the baseline's."
        if against >= limit:
            verdict = Verdict.FAIL
            message = (
                f"deaths: canary engines died {canary.deaths} times in {canary.hours:.1f} "
                f"pod-hours, the baseline's {baseline.deaths} times in {baseline.hours:.1f}; "
                f"that is {against:,.0f} times likelier of a bad canary. Any exit code counts."
            )
        elif most is not None and here[CANARY] > here[BASELINE] + most:
            verdict = Verdict.FAIL
            message = (
                f"deaths: {here[CANARY]} canary engines died in this step, {here[BASELINE]} of the "
                f"baseline's; {most} more are tolerated. Any exit code counts."
            )
        elif canary.incidents:
            message += " Too few to tell a bad canary from bad luck."
        return Evidence(
            "deaths",
            "oomRetries",
            verdict,
            baseline.deaths,
            canary.deaths,
            "deaths",
            tolerance=f"{self.settings.deaths_per_hour:g} per pod and hour",
            spent=min(1.0, max(0.0, math.log(max(against, 1.0)) / math.log(limit))),
            scope="rollout",
            message=message,
        )

    @staticmethod
    def _history(known: Batches, batches: Batches) -> Batches:
        """Return the baseline's batches at about the load that a canary pod has now."""
        loads = batches.side("started", CANARY) / batches.pods(CANARY) / batches.seconds
        now = float(np.median(loads)) if len(loads) else 0.0
        if not now > 0:
            return known.where(np.zeros(len(known), dtype=np.bool_))
        theirs = known.side("started", BASELINE) / known.pods(BASELINE) / known.seconds / now
        sound = known.fact("whole") * known.fact("calm") * known.fact("warm") > 0
        sound &= theirs >= 0.7
        sound &= ~signals.queues(known, BASELINE, QUEUEING)
        alike = sound & (theirs <= 1.1)
        # A baseline that was always busier was slower, if anything: better than nothing.
        return known.where(alike if alike.any() else sound)

    @staticmethod
    def _pods(batches: Batches) -> tuple[float, float] | None:
        if not len(batches):
            return None
        return float(batches.pods(BASELINE)[-1]), float(batches.pods(CANARY)[-1])

    @staticmethod
    def _pace(step: Batches) -> tuple[float, float] | None:
        """Return the requests per second that either arm ended lately."""
        span = float(step.seconds[-20:].sum())
        if span <= 0:
            return None
        ended = [float(finite(step.side("ended", arm)[-20:]).sum()) for arm in (0, 1)]
        return ended[BASELINE] / span, ended[CANARY] / span

    def _quantile(self, batches: Batches, arm: int) -> float | None:
        return signals.latency_quantile(self.ledger, batches, arm, 0.99)


def _unmeasured(name: str, tolerance: str, scope: str, *, alone: bool) -> Evidence:
    why = "not measured yet"
    if alone and FAMILIES.get(name) == "p99":
        why = "no baseline pod ever had the load of a canary pod now, so that there is no control"
    return Evidence(
        name,
        FAMILIES.get(name, "custom"),
        Verdict.INCONCLUSIVE,
        tolerance=tolerance,
        scope=scope,
        message=f"{name}: {why}.",
    )


_UNITS = {"tokenTime": "seconds", "delivered": "ratio", "pageFaults": "perRequest"}


def _sentence(name: str, harm: Harm, tolerance: str, verdict: Verdict, *, certain: bool) -> str:
    if name == "tokenTime":
        told = (
            f"{name}: {seconds(harm.canary)} between two tokens, baseline {seconds(harm.baseline)}"
        )
    elif name == "delivered":
        told = (
            f"{name}: while it queues, the canary delivers {percent(harm.canary)} of what comes to "
            "it and a baseline pod carries"
        )
    elif name == "pageFaults":
        told = (
            f"{name}: {100 * harm.canary:.3g} preemptions per 100 requests, baseline "
            f"{100 * harm.baseline / 2:.3g}"
        )
    elif not math.isnan(harm.edge):
        return (
            f"{name}: {percent(harm.canary)} of canary requests took longer than "
            f"{seconds(harm.edge * harm.factor)}, the baseline's {seconds(harm.edge)} and "
            f"{tolerance.removesuffix(' slower')}; {percent(harm.baseline)} would be equal."
            f"{_surety(harm, verdict, certain=certain)}"
        )
    else:
        told = f"{name}: {percent(harm.canary)}, baseline {percent(harm.baseline)}"
    return f"{told}; {tolerance} is tolerated.{_surety(harm, verdict, certain=certain)}"


def _surety(harm: Harm, verdict: Verdict, *, certain: bool) -> str:
    if verdict is not Verdict.FAIL:
        return ""
    sure = "clear of noise" if certain else "likely, though not certain, after so long a wait"
    return f" The excess is {sure} after {int(harm.requests):,} canary requests."
