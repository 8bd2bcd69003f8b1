"""The operator's analysis over a stretch of the past, and what it would have decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvquant.api.v1alpha1 import Verdict
from kvquant.core.analysis import Analysis, Report, Settings
from kvquant.core.analysis.samples import Tick
from kvquant.core.ticking import Span, in_effect


@dataclass(slots=True)
class Passage:
    """What the analysis said of one step.

    Attributes:
        step: Its number, counted from 1.
        weight: The canary's share of the traffic in it, in per cent.
        verdict: PASS once the step could have been left, FAIL once it had to be.
        decided_at: When, in seconds since the epoch; None while neither.
        report: The report that decided, or the latest one.
    """

    step: int
    weight: float
    verdict: Verdict = Verdict.INCONCLUSIVE
    decided_at: float | None = None
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What would have been decided.

    Attributes:
        verdict: FAIL: rolled back. PASS: every step left. INCONCLUSIVE: held. ERROR: no data.
        decided_at: When, in seconds since the epoch; None when it was held to the end.
        message: The decision in a sentence or two.
        report: The report that it rests on; None without data.
        steps: Each step that came into effect.
    """

    verdict: Verdict
    decided_at: float | None
    message: str
    report: Report | None
    steps: tuple[Passage, ...]


class Replay:
    """Takes ticks in order and remembers what was decided."""

    def __init__(self, settings: Settings, spans: Sequence[Span]) -> None:
        """Begin without evidence.

        Args:
            settings: As the operator has them.
            spans: What was in effect when; before the first, the canary had no traffic.
        """
        self._analysis = Analysis(settings)
        self._spans = spans
        self._steps: list[Passage] = []
        self._measured = False

    @property
    def failed(self) -> bool:
        """Whether it was rolled back: no tick matters after that."""
        return bool(self._steps) and self._steps[-1].verdict is Verdict.FAIL

    def take(self, tick: Tick) -> None:
        """Take in one instant of which only the counts are known."""
        if self.failed:
            return
        tick = in_effect(tick, self._spans)
        if tick.step <= 0:
            self._analysis.take(tick)
            return
        if not self._steps or self._steps[-1].step != tick.step:
            self._steps.append(Passage(tick.step, tick.weight))
        here = self._steps[-1]
        report = self._analysis.observe(tick)
        if report.step != tick.step:
            return
        self._measured |= bool(report.canary_requests)
        if report.verdict is Verdict.FAIL:
            here.verdict, here.decided_at, here.report = Verdict.FAIL, report.at, report
        elif here.verdict is not Verdict.PASS:
            here.report = report
            if report.verdict is Verdict.PASS:
                here.verdict, here.decided_at = Verdict.PASS, report.at

    def outcome(self) -> Outcome:
        """Return what was decided."""
        steps = tuple(self._steps)
        if self.failed:
            last = steps[-1]
            assert last.report is not None  # noqa: S101 - it failed by that
            return Outcome(Verdict.FAIL, last.decided_at, last.report.message, last.report, steps)
        if not self._measured:
            return Outcome(
                Verdict.ERROR,
                None,
                "Nothing could be compared: no request of both arms ended within the steps.",
                steps[-1].report if steps else None,
                steps,
            )
        waiting = next((step for step in steps if step.verdict is not Verdict.PASS), None)
        if waiting is not None:
            said = waiting.report.message if waiting.report is not None else "It was too short."
            return Outcome(
                Verdict.INCONCLUSIVE, None, f"Held at step {waiting.step}. {said}",
                waiting.report, steps,
            )  # fmt: skip
        if len(steps) < len(self._spans):
            return Outcome(
                Verdict.INCONCLUSIVE,
                None,
                f"The history ends in step {steps[-1].step} of {len(self._spans)}, which passed.",
                steps[-1].report,
                steps,
            )
        last = steps[-1]
        told = last.report.message if last.report is not None else ""
        return Outcome(Verdict.PASS, last.decided_at, told, last.report, steps)
