"""What the models of the API are made of: the base model, durations, names and per cents."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

DURATION_PATTERN = r"^([0-9]{1,6}(s|m|h))+$"
_DURATION_PARTS = re.compile(r"([0-9]+)([smh])")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


_DURATION_RULE = {
    "rule": f"self.matches('{DURATION_PATTERN}')",
    "message": "write a duration in whole hours, minutes and seconds, such as 90s, 10m or 1h30m",
}
# The API server explains by the rule; editors, which know only plain schemas, by the pattern.
Duration = Annotated[
    str,
    Field(
        pattern=DURATION_PATTERN,
        max_length=16,
        json_schema_extra={"x-kubernetes-validations": [_DURATION_RULE]},
    ),
]
PositiveDuration = Annotated[
    str,
    Field(
        pattern=DURATION_PATTERN,
        max_length=16,
        json_schema_extra={
            "x-kubernetes-validations": [
                _DURATION_RULE,
                {
                    "rule": f"!self.matches('{DURATION_PATTERN}') || "
                    "duration(self) >= duration('1s')",
                    "message": "must last at least 1s",
                },
            ]
        },
    ),
]
Name = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
]
Percent = Annotated[int, Field(ge=0, le=100)]


def parse_duration(text: str) -> timedelta:
    """Return the length of a duration string such as `1h30m`.

    Raises:
        ValueError: The text does not match `DURATION_PATTERN`.
    """
    if not re.match(DURATION_PATTERN, text):
        raise ValueError(f"{text!r} is not a duration: write it like 90s, 10m or 1h30m")
    return timedelta(
        seconds=sum(int(number) * _SECONDS[unit] for number, unit in _DURATION_PARTS.findall(text))
    )


class Model(BaseModel):
    """Common settings: camelCase on the wire, immutable in memory, tolerant of newer fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )
