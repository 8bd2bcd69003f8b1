"""Signals of the user's, as the spec has them: counters and histograms of the engines' pods."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_validator

from kvquant.api.fields import Model

MOST = 8
"""Custom signals of one rollout: each one takes a part of the error budget from all others."""

BUILT_IN = (
    *("latencyP50", "latencyP90", "latencyP99", "firstTokenP90", "firstTokenP99", "tokenTime"),
    *("delivered", "failures", "deaths", "pageFaults", "oomRetries", "p99"),
)
"""Names that are taken."""

_METRIC = "[a-zA-Z_:][a-zA-Z0-9_:]*"
# Any label but `le` and those that begin with two underscores: which metric is meant, and which of
# its buckets, is not for matchers to say. Of escapes, those that PromQL knows.
_LABEL = (
    "(?:_|_[a-zA-Z0-9][a-zA-Z0-9_]*|[a-km-zA-Z][a-zA-Z0-9_]*"
    "|l|l[a-df-zA-Z0-9_][a-zA-Z0-9_]*|le[a-zA-Z0-9_]+)"
)
_MATCHER = rf'{_LABEL} *(?:=~|!~|!=|=) *"(?:[^"\\\n]|\\[abfnrtv"\\])*"'
_PATTERN = rf"{_METRIC} *(?:\{{ *(?:{_MATCHER}(?: *, *{_MATCHER})* *,? *)?\}})?"
SELECTOR = re.compile(_PATTERN)
"""A metric, and matchers in braces if need be, for a match of all of a text."""

NO_SELECTOR = (
    "write a metric's name and, in braces, matchers of its labels, such as "
    'tool_calls_total{outcome="error"}: no functions, no ranges, and no matchers of `le` or of '
    "labels that begin with two underscores; the operator adds the pods itself"
)
"""What is said of anything else."""


def _selector(text: str) -> str:
    if not SELECTOR.fullmatch(text):
        raise ValueError(NO_SELECTOR)
    return text


_SELECTOR_RULE = {
    # RE2 reads the pattern as Python does, and a raw string of CEL ends at its first single quote,
    # of which the pattern has none. There is no `pattern` beside it, which would be shown, too.
    "rule": f"self.matches(r'^{_PATTERN}$')",
    "message": NO_SELECTOR,
}
Selector = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        json_schema_extra={"x-kubernetes-validations": [_SELECTOR_RULE]},
    ),
    AfterValidator(_selector),
]


class Ratio(Model):
    """Two counters of the engines' pods: the first counts a part of what the second counts."""

    events: Selector
    """Counter of what is harm, or of what is good (see direction): a metric's name and, in braces,
    matchers of its labels, such as `tool_calls_total{outcome="error"}`. The operator adds which
    pods are meant, the rate, and the sum; a series that is not shown counts as zero."""
    total: Selector
    """Counter of all of them, such as `tool_calls_total`."""


class LatencyHistogram(Model):
    """A histogram of seconds that the engines' pods export."""

    histogram: Selector
    """Its name without `_bucket`, and matchers in braces if need be, such as
    `rerank_duration_seconds{stage="final"}`."""
    percentile: Annotated[int, Field(ge=50, le=99)] = 90
    """The canary's observations beyond this percentile of the concurrent baseline's are counted.
    A higher one sees rarer harm and needs more observations."""


_Rule = dict[str, JsonValue]

_EITHER_RULE: _Rule = {
    "rule": "has(self.ratio) != has(self.latency)",
    "message": "say exactly one of ratio (two counters) and latency (a histogram of seconds)",
}
_DIRECTION_RULE: _Rule = {
    "rule": "!has(self.latency) || self.direction == 'increase'",
    "message": "direction is for a ratio: of a latency, longer is always worse; remove it",
}
_NAME_RULE: _Rule = {
    "rule": f"!(self.name in [{', '.join(repr(name) for name in BUILT_IN)}])",
    "message": "name is that of a signal which the operator has itself: choose another",
}

UNIQUE_RULE = {
    "rule": "self.all(one, self.exists_one(other, other.name == one.name))",
    "message": "names must differ from each other: rename or remove the repeated one",
}


class CustomSignal(Model):
    """A signal of your own, which joins the tests: say exactly one of ratio and latency."""

    model_config = ConfigDict(
        json_schema_extra={"x-kubernetes-validations": [_EITHER_RULE, _DIRECTION_RULE, _NAME_RULE]}
    )

    name: Annotated[str, Field(max_length=40, pattern=r"^[a-z][a-zA-Z0-9]*$")]
    """Name of the signal in status, reports and messages, in camel case, such as toolErrors. Not
    one of the built-in signals'."""
    ratio: Ratio | None = None
    """Compare a share: two counters."""
    latency: LatencyHistogram | None = None
    """Compare a duration: a histogram of seconds."""
    direction: Literal["increase", "decrease"] = "increase"
    """Which way of a ratio is harm: `increase`, as of errors, or `decrease`, as of cache hits."""
    tolerance_percent: Annotated[int, Field(ge=1, le=100)]
    """Of a ratio, the points per 100 by which the canary's share may be worse than the concurrent
    baseline's; of a latency, by how many per cent it may be slower."""

    @model_validator(mode="before")
    @classmethod
    def _exactly_one(cls, data: Any) -> Any:
        """Refuse what the API server refuses, for specs that are older than its rules."""
        if isinstance(data, dict):
            said = [name for name in ("ratio", "latency") if data.get(name) is not None]
            if len(said) != 1:
                raise ValueError("say exactly one of ratio and latency")
        return data
