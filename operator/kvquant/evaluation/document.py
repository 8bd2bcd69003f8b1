"""The whole report of an evaluation, for programs: report.json, and what the CLI prints."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from kvquant.api.fields import Model
from kvquant.core.evaluation_summary import Outcome


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
