"""From what became of the examples to a verdict. Pure.

Each measure is looked at over all examples, by length and by kind. These are many looks, so that
one of them must be surer than a single one would have to be before it fails a canary: Bonferroni's
correction, half of the error for the looks over all examples, half for the others. A pass needs no
correction, because every measure has to pass for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvquant.core.shadow_settings import BUCKETS
from kvquant.evaluation.cells import (
    ALL,
    FEWEST,
    FEWEST_TO_FAIL,
    KIND,
    LENGTH,
    Cell,
    Margins,
    amount,
    measured,
    told,
)
from kvquant.evaluation.kinds import Kind
from kvquant.evaluation.measures import ANSWERED, MEASURES, Harm, Measure, Scale
from kvquant.evaluation.results import Result
from kvquant.evaluation.statistics import Verdict

ERROR = 0.05
"""Probability that a canary that does no harm beyond its margins is failed all the same."""
MOST_UNANSWERED = 0.1
"""Share of the examples that may go without the baseline's answer."""


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
        cells.append(measured(measure, by, name, harms, margins.of(measure), error, seed))
    noise = tuple(
        measured(measure, ALL, ALL, harms, margins.of(measure), ERROR, seed)
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
