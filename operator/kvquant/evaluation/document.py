"""The whole report of an evaluation, for programs: report.json, and what the CLI prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from kvquant import __version__
from kvquant.api.fields import Model
from kvquant.core.evaluation_summary import Outcome
from kvquant.evaluation.arms import Arm
from kvquant.evaluation.fetching import Dataset
from kvquant.evaluation.judging import ALL, Cell, Judged, Margins, worse, worst_examples
from kvquant.evaluation.results import AGAIN, BASELINE, CANARY, Result, Said
from kvquant.evaluation.running import Pace

WORST = 20
"""Examples that are shown with their texts."""
DIGITS = 6


class ArmDocument(Model):
    """An arm that was asked."""

    place: str
    """Base URL, or host and port."""
    model: str | None
    """Name of the model that was asked for in place of the examples' own; null: their own."""
    fingerprints: tuple[str, ...]
    """What its answers carried in `system_fingerprint`."""


class SettingsDocument(Model):
    """How the set was asked and judged."""

    margin_percent: float
    """Harm that is tolerated, in answers per 100 beyond the baseline's."""
    drift_percent: float
    """Drift that is tolerated, in per cent of perplexity."""
    noise_percent: int
    """Share of the examples that the baseline was asked twice."""
    concurrency: int
    """Examples that were under way at a time."""
    answer_tokens: int
    """Longest answer that was asked for where an example did not say."""
    seed: int
    """Of the order and of the resampling."""


class FailureDocument(Model):
    """Answers that are missing."""

    arm: str
    """`baseline`, `canary`, or `baselineAgain` for the baseline's second answer."""
    reason: str
    """Why, in a word: `timeout`, `reset`, `http5xx`, `deadline` (not asked for want of time) ..."""
    count: int
    """How many."""


class CellDocument(Model):
    """A measure over some of the examples. Harm is a share of the answers; drift nats per token."""

    by: Literal["all", "length", "kind"]
    """What the examples have in common."""
    name: str
    """Which: `all`, a bucket of length, or a kind."""
    pairs: int
    """Examples that give occasion to the measure."""
    baseline: float
    """Mean harm in the baseline's answers."""
    canary: float
    """Mean harm in the canary's answers."""
    difference: float
    """Mean of the paired differences: above zero the canary is worse."""
    lower: float
    """Lower end of its 95 % interval."""
    upper: float
    """Upper end; below the margin the cell passes."""
    sure: float | None
    """Lower bound corrected for all the looks; above the margin the cell fails. Null where the
    interval itself is not above the margin."""
    suspect: bool
    """It looks like harm beyond the margin, not for certain: it keeps the set from passing."""
    flips_p: float | None
    """Exact p-value of McNemar's test, as information; null where harm is no yes or no."""
    outcome: Outcome
    """What this cell says by itself."""


class MeasureDocument(Model):
    """One measure."""

    name: str
    """Its name."""
    title: str
    """Its name for people."""
    scale: Literal["share", "fraction", "nats"]
    """Harm in an answer: 0 or 1, a fraction, or nats per token."""
    judged: bool
    """Whether it decides."""
    margin: float
    """Harm that is tolerated."""
    noise: float | None
    """Mean harm in the baseline's second answers beyond its first ones; null: not measured."""
    noise_pairs: int
    """Examples that this rests on."""
    cells: tuple[CellDocument, ...]
    """Over all examples first, then by length and by kind."""


class ExampleMeasureDocument(Model):
    """The harm in two answers to one example."""

    name: str
    """The measure."""
    baseline: float
    """In the baseline's answer."""
    canary: float
    """In the canary's answer."""


