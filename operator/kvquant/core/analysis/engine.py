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

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import signals
from kvquant.core.analysis.batches import QUEUEING, Closed, Ledger
from kvquant.core.analysis.comparing import Harm
from kvquant.core.analysis.deaths import SAME_INCIDENT, Deaths, e_value
from kvquant.core.analysis.load import judge_load
from kvquant.core.analysis.measuring import measure
from kvquant.core.analysis.passing import FEWEST_BATCHES, FEWEST_REQUESTS, passes
from kvquant.core.analysis.report import Evidence, Report
from kvquant.core.analysis.samples import Tick
from kvquant.core.analysis.sentences import UNITS, family_of, sentence, unmeasured
from kvquant.core.analysis.sequential import student
from kvquant.core.analysis.settings import Settings
from kvquant.core.analysis.table import BASELINE, CANARY, Batches, finite

FOR_DEATHS = 0.25
"""Part of the error budget that is kept for deaths; the rest is split evenly over the tests."""

LIKELY = 2.5
"""Standard errors beyond the tolerance that roll a step back which has waited for long."""


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
        last = tick.next_weight is None
        return passes(report, self.settings, self._pace(step), last=last)

    def _measure(
        self, known: Batches, batches: Batches, scope: str, ratio: float | None, carried: float
    ) -> dict[str, Evidence]:
        settings = self.settings
        found, alone = measure(self.ledger, settings, known, batches, ratio, carried)
        alpha = settings.budget * (1 - FOR_DEATHS) / (2 * len(found))
        # What was compared with another time is never believed for waiting alone.
        span = 0.0 if alone else float(batches.seconds.sum()) * settings.time_scale
        length = span / max(1, len(batches))
        told: dict[str, Evidence] = {}
        for name, (harm, tolerance) in found.items():
            evidence = None
            if harm is not None:
                evidence = self._evidence(name, harm, tolerance, scope, alpha, length)
            elif scope == "step":
                evidence = unmeasured(name, tolerance, scope, alone=alone)
            if evidence is not None:
                told[name] = evidence
        return told

    def _evidence(
        self, name: str, harm: Harm, tolerance: str, scope: str, alpha: float, length: float
    ) -> Evidence | None:
        """Return what a signal says; of other steps than this one, only when it is a failure."""
        family = family_of(name)
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
            return None if scope != "step" else unmeasured(name, tolerance, scope, alone=False)
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
            unit=UNITS.get(name, "share"),
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
            message=sentence(name, harm, tolerance, verdict, certain=lower > 0),
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
    def _pace(step: Batches) -> tuple[float, float] | None:
        """Return the requests per second that either arm ended lately."""
        span = float(step.seconds[-20:].sum())
        if span <= 0:
            return None
        ended = [float(finite(step.side("ended", arm)[-20:]).sum()) for arm in (0, 1)]
        return ended[BASELINE] / span, ended[CANARY] / span

    def _quantile(self, batches: Batches, arm: int) -> float | None:
        return signals.latency_quantile(self.ledger, batches, arm, 0.99)
