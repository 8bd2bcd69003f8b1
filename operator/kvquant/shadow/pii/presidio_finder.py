"""Names and places by presidio, for whoever installs the extra and bakes a model into the image."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any


class PresidioFinder:
    """A `Finder` that asks presidio's analyzer. Slow: mind the sanitizer's time."""

    def __init__(
        self,
        entities: Sequence[str] = ("PERSON", "LOCATION"),
        *,
        language: str = "en",
        least_score: float = 0.5,
        analyzer: Any = None,
    ) -> None:
        """Take what to look for, and presidio's own engine unless one is given.

        Raises:
            ValueError: presidio is not installed; the message names the extra.
        """
        if analyzer is None:
            try:
                presidio = importlib.import_module("presidio_analyzer")
            except ImportError as error:
                raise ValueError(
                    "presidio_analyzer is not installed; install kvquant[presidio] in the shadow "
                    "service's image, and a spaCy model with it, or leave the engine out"
                ) from error
            analyzer = presidio.AnalyzerEngine(supported_languages=[language])
        self._analyzer = analyzer
        self._entities = list(entities)
        self._language = language
        self._least = least_score

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Return start, end and kind of every name and place."""
        for result in self._analyzer.analyze(
            text=text,
            entities=self._entities,
            language=self._language,
            score_threshold=self._least,
        ):
            if result.start < result.end:
                yield result.start, result.end, result.entity_type
