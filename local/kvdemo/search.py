"""The demo's search for what was planted: when it looks, and what it says in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from kvdemo import traces
from kvlocal.problems import LocalError
from kvquant.api.v1alpha1 import Status


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether all is well, and why in words."""

    good: bool
    text: str


@dataclass(slots=True)
class Search:
    """Looks once for each rollout, when its copies were compared, and keeps what it found.

    Attributes:
        collect: Returns everything that was written, by its place.
        places: Names of the places that were searched.
        size: Characters that were searched.
        leaks: Where planted values were found, and which.
    """

    collect: Callable[[], Mapping[str, str]]
    places: set[str] = field(default_factory=set)
    size: int = 0
    leaks: dict[str, list[str]] = field(default_factory=dict)
    _replaced: set[str] = field(default_factory=set)
    _looked: set[str] = field(default_factory=set)
    _troubles: dict[str, str] = field(default_factory=dict)

    def once_compared(self, status: Status) -> None:
        """Look when a rollout's copies were compared; again, while that cannot be done."""
        if status.shadow is None or status.canary is None or status.weights.mirror:
            return
        rollout = status.canary.deployment
        if not status.shadow.pairs or rollout in self._looked:
            return
        try:
            self.take(self.collect())
        except LocalError as error:
            self._troubles[rollout] = str(error)
            return
        self._looked.add(rollout)
        self._troubles.pop(rollout, None)

    def take(self, texts: Mapping[str, str]) -> None:
        """Search texts, by their place."""
        self.places |= texts.keys()
        self.size += sum(map(len, texts.values()))
        self.leaks |= traces.leaks(texts)
        pairs = texts.get(traces.PAIRS, "")
        self._replaced |= {one for one in traces.PLACEHOLDERS if one in pairs}

    def verdict(self) -> Finding:
        """Return what was found; what could not be searched is no proof of anything."""
        what = "the planted e-mail and card"
        if self.leaks:
            return Finding(False, f"{what} appear in {', '.join(sorted(self.leaks))}")
        if self._troubles:
            why = "; ".join(sorted(set(self._troubles.values())))
            return Finding(False, f"{what} could not be searched for: {why}")
        if lacking := set(traces.PLACEHOLDERS) - self._replaced:
            names = ", ".join(f"{one}...>" for one in sorted(lacking))
            return Finding(False, f"{what}: {traces.PAIRS} has no {names}, so that none was copied")
        return Finding(
            True,
            f"{what} appear nowhere: no log of operator, router and shadow service or of the "
            f"pairs, no metric, Event, ConfigMap or status ({len(self.places)} places, "
            f"{self.size / 1e6:.1f} MB)",
        )


def compared(name: str, status: Status) -> Finding:
    """Return how many pairs of answers a rollout's verdict on copies rested on."""
    shadow = status.shadow
    if shadow is None or not shadow.pairs:
        return Finding(False, f"{name}: no pair of answers was compared")
    return Finding(
        True,
        f"{name}: {shadow.pairs} pairs of answers compared before any user met the canary, "
        f"{shadow.replaced or 0} personal values replaced",
    )