class ExampleDocument(Model):
    """One example, without texts."""

    id: str
    """As in the set."""
    endpoint: str
    """Endpoint that was asked."""
    bucket: str
    """Bucket of its length."""
    kind: str
    """What can go wrong with it."""
    baseline_failure: str | None
    """Why the baseline did not answer; null: it did."""
    canary_failure: str | None
    """Why the canary did not answer; null: it did."""
    baseline_seconds: float
    """How long the baseline took."""
    canary_seconds: float
    """How long the canary took."""
    first_token: int | None
    """Token at which the answers part; null: nowhere, or the engines do not tell."""
    first_character: int | None
    """Character at which the answers part; null: nowhere."""
    length_ratio: float | None
    """Tokens of the canary's answer by those of the baseline's."""
    harms: tuple[ExampleMeasureDocument, ...]
    """What was measured of it."""


class WorstDocument(Model):
    """An example in which the canary did worst, with texts: as confidential as the set."""

    id: str
    """As in the set."""
    bucket: str
    """Bucket of its length."""
    kind: str
    """What can go wrong with it."""
    worse: tuple[str, ...]
    """Measures in which the canary is worse."""
    prompt: str
    """End of the prompt."""
    baseline: str
    """The baseline's answer, or why there is none."""
    canary: str
    """The canary's answer, or why there is none."""


class EvaluationDocument(Model):
    """What `eval -o json` prints, and `report.json`."""

    generated_at: datetime
    """When the report was written."""
    version: str
    """Version of the program that wrote it."""
    rollout: str | None
    """Namespace and name of the rollout, where it was asked about one."""
    dataset: str
    """The set, as it was named."""
    dataset_digest: str
    """SHA-256 of the file."""
    outcome: Outcome
    """The verdict."""
    message: str
    """The verdict in a sentence or two."""
    examples: int
    """Examples in the set."""
    answered: int
    """Examples that the baseline answered."""
    looks: int
    """Looks that were corrected for (Bonferroni)."""
    seconds: float
    """How long it took."""
    baseline: ArmDocument
    """The arm that is known to be good."""
    canary: ArmDocument
    """The arm in question."""
    settings: SettingsDocument
    """How the set was asked and judged."""
    failures: tuple[FailureDocument, ...]
    """Answers that are missing, by arm and reason."""
    unscored: tuple[FailureDocument, ...]
    """Pairs without drift, by reason; the arm is `canary`."""
    measures: tuple[MeasureDocument, ...]
    """What was measured."""
    worst: tuple[WorstDocument, ...]
    """Examples in which the canary did worst, worst first."""
    results: tuple[ExampleDocument, ...]
    """Every example, in the order of their ids."""


@dataclass(frozen=True, slots=True)
class Run:
    """An evaluation that has been run.

    Attributes:
        dataset: The set.
        baseline: The arm that is known to be good.
        canary: The arm in question.
        pace: How the examples were asked.
        margins: What is tolerated.
        results: What became of each example.
        judged: The verdict.
        now: When it was over.
        seconds: How long it took.
        rollout: Namespace and name of the rollout; None: none.
    """

    dataset: Dataset
    baseline: Arm
    canary: Arm
    pace: Pace
    margins: Margins
    results: Sequence[Result]
    judged: Judged
    now: datetime
    seconds: float
    rollout: str | None = None


def document(run: Run) -> EvaluationDocument:
    """Return the report for programs."""
    judged, results = run.judged, sorted(run.results, key=lambda result: result.id)
    return EvaluationDocument(
        generated_at=run.now,
        version=__version__,
        rollout=run.rollout,
        dataset=run.dataset.name,
        dataset_digest=run.dataset.digest,
        outcome=Outcome(judged.verdict.value),
        message=judged.message,
        examples=judged.examples,
        answered=judged.answered,
        looks=judged.looks,
        seconds=round(run.seconds, 1),
        baseline=_arm(run.baseline, results, BASELINE),
        canary=_arm(run.canary, results, CANARY),
        settings=SettingsDocument(
            margin_percent=round(100 * run.margins.answers, DIGITS),
            drift_percent=round(100 * run.margins.drift, DIGITS),
            noise_percent=run.pace.noise_percent,
            concurrency=run.pace.concurrency,
            answer_tokens=run.pace.answer_tokens,
            seed=run.pace.seed,
        ),
        failures=_counted(
            (arm, said.failure) for one in results for arm, said in one.said.items() if said.failure
        ),
        unscored=_counted((CANARY, one.unscored) for one in results if one.unscored),
        measures=tuple(_measures(judged)),
        worst=tuple(
            _worst(one, run.margins) for one in worst_examples(results, run.margins, WORST)
        ),
        results=tuple(_example(one) for one in results),
    )


