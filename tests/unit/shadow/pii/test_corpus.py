"""A small corpus holds what `make bench-pii` measures on a large one."""

from __future__ import annotations

from itertools import chain

from bench.pii_corpus import KINDS, hard, measured, planted
from kvquant.shadow.pii import Sanitizer


def test_recall_and_precision_of_every_kind_hold_on_a_small_corpus() -> None:
    sanitizer = Sanitizer(b"a key of the tests", seconds=60)

    tallies = measured(sanitizer, chain(planted(11, 60), hard(11, 300)))

    for kind in KINDS:
        one = tallies[kind]
        assert one.planted > 50, kind
        # A kind has some 150 values here: one or two mistakes are chance.
        assert one.planted - one.gone <= 2, (kind, one.missed)
        assert one.precision >= 0.92, (kind, one.wrong)
