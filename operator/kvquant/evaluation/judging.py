"""From what became of the examples to a verdict. Pure.

Each measure is looked at over all examples, by length and by kind. These are many looks, so that
one of them must be surer than a single one would have to be before it fails a canary: Bonferroni's
correction, half of the error for the looks over all examples, half for the others. A pass needs no
correction, because every measure has to pass for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvquant.core.analysis.sequential import student
from kvquant.core.shadow_settings import BUCKETS
from kvquant.evaluation.kinds import Kind
from kvquant.evaluation.measures import ANSWERED, MEASURES, Harm, Measure, Scale
from kvquant.evaluation.results import Result
from kvquant.evaluation.statistics import (
    Interval,
    Verdict,
    fraction_difference,
    mcnemar,
    mean_difference,
    normal_quantile,
    share_difference,
)

ERROR = 0.05
"""Probability that a canary that does no harm beyond its margins is failed all the same."""
CONFIDENCE = 0.95
"""Of the intervals that are told, and that a pass rests on."""
SUSPICION = 0.9
"""Confidence of the interval that keeps a set from passing when it is above a margin."""
FEWEST = 30
"""Pairs below which a measure cannot pass, nor a set as a whole."""
FEWEST_TO_FAIL = 10
"""Pairs below which harm is not believed, and a length or kind is not looked at by itself."""
MOST_UNANSWERED = 0.1
"""Share of the examples that may go without the baseline's answer."""
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


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict.

    Attributes:
        verdict: On the canary.
        message: Why, in a sentence or two for people; nothing of what was asked or answered.
        examples: All of the set.
        answered: Those that the baseline answered.
        cells: Each measure over all examples, then by length and kind.
        noise: Each measure of the baseline against itself.
        looks: How many of the cells were corrected for.
    """

    verdict: Verdict
    message: str
    examples: int
    answered: int
    cells: tuple[Cell, ...]
    noise: tuple[Cell, ...]
    looks: int


def judge(results: Sequence[Result], margins: Margins, seed: int = 1) -> Judged:
    """Return the verdict on a canary.

    Args:
        results: What became of each example.
        margins: What is tolerated.
        seed: Of the resampling.
    """
    answered = sum(result.answered for result in results)
    groups = list(_groups(results))
    slices = sum(by != ALL and measure.judged for measure, by, *_ in groups)
    whole = len({measure.name for measure, *_ in groups if measure.judged})
    cells = []
    for measure, by, name, harms in groups:
        error = ERROR / 2 / max(1, whole if by == ALL else slices)
        cells.append(_cell(measure, by, name, harms, margins.of(measure), error, seed))
    noise = tuple(
        _cell(measure, ALL, ALL, harms, margins.of(measure), ERROR, seed)
        for measure in MEASURES
        if (harms := [one.noise[measure.name] for one in results if measure.name in one.noise])
    )
    judged = Judged(
        Verdict.INCONCLUSIVE, "", len(results), answered, tuple(cells), noise, whole + slices
    )
    verdict, message = _verdict(judged, results)
    return replace(judged, verdict=verdict, message=message)


def _groups(results: Sequence[Result]) -> Iterator[tuple[Measure, str, str, list[Harm]]]:
    """Yield each measure with the examples that give occasion to it: all, by length, by kind."""
    for measure in MEASURES:
        there = [result for result in results if measure.name in result.harms]
        if not there:
            continue
        yield measure, ALL, ALL, [result.harms[measure.name] for result in there]
        members: dict[tuple[str, str], list[Harm]] = {}
        for result in there:
            for place in ((LENGTH, result.bucket), (KIND, result.kind.value)):
                members.setdefault(place, []).append(result.harms[measure.name])
        places = [(LENGTH, name) for name, _ in BUCKETS] + [(KIND, kind.value) for kind in Kind]
        for by, name in places:
            harms = members.get((by, name), [])
            if len(harms) >= FEWEST_TO_FAIL:
                yield measure, by, name, harms


def _cell(
    measure: Measure,
    by: str,
    name: str,
    harms: Sequence[Harm],
    margin: float,
    error: float,
    seed: int,
) -> Cell:
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


def _verdict(judged: Judged, results: Sequence[Result]) -> tuple[Verdict, str]:
    failed = [cell for cell in decisive(judged.cells) if cell.verdict is Verdict.FAIL]
    if failed:
        return Verdict.FAIL, " ".join(f"{told(cell)}." for cell in failed)
    unanswered = judged.examples - judged.answered
    if unanswered > MOST_UNANSWERED * judged.examples:
        return Verdict.INCONCLUSIVE, (
            f"The baseline answered {judged.answered} of {judged.examples} examples "
            f"({failures(results)}): too few to tell."
        )
    whole = [cell for cell in judged.cells if cell.by == ALL and cell.measure.judged]
    compared = next((cell.pairs for cell in whole if cell.measure is ANSWERED), 0)
    if compared < FEWEST:
        return Verdict.INCONCLUSIVE, (
            f"{compared} examples were compared; it takes {FEWEST} to tell, and some hundreds for "
            "narrow margins."
        )
    rare = [cell for cell in whole if cell.pairs < FEWEST]
    without = _without(rare)
    suspect = [cell for cell in judged.cells if cell.is_suspect]
    if suspect:
        worst = max(suspect, key=_excess)
        return Verdict.INCONCLUSIVE, (
            f"{told(worst)}, which is not certain among {judged.looks} looks.{without}"
        )
    open_ = [c for c in whole if c.verdict is Verdict.INCONCLUSIVE and c.pairs >= FEWEST]
    if open_:
        named = ", ".join(
            f"{cell.measure.name} (up to {amount(cell, cell.interval.upper)} with {cell.pairs}, "
            f"{amount(cell, cell.margin)} allowed)"
            for cell in open_
        )
        return Verdict.INCONCLUSIVE, f"More examples are needed: {named}.{without}"
    return Verdict.PASS, (
        f"{compared} examples: the canary's answers are as good as the baseline's within the "
        f"margins.{without}"
    )


def decisive(cells: Iterable[Cell]) -> list[Cell]:
    """Return of each judged measure the cell that says most: where it is worst, if it is bad."""
    found: dict[str, Cell] = {}
    for cell in cells:
        known = found.get(cell.measure.name)
        # The one over all examples comes first, and stands unless another says more.
        if cell.measure.judged and (known is None or _loudness(cell) > _loudness(known)):
            found[cell.measure.name] = cell
    return list(found.values())


def _loudness(cell: Cell) -> tuple[int, float]:
    if cell.verdict is Verdict.FAIL:
        return 2, _excess(cell)
    return (1, _excess(cell)) if cell.is_suspect else (0, 0.0)


def _without(rare: Sequence[Cell]) -> str:
    if not rare:
        return ""
    named = ", ".join(f"{cell.measure.name} ({cell.pairs})" for cell in rare)
    return f" Not evaluated for want of examples: {named}."


def _excess(cell: Cell) -> float:
    return (cell.interval.lower - cell.margin) / cell.margin if cell.margin else cell.interval.lower


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


def failures(results: Sequence[Result]) -> str:
    """Return why there are no answers, by arm, the most frequent reasons first."""
    counts: dict[str, int] = {}
    for result in results:
        for arm, said in result.said.items():
            if said.failure:
                reason = f"{arm}: {said.failure}"
                counts[reason] = counts.get(reason, 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:4]
    return ", ".join(f"{reason} {count}" for reason, count in most)


def worst_examples(results: Sequence[Result], margins: Margins, most: int) -> list[Result]:
    """Return the examples in which the canary is worse, worst first."""
    ranked = [
        (-sum(more / max(margin, 1e-3) for _, more, margin in worse(one, margins)), one.id, one)
        for one in results
    ]
    ranked.sort(key=lambda item: item[:2])
    return [one for harm, _, one in ranked[:most] if harm < 0]


def worse(result: Result, margins: Margins) -> Iterator[tuple[Measure, float, float]]:
    """Yield the measures in which the canary's answer is worse, by how much, and their margins.

    The drift of nearly every answer is a little above zero: only beyond its margin it counts.
    """
    for measure in MEASURES:
        harm = result.harms.get(measure.name)
        if harm is None or not measure.judged:
            continue
        margin = margins.of(measure)
        if harm.more > (margin if measure.scale is Scale.NATS else 0.0):
            yield measure, harm.more, margin
