"""`spec.evaluation`: an example set that both pools answer before the first step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvquant.api.fields import DURATION_PATTERN, Model, Name, PositiveDuration

DEFAULT_FILE = "set.jsonl"
"""Key of a ConfigMap, or path in a volume, when none is named."""

ONE_SOURCE = "name exactly one source of the example set: configMapName, claimName or url"

_RULES = [
    {
        "rule": "[has(self.configMapName), has(self.claimName), has(self.url)]"
        ".filter(named, named).size() == 1",
        "message": ONE_SOURCE,
    },
    {
        "rule": "!has(self.key) || has(self.configMapName)",
        "message": "key belongs to configMapName: remove it, or name the ConfigMap",
    },
    {
        "rule": "!has(self.path) || has(self.claimName)",
        "message": "path belongs to claimName: remove it, or name the PersistentVolumeClaim",
    },
    {
        "rule": "!has(self.secretName) || has(self.url)",
        "message": "secretName holds the credentials of a bucket: remove it, or name the url",
    },
]

_PATH_RULE = {
    "rule": "!self.startsWith('/') && !self.split('/').exists(part, part == '..')",
    "message": "write the path from the volume's root on, without a leading '/' and without '..', "
    "such as sets/rag.jsonl",
}

DEADLINE_RULE = {
    "rule": f"!self.deadline.matches('{DURATION_PATTERN}') || "
    "duration(self.deadline) <= duration('168h')",
    "message": "deadline may be 168h at most: choose a shorter one, or a smaller set",
}


class ExampleSet(Model):
    """Where the example set lies. Name exactly one source."""

    config_map_name: Name | None = None
    """ConfigMap in the rollout's namespace that holds the set (at most 1 MiB)."""
    key: Annotated[str | None, Field(max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")] = None
    """Key of that ConfigMap. Default: set.jsonl."""
    claim_name: Name | None = None
    """PersistentVolumeClaim in the rollout's namespace whose volume holds the set. It is mounted
    read-only."""
    path: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=512,
            json_schema_extra={"x-kubernetes-validations": [_PATH_RULE]},
        ),
    ] = None
    """Path of the set in that volume, from its root on. Default: set.jsonl."""
    url: Annotated[str | None, Field(max_length=512, pattern=r"^(s3|gs)://[^\s/]+/[^\s]+$")] = None
    """Object in a bucket, such as `s3://evaluations/rag.jsonl` or `gs://evaluations/rag.jsonl`."""
    secret_name: Name | None = None
    """Secret in the rollout's namespace whose keys become environment variables of the Job:
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL and the like."""

    @property
    def sources(self) -> int:
        """How many sources are named; an API server without the rules may let another than 1 in."""
        return sum(one is not None for one in (self.config_map_name, self.claim_name, self.url))


class Evaluation(Model):
    """An example set that both pools answer, in a Job, before the first step."""

    dataset: Annotated[ExampleSet, Field(json_schema_extra={"x-kubernetes-validations": _RULES})]
    """Where the example set lies."""
    model: Annotated[str | None, Field(min_length=1, max_length=256)] = None
    """Name of the model to ask for, in place of what each example names. Default: as it stands in
    the examples."""
    margin_percent: Annotated[int, Field(ge=1, le=100)] = 5
    """Examples per 100 that the canary may spoil and the baseline does not, for each measure."""
    drift_percent: Annotated[int, Field(ge=1, le=100)] = 5
    """By how much the canary may be more surprised by the baseline's answers (perplexity per token)
    than the baseline itself, in per cent."""
    noise_percent: Annotated[int, Field(ge=0, le=100)] = 20
    """Share of the examples for which the baseline is asked twice (A/A), in per cent: how much two
    answers of the same pool differ."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 4
    """Examples that are asked at a time, of both pools. The baseline answers users meanwhile."""
    deadline: PositiveDuration = "1h"
    """Longest time that the set may take, at most `168h`. What was not asked by then counts as not
    answered."""
    on_inconclusive: Literal["hold", "proceed", "rollback"] = "hold"
    """What to do when the answers do not decide: wait for a person, go on all the same, or roll
    back."""
    on_error: Literal["hold", "rollback"] = "hold"
    """What to do when the evaluation itself fails again and again (no set, no image, no time): wait
    for a person, or roll back. It never counts as passed."""