def _arm(arm: Arm, results: Sequence[Result], name: str) -> ArmDocument:
    names = (name, AGAIN) if name == BASELINE else (name,)
    seen = {one.said[n].fingerprint for one in results for n in names if n in one.said}
    return ArmDocument(place=arm.place, model=arm.model, fingerprints=tuple(sorted(seen - {""})))


def _counted(reasons: Iterator[tuple[str, str]]) -> tuple[FailureDocument, ...]:
    counts: dict[tuple[str, str], int] = {}
    for key in reasons:
        counts[key] = counts.get(key, 0) + 1
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(
        FailureDocument(arm=arm, reason=reason, count=count) for (arm, reason), count in ranked
    )


def _measures(judged: Judged) -> Iterator[MeasureDocument]:
    noise = {cell.measure.name: cell for cell in judged.noise}
    for whole in (cell for cell in judged.cells if cell.by == ALL):
        measure = whole.measure
        alone = noise.get(measure.name)
        yield MeasureDocument(
            name=measure.name,
            title=measure.title,
            scale=measure.scale.value,
            judged=measure.judged,
            margin=_rounded(whole.margin),
            noise=None if alone is None else _rounded(alone.interval.mean),
            noise_pairs=0 if alone is None else alone.pairs,
            cells=tuple(_cell(cell) for cell in judged.cells if cell.measure is measure),
        )


def _cell(cell: Cell) -> CellDocument:
    by: Literal["all", "length", "kind"] = (
        "all" if cell.by == "all" else "length" if cell.by == "length" else "kind"
    )
    return CellDocument(
        by=by,
        name=cell.name,
        pairs=cell.pairs,
        baseline=_rounded(cell.baseline),
        canary=_rounded(cell.canary),
        difference=_rounded(cell.interval.mean),
        lower=_rounded(cell.interval.lower),
        upper=_rounded(cell.interval.upper),
        sure=None if cell.interval.lower <= cell.margin else _rounded(cell.sure),
        suspect=cell.is_suspect,
        flips_p=None if cell.chance is None else _rounded(cell.chance),
        outcome=Outcome(cell.verdict.value),
    )


def _example(one: Result) -> ExampleDocument:
    baseline, canary = one.said.get(BASELINE, Said()), one.said.get(CANARY, Said())
    return ExampleDocument(
        id=one.id,
        endpoint=one.endpoint,
        bucket=one.bucket,
        kind=one.kind.value,
        baseline_failure=baseline.failure or None,
        canary_failure=canary.failure or None,
        baseline_seconds=round(baseline.seconds, 3),
        canary_seconds=round(canary.seconds, 3),
        first_token=one.first_token,
        first_character=one.first_character,
        length_ratio=None if one.length_ratio is None else _rounded(one.length_ratio),
        harms=tuple(
            ExampleMeasureDocument(
                name=name, baseline=_rounded(harm.first), canary=_rounded(harm.second)
            )
            for name, harm in one.harms.items()
        ),
    )


def _worst(one: Result, margins: Margins) -> WorstDocument:
    def text(arm: str) -> str:
        said = one.said.get(arm, Said())
        return f"(no answer: {said.failure})" if said.failure else said.text

    return WorstDocument(
        id=one.id,
        bucket=one.bucket,
        kind=one.kind.value,
        worse=tuple(measure.name for measure, _, _ in worse(one, margins)),
        prompt=one.prompt,
        baseline=text(BASELINE),
        canary=text(CANARY),
    )


def _rounded(value: float) -> float:
    return round(value, DIGITS) + 0.0  # no negative zero
