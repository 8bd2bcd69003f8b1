"""The example set: JSON Lines with `{"id", "endpoint", "body", "expect"?}`. docs/evaluation.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from kvquant.core.shadow_settings import GENERATION_PATHS


class DatasetError(Exception):
    """A set that cannot be read, in a sentence that names the line and the remedy."""


class _Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class ExpectedCall(_Strict):
    """A tool call that an answer should have."""

    name: str
    """The tool."""
    arguments: Any = None
    """Its arguments; null: any."""


class Expected(_Strict):
    """What is known of a good answer. What is left out is judged by the baseline's answer."""

    citations: tuple[str, ...] | None = None
    """Markers that the answer should cite, as they stand in the prompt, without brackets."""
    tool_calls: tuple[ExpectedCall, ...] | None = None
    """All calls that the answer should have; an empty list: none."""
    json_schema: bool | dict[str, Any] | None = Field(default=None, alias="json")
    """The answer should be JSON; a schema: and fit it."""
    refuses: bool | None = None
    """Whether the answer should decline."""
    contains: tuple[str, ...] | None = None
    """Texts that the answer should contain, in whatever case."""

    @field_validator("citations", mode="before")
    @classmethod
    def _numbers_are_markers(cls, value: Any) -> Any:
        # People write [1, 4] for what stands as [1] and [4] in the prompt.
        return [str(one) for one in value] if isinstance(value, list) else value


class Example(_Strict):
    """A request, and what is known of a good answer to it."""

    id: str = Field(min_length=1, max_length=200)
    """Tells it apart."""
    endpoint: str
    """Path that is asked, such as /v1/chat/completions."""
    body: dict[str, Any]
    """The request, as a client would send it."""
    expect: Expected | None = None
    """What is known of a good answer."""

    @field_validator("endpoint")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in GENERATION_PATHS:
            raise ValueError(f"it is none of {', '.join(GENERATION_PATHS)}")
        return value

    @field_validator("id", mode="before")
    @classmethod
    def _numbers_are_ids(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


def read(path: Path, called: str = "") -> list[Example]:
    """Return the examples of a file.

    Args:
        path: The file.
        called: What the user calls it, where that is another name.

    Raises:
        DatasetError: It is no such file.
    """
    name = called or str(path)
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for number, value in json_lines(path, name):
        where = f"{name}, line {number}"
        try:
            example = Example.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "it"
            raise DatasetError(
                f"{where}: {field}: {first['msg']}. Files of other formats are brought into this "
                "one by `dataset import`"
            ) from None
        if example.id in seen:
            raise DatasetError(
                f"{where}: the id {example.id!r} is that of line {seen[example.id]}, too: each "
                "example needs its own"
            )
        seen[example.id] = number
        examples.append(example)
    if not examples:
        raise DatasetError(f"{name}: there is no example in it")
    return examples


def line(example: Example) -> str:
    """Return an example as a line of a file."""
    fields = example.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":")) + "\n"


def json_lines(path: Path, called: str = "") -> Iterator[tuple[int, Any]]:
    """Yield number and value of each line that is not blank.

    Args:
        path: The file.
        called: What the user calls it, where that is another name.

    Raises:
        DatasetError: The file cannot be read, or a line is no JSON.
    """
    name = called or str(path)
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                # A file that Windows has touched begins with a mark of its encoding.
                stripped = text.removeprefix(b"\xef\xbb\xbf").strip()
                if stripped:
                    yield number, _value(stripped, f"{name}, line {number}")
    except OSError as error:
        raise DatasetError(f"cannot read {name}: {error.strerror or error}") from error


def _value(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise DatasetError(
            f"{where}: it is no JSON document, one of which stands on each line"
        ) from None


def identity(endpoint: str, body: Mapping[str, Any]) -> str:
    """Return an id that follows from a request."""
    text = json.dumps([endpoint, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def unique(examples: Iterable[Example]) -> Iterator[Example]:
    """Yield the examples, each request once."""
    seen: set[str] = set()
    for example in examples:
        key = identity(example.endpoint, example.body)
        if key not in seen:
            seen.add(key)
            yield example
