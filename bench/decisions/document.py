"""The page in docs/: tables and plots, with what they were made by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.decisions import charts
from bench.decisions.kinds import KINDS
from bench.decisions.rollout import CAP, HELD, PROMOTED, ROLLED_BACK, RULES, Outcome
from bench.decisions.summary import Cell, by_cell
from bench.decisions.truth import BAD, GOOD, MILD, Truth
from kvquant.core.proportion import interval, upper

_PAGE = Path(__file__).parents[2] / "docs" / "decision-quality.md"
_INTRO = Path(__file__).with_name("page.md")
_MARK = "<!-- tables -->"


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that the page is made of.

    Attributes:
        outcomes: Every rollout under every rule.
        truths: What is true of each cell, by kind and load.
        made: The commands that made them, when and of what code, in words.
    """

    outcomes: Sequence[Outcome]
    truths: Mapping[tuple[str, str], Truth]
    made: Sequence[str]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _share(hits: int, of: int) -> str:
    if not of:
        return "-"
    low, high = interval(hits, of)
    return f"{_percent(hits / of)} ({_percent(low)}-{_percent(high)})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _of(results: Results, rule: str, verdict: str) -> list[Outcome]:
    return [
        o
        for o in results.outcomes
        if o.rule == rule and results.truths[o.kind, o.load].verdict == verdict
    ]


def _count(outcomes: Sequence[Outcome], end: str) -> int:
    return sum(o.end == end for o in outcomes)


def _totals(results: Results, rules: Sequence[str]) -> str:
    rows = []
    for rule in rules:
        good, bad = _of(results, rule, GOOD), _of(results, rule, BAD)
        back, through = _count(good, ROLLED_BACK), _count(bad, PROMOTED)
        cells = by_cell(good)
        worst = max(cells.values(), key=lambda cell: cell.rolled_back / cell.runs, default=None)
        caught, gross = Cell.of(bad), Cell.of([o for o in bad if KINDS[o.kind].gross])
        rows.append(
            [
                rule,
                _share(back, len(good)),
                "-" if not good else _percent(upper(back, len(good))),
                "-" if worst is None else _percent(worst.rolled_back / worst.runs),
                _share(_count(good, HELD), len(good)),
                _share(through, len(bad)),
                _share(_count(bad, HELD), len(bad)),
                _number(caught.delay),
                _number(gross.delay),
                _number(gross.sent, 0),
            ]
        )
    head = (
        *("rule", "good rolled back, %", "upper 95 % bound", "worst cell", "good held, %"),
        *("bad promoted, %", "bad held, %", "bad: minutes", "gross: minutes", "gross: requests"),
    )
    return _table(head, rows)


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _good_cells(results: Results, rules: Sequence[str], cells: Mapping[_Key, Cell]) -> str:
    rows = []
    for (kind, load), truth in results.truths.items():
        if truth.verdict != GOOD:
            continue
        row = [kind, load]
        for rule in rules:
            cell = cells.get((kind, load, rule))
            row.append("-" if cell is None else _back_and_held(cell))
        rows.append(row)
    return _table(("kind", "load", *rules), rows)


def _back_and_held(cell: Cell) -> str:
    back = f"{100 * cell.rolled_back / cell.runs:.0f}"
    return back + (f" + {100 * cell.held / cell.runs:.0f} held" if cell.held else "")


def _bad_cells(
    results: Results, rules: Sequence[str], cells: Mapping[_Key, Cell], verdict: str
) -> str:
    rows = []
    for (kind, load), truth in results.truths.items():
        if truth.verdict != verdict:
            continue
        row = [kind, load, _felt(truth)]
        for rule in rules:
            cell = cells.get((kind, load, rule))
            if cell is None:
                row.append("-")
                continue
            through = 100 * cell.promoted / cell.runs
            delay = "" if cell.delay is None else f"; {cell.delay:.1f} min"
            held = f" + {100 * cell.held / cell.runs:.0f} held" if cell.held else ""
            row.append(f"{through:.0f}{held}{delay}")
        rows.append(row)
    return _table(("kind", "load", "what users would feel", *rules), rows)


def _felt(truth: Truth) -> str:
    parts = []
    name, worst = max(truth.slower.items(), key=lambda item: item[1])
    if worst >= 1.05:
        often = f"{worst:.2f}" if worst < 100 else "over 100"
        parts.append("nothing ends" if math.isinf(worst) else f"{name} x {often}")
    if truth.failed >= 0.001:
        parts.append(f"{100 * truth.failed:.1f} % fail")
    if truth.deaths:
        parts.append(f"{truth.deaths:.0f} deaths/h")
    return ", ".join(parts) or "little"


def _ours(results: Results, cells: Mapping[_Key, Cell], rule: str) -> str:
    rows = []
    for (kind, load), truth in results.truths.items():
        cell = cells.get((kind, load, rule))
        if cell is None:
            continue
        rows.append(
            [
                *(kind, load, truth.verdict, str(cell.runs)),
                *(_share(n, cell.runs) for n in (cell.promoted, cell.rolled_back, cell.held)),
                *(_number(cell.promoted_after, 0), _number(cell.delay), _number(cell.sent, 0)),
            ]
        )
    head = (
        *("kind", "load", "truth", "runs", "promoted, %", "rolled back, %", "held, %"),
        *("promoted after, min", "rolled back after, min", "requests until then"),
    )
    return _table(head, rows)


_Key = tuple[str, str, str]


def write(results: Results) -> None:
    """Write the page and its plots."""
    cells = by_cell(results.outcomes)
    seen = {o.rule for o in results.outcomes}
    rules = [rule for rule in RULES if rule in seen]
    shares = {}
    for rule in rules:
        both = []
        for verdict, end in ((GOOD, ROLLED_BACK), (BAD, PROMOTED)):
            those = _of(results, rule, verdict)
            hits, of = _count(those, end), max(1, len(those))
            both.append((hits / of, *interval(hits, of)))
        shares[rule] = (both[0], both[1])
    _PAGE.with_name("decision-errors.svg").write_text(charts.errors(shares))
    bad = [
        kind
        for (kind, load), truth in results.truths.items()
        if load == "medium" and truth.verdict == BAD
    ]
    medians: dict[str, dict[str, float | None]] = {rule: {} for rule in rules}
    for rule in rules:
        for kind in bad:
            cell = cells.get((kind, "medium", rule))
            caught = cell is not None and cell.rolled_back * 2 > cell.runs
            medians[rule][kind] = cell.delay if cell is not None and caught else None
    _PAGE.with_name("decision-delays.svg").write_text(charts.delays(bad, medians, CAP / 60))
    parts = [
        "Made by " + ";\n".join(results.made) + ".\n",
        "### In short\n",
        _totals(results, rules),
        "![errors of each rule](decision-errors.svg)\n",
        "![delays of each rule](decision-delays.svg)\n",
        "### Good canaries: per cent rolled back\n",
        _good_cells(results, rules, cells),
        "### Bad canaries: per cent promoted, and median minutes to the rollback\n",
        _bad_cells(results, rules, cells, BAD),
        "### Hardly felt at this load: per cent promoted; in no total\n",
        _bad_cells(results, rules, cells, MILD),
        f"### {rules[0]}, cell by cell\n",
        _ours(results, cells, rules[0]),
        "### The kinds\n",
        _table(
            ("kind", "what"),
            [
                [k.name, k.what]
                for k in KINDS.values()
                if any(k.name == c for c, _ in results.truths)
            ],
        ),
    ]
    _PAGE.write_text(_INTRO.read_text().replace(_MARK, "\n".join(parts).strip()))
