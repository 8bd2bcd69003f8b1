"""The batches so far as columns of numbers: what is judged anew each time is read in one go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kvquant.core.analysis.sequential import Array

BASELINE, CANARY = 0, 1

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

FACTS = ("begin", "end", "step", "visit", "weight", "warm", "whole", "calm")
"""What holds for both arms of a batch: its begin and end in seconds since the epoch; the step and
the canary's weight in per cent in effect; which visit of a step it was; whether the weight had been
in effect for long enough, every pod was seen all the time, and no engine died."""

SIDES = (
    "started",
    "ended",
    "failed",
    "unanswered",
    "vanished",
    "finished",
    "preemptions",
    "tokens",
    "prompt_tokens",
    "queued",
    "running",
    "replicas",
)
"""What holds for one arm of a batch, NaN where it was not told: requests that came, that ended,
that ended badly, without an answer, and whose clients gave up; requests that the engines finished;
KV page faults; tokens generated, and of prompts; share of the requests in the system that wait;
requests being served; pods."""


_FACT = {name: index for index, name in enumerate(FACTS)}
_SIDE = {name: index for index, name in enumerate(SIDES)}


class Table:
    """Batches, each one row; grows as needed."""

    def __init__(self) -> None:
        self._rows = 0
        self._facts = np.empty((64, len(FACTS)))
        self._sides = np.empty((64, 2, len(SIDES)))
        self._bins: dict[str, Array] = {}

    def append(
        self,
        facts: Sequence[float],
        sides: tuple[Sequence[float], Sequence[float]],
        bins: tuple[Mapping[str, Array], Mapping[str, Array]],
    ) -> None:
        """Add a batch.

        Args:
            facts: By `FACTS`.
            sides: By `SIDES`, of the baseline and of the canary.
            bins: Increases of histograms: cumulative counts, then the sum.
        """
        row = self._rows
        if row == len(self._facts):
            self._facts, self._sides = _doubled(self._facts), _doubled(self._sides)
            self._bins = {name: _doubled(column) for name, column in self._bins.items()}
        self._facts[row] = facts
        self._sides[row] = sides
        for column in self._bins.values():
            column[row] = np.nan
        for arm, own in enumerate(bins):
            for name, values in own.items():
                if name not in self._bins:
                    if not np.isfinite(values[-2]):
                        # As long as its bounds are not known, there is nothing to keep.
                        continue
                    self._bins[name] = np.full((len(self._facts), 2, len(values)), np.nan)
                if self._bins[name].shape[2] == len(values):
                    self._bins[name][row, arm] = values
        self._rows += 1

    def set_last(self, fact: str, value: float) -> None:
        """Change a fact of the latest batch."""
        self._facts[self._rows - 1, _FACT[fact]] = value

    def keep(self, visit: int, most: int, of_all: int) -> None:
        """Drop the oldest batch of a visit, and of all, when there are more than so many."""
        if self._rows > of_all:
            self._drop(0)
        here = np.flatnonzero(self._facts[: self._rows, _FACT["visit"]] == visit)
        if len(here) > most:
            self._drop(int(here[0]))

    def _drop(self, row: int) -> None:
        for column in (self._facts, self._sides, *self._bins.values()):
            column[row : self._rows - 1] = column[row + 1 : self._rows]
        self._rows -= 1

    def all(self) -> Batches:
        """Return all batches."""
        rows = self._rows
        bins = {name: column[:rows] for name, column in self._bins.items()}
        return Batches(np.arange(rows), self._facts[:rows], self._sides[:rows], bins)


class Batches:
    """Some of the batches, in the order of time.

    Attributes:
        rows: Which of all batches they are.
    """

    def __init__(self, rows: Rows, facts: Array, sides: Array, bins: Mapping[str, Array]) -> None:
        self.rows = rows
        self._facts, self._sides, self._bins = facts, sides, bins
        self._waits: list[Mask | None] = [None, None]

    def __len__(self) -> int:
        return len(self._facts)

    def fact(self, name: str) -> Array:
        """Return what holds for both arms, by batch."""
        return self._facts[:, _FACT[name]]

    def side(self, name: str, arm: int) -> Array:
        """Return what holds for one arm, by batch."""
        return self._sides[:, arm, _SIDE[name]]

    def pods(self, arm: int) -> Array:
        """Return an arm's pods, at least one, by batch."""
        return np.maximum(1.0, self.side("replicas", arm))

    def waits(self, arm: int) -> Mask:
        """Tell where an arm has at least one request a pod that waits."""
        known = self._waits[arm]
        if known is None:
            share, running = self.side("queued", arm), self.side("running", arm)
            with np.errstate(invalid="ignore"):
                # The share is of what waits and runs; with nothing running, everything waits.
                among = share * running / np.maximum(1e-9, 1 - share)
                known = self._waits[arm] = np.where(share < 1, among, np.inf) >= self.pods(arm)
        return known

    @property
    def seconds(self) -> Array:
        """Lengths in seconds, by batch."""
        return self.fact("end") - self.fact("begin")

    def bins(self, name: str, arm: int) -> Array | None:
        """Return the increases of a histogram, by batch and bound, the sums last."""
        column = self._bins.get(name)
        return None if column is None else column[:, arm]

    def histogram(self, name: str, arm: int) -> Array:
        """Return the same of a histogram that some batch has.

        Raises:
            KeyError: None has.
        """
        return self._bins[name][:, arm]

    def told(self, name: str, arm: int) -> Mask:
        """Tell which batches have a histogram."""
        column = self._bins.get(name)
        if column is None:
            return np.zeros(len(self), dtype=np.bool_)
        return np.isfinite(column[:, arm, -2])

    def where(self, mask: Mask) -> Batches:
        """Return the batches for which the mask holds."""
        if mask.all():
            return self
        bins = _Lazy(self._bins, mask)
        return Batches(self.rows[mask], self._facts[mask], self._sides[mask], bins)


class _Lazy(Mapping[str, Array]):
    """Histograms of some of the batches, picked out when they are asked for."""

    def __init__(self, source: Mapping[str, Array], mask: Mask) -> None:
        self._source, self._mask = source, mask
        self._known: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._known:
            self._known[name] = self._source[name][self._mask]
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


def _doubled(column: Array) -> Array:
    return np.concatenate((column, np.empty_like(column)))


def finite(values: Array) -> Array:
    """Return the values with zero for what is not known."""
    return np.where(np.isfinite(values), values, 0.0)
