"""A measure over some of the examples: its interval, and what that says of a margin. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvquant.core.analysis.sequential import student
from kvquant.evaluation.measures import Harm, Measure, Scale
from kvquant.evaluation.statistics import (
    Interval,
    Verdict,
    fraction_difference,
    mcnemar,
    mean_difference,
    normal_quantile,
    share_difference,
)

CONFIDENCE = 0.95
"""Of the intervals that are told, and that a pass rests on."""
SUSPICION = 0.9
"""Confidence of the interval that keeps a set from passing when it is above a margin."""
FEWEST = 30
"""Pairs below which a measure cannot pass, nor a set as a whole."""
FEWEST_TO_FAIL = 10
"""Pairs below which harm is not believed, and a length or kind is not looked at by itself."""
ALL, LENGTH, KIND = "all", "length", "kind"
LARGEST_DRIFT = 4.0
"""Nats per token between two clipped differences: what an interval of the drift is cut to."""
PRIOR_PAIRS, PRIOR_DRIFT = 5.0, 0.05
"""Scatter of the drift that is assumed before anything is seen, and the pairs it is worth."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A measure over some of the examples.

    Attributes:
        measure: What is measured.
        by: `all`, `length` or `kind`.
        name: Which examples: `all`, a bucket of length, a kind.
        pairs: Examples that give occasion to it.
        baseline: Mean harm in the baseline's answers.
        canary: The same in the canary's.
        interval: Of the mean of the differences, by itself.
        sure: The bound that has to be above the margin to fail: corrected for all the looks.
        margin: Harm that is tolerated.
        verdict: What the interval says of the margin.
        is_suspect: It looks like harm beyond the margin, which may be one look of many.
        flips: Examples in which only the canary is worse, and only the baseline; None: no share.
    """

    measure: Measure
    by: str
    name: str
    pairs: int
    baseline: float
    canary: float
    interval: Interval
    sure: float
    margin: float
    verdict: Verdict
    is_suspect: bool
    flips: tuple[int, int] | None

    @property
    def chance(self) -> float | None:
        """McNemar's p-value of flips that are as many either way; None: no share."""
        return None if self.flips is None else mcnemar(*self.flips)


@dataclass(frozen=True, slots=True)
class Margins:
    """Harm that is tolerated.

    Attributes:
        answers: As a share of the answers, more than of the baseline's.
        drift: Of perplexity, as a fraction.
    """

    answers: float = 0.05
    drift: float = 0.05

    def of(self, measure: Measure) -> float:
        """Return what is tolerated of a measure."""
        return math.log1p(self.drift) if measure.scale is Scale.NATS else self.answers


def measured(
    measure: Measure,
    by: str,
    name: str,
    harms: Sequence[Harm],
    margin: float,
    error: float,
    seed: int,
) -> Cell:
    """Return what a measure says over some of the examples.

    Args:
        measure: What is measured.
        by: What the examples have in common.
        name: Which they are.
        harms: Of each of them.
        margin: What is tolerated.
        error: Probability of failing a canary at its margin, which this look may have.
        seed: Of the resampling.
    """
    interval = _interval(measure, harms, CONFIDENCE, seed)
    pairs = len(harms)
    sure = -math.inf
    # Where the single look does not show it, the corrected one cannot: it need not be computed.
    if pairs >= FEWEST_TO_FAIL and interval.lower > margin:
        sure = min(interval.lower, _interval(measure, harms, 1 - 2 * error, seed).lower)
    verdict = Verdict.INCONCLUSIVE
    if measure.judged and sure > margin:
        verdict = Verdict.FAIL
    elif measure.judged and pairs >= FEWEST and interval.upper < margin:
        verdict = Verdict.PASS
    suspect = (
        verdict is not Verdict.FAIL
        and pairs >= FEWEST_TO_FAIL
        and interval.mean > margin
        and _interval(measure, harms, SUSPICION, seed).lower > margin
    )
    flips = None
    if measure.scale is Scale.SHARE:
        flips = (sum(one.more > 0 for one in harms), sum(one.more < 0 for one in harms))
    return Cell(
        measure,
        by,
        name,
        pairs,
        sum(one.first for one in harms) / pairs,
        sum(one.second for one in harms) / pairs,
        interval,
        max(sure, -_bound(measure)),
        margin,
        verdict,
        measure.judged and suspect,
        flips,
    )


def _interval(measure: Measure, harms: Sequence[Harm], confidence: float, seed: int) -> Interval:
    if measure.scale is Scale.SHARE:
        more, less = sum(one.more > 0 for one in harms), sum(one.more < 0 for one in harms)
        return share_difference(more, less, len(harms), confidence)
    differences = [one.more for one in harms]
    if measure.scale is Scale.FRACTION:
        found = fraction_difference(differences, confidence, seed)
    else:
        found = _drift(differences, confidence, seed)
    bound = _bound(measure)
    return Interval(found.mean, max(-bound, found.lower), min(bound, found.upper))


def _drift(differences: Sequence[float], confidence: float, seed: int) -> Interval:
    """Return the bootstrap's interval, widened to what is honest with few pairs.

    Its far ends come from the few most extreme samples, and it takes a handful of equal values for
    certainty; Student's interval with a little scatter assumed beforehand does neither.
    """
    found = mean_difference(differences, confidence, seed)
    pairs = len(differences)
    squares = sum((one - found.mean) ** 2 for one in differences)
    variance = (squares + PRIOR_PAIRS * PRIOR_DRIFT**2) / (pairs + PRIOR_PAIRS)
    reach = student(normal_quantile(confidence), pairs) * math.sqrt(variance / pairs)
    return Interval(
        found.mean, min(found.lower, found.mean - reach), max(found.upper, found.mean + reach)
    )


def _bound(measure: Measure) -> float:
    return LARGEST_DRIFT if measure.scale is Scale.NATS else 1.0


def told(cell: Cell) -> str:
    """Return what a cell found, without a full stop."""
    where = {ALL: "", LENGTH: f" for requests of {cell.name}", KIND: f" for {cell.name} requests"}
    return (
        f"{cell.measure.name}{where[cell.by]}: {cell.measure.harm} "
        f"{amount(cell, cell.interval.mean)} over {cell.pairs} examples, "
        f"{amount(cell, cell.margin)} allowed"
    )


def amount(cell: Cell, value: float) -> str:
    """Return a difference in the words of its unit: per cent of perplexity, or per 100 answers."""
    if cell.measure.scale is Scale.NATS:
        return f"{100 * math.expm1(value):+.2f} %"
    return f"{100 * value:+.1f} per 100"
