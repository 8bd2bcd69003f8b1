"""How well our analysis and its peers decide, on simulated rollouts in the closed loop.

Every rollout is simulated from its kind, its load and its number alone, so that any row can be had
again. What the rules are, and what of the peers' source they follow, is written in their modules.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import click

from bench.decisions.document import Results, write
from bench.decisions.kinds import KINDS
from bench.decisions.rollout import HELD, PROMOTED, ROLLED_BACK, RULES, Outcome, rollout
from bench.decisions.summary import Cell
from bench.decisions.truth import Truth, truth

_KEPT = Path("build/decisions.json")
_Case = tuple[str, str, int, tuple[str, ...]]
_Cell = tuple[str, str]


def _run(case: _Case) -> list[Outcome]:
    return rollout(*case)


def _truth(cell: _Cell) -> Truth:
    return truth(*cell)


def _choice(all_of: Sequence[str], wanted: str) -> list[str]:
    names = [name for name in wanted.split(",") if name] or list(all_of)
    for name in names:
        if name not in all_of:
            raise click.BadParameter(f"{name} is none of {', '.join(all_of)}")
    return names


def _progress(
    results: Iterator[list[Outcome]], runs: int, cells: Sequence[_Cell]
) -> Iterator[Outcome]:
    """Pass the outcomes on, and print a line a cell, as soon as it is complete."""
    begun = time.monotonic()
    for number, (kind, load) in enumerate(cells, 1):
        those = [outcome for _ in range(runs) for outcome in next(results)]
        yield from those
        click.echo(f"[{number}/{len(cells)}] {kind}/{load}, {time.monotonic() - begun:.0f} s")
        for rule in (rule for rule in RULES if any(o.rule == rule for o in those)):
            cell = Cell.of([o for o in those if o.rule == rule])
            delay = "" if cell.delay is None else f", after {cell.delay:.1f} min"
            click.echo(
                f"    {rule:14s} {PROMOTED} {cell.promoted:4d}, {ROLLED_BACK} "
                f"{cell.rolled_back:4d}{delay}, {HELD} {cell.held:4d}"
            )


def _made() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"commit {commit or 'unknown'}, {datetime.now(UTC):%Y-%m-%d}"


@click.command(help=__doc__)
@click.option("--runs", default=100, show_default=True, help="Rollouts of each kind and load.")
@click.option("--kinds", default="", help=f"Some of {', '.join(KINDS)}, by commas. All if empty.")
@click.option("--loads", default="", help="Some of low, medium, high and a kind's own, by commas.")
@click.option("--rules", default="", help=f"Some of {', '.join(RULES)}, by commas.")
@click.option("--seed", default=0, show_default=True, help="Number of the first run.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, help="Processes.")
@click.option("--keep", default=_KEPT, show_default=True, type=Path, help="All outcomes, as JSON.")
@click.option("--page/--no-page", default=True, show_default=True, help="Write docs/ anew.")
@click.option("--merge", is_flag=True, help="Keep what was kept of other rules and cells.")
@click.option("--again", is_flag=True, help="Write docs/ from what was kept, and run nothing.")
def main(
    runs: int,
    kinds: str,
    loads: str,
    rules: str,
    seed: int,
    jobs: int,
    keep: Path,
    page: bool,
    merge: bool,
    again: bool,
) -> None:
    """Measure, keep and write."""
    if again:
        write(_read(keep))
        return
    wanted = _choice(tuple(RULES), rules)
    at = set(loads.split(",")) if loads else None
    cells = [
        (kind, load)
        for kind in _choice(tuple(KINDS), kinds)
        for load, _ in KINDS[kind].loads
        if at is None or load in at
    ]
    cases = [(k, load, run, tuple(wanted)) for k, load in cells for run in range(seed, seed + runs)]
    # The commit is read first: whoever else works on this tree may move on in the meantime.
    begun, commit = time.monotonic(), _made()
    with multiprocessing.Pool(jobs) as pool:
        truths = dict(zip(cells, pool.map(_truth, cells, chunksize=1), strict=True))
        click.echo(f"truth of {len(cells)} cells, {time.monotonic() - begun:.0f} s")
        outcomes = list(_progress(pool.imap(_run, cases, chunksize=2), runs, cells))
    which = f" --rules {rules}" if rules else ""
    which += f" --kinds {kinds}" if kinds else ""
    which += f" --loads {loads}" if loads else ""
    took = (time.monotonic() - begun) / 60
    made = (
        f"`python -m bench.decisions --runs {runs} --seed {seed}{which}`: {commit}, "
        f"{took:.0f} minutes on {jobs} process{'es' if jobs > 1 else ''}"
    )
    results = Results(outcomes, truths, [made])
    if merge and keep.exists():
        results = _merged(_read(keep), results)
    keep.parent.mkdir(parents=True, exist_ok=True)
    keep.write_text(
        json.dumps(
            {
                "made": results.made,
                "truths": [[*cell, asdict(that)] for cell, that in results.truths.items()],
                "outcomes": [asdict(outcome) for outcome in results.outcomes],
            }
        )
    )
    click.echo(f"kept in {keep}")
    if page:
        write(results)


def _merged(old: Results, new: Results) -> Results:
    """Put new outcomes in the place of old ones of the same rules and cells."""
    replaced = {(o.kind, o.load, o.rule) for o in new.outcomes}
    kept = [o for o in old.outcomes if (o.kind, o.load, o.rule) not in replaced]
    truths = {**old.truths, **new.truths}
    order = [(kind, load) for kind in KINDS for load, _ in KINDS[kind].loads]
    return Results(
        [*kept, *new.outcomes],
        {cell: truths[cell] for cell in order if cell in truths},
        [*old.made, *new.made],
    )


def _read(keep: Path) -> Results:
    kept = json.loads(keep.read_text())
    return Results(
        [Outcome(**outcome) for outcome in kept["outcomes"]],
        {(kind, load): Truth(**that) for kind, load, that in kept["truths"]},
        kept["made"],
    )


if __name__ == "__main__":
    main()
