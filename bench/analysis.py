"""What the analysis of many rollouts costs for one tick, on one core.

Every rollout is in its second step, with an hour of evidence behind it, so that the evidence of
this step is judged and that of both. Half of them complete a batch at each tick, as in life (a
batch is two ticks); the other half are the next tick's.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from statistics import median

import click

from bench.fleet import Fleet
from kvquant.core.analysis import Analysis
from kvquant.core.ticking import GRID

STEP = GRID.total_seconds()


@click.command(help=__doc__)
@click.option("--rollouts", default=1000, show_default=True, help="How many.")
@click.option("--pods", default=1, show_default=True, help="Engine pods of each pool.")
@click.option("--past", default=240, show_default=True, help="Ticks of evidence before, 15 s each.")
@click.option("--looks", default=6, show_default=True, help="Ticks that are measured.")
@click.option("--most", default=1.0, show_default=True, help="Seconds that one tick may take.")
def main(rollouts: int, pods: int, past: int, looks: int, most: float) -> None:
    """Measure and tell."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # The past of one rollout serves all: what it costs to judge does not depend on its numbers.
    one = Fleet(1, pods=pods)
    begin = one.began + 600 * STEP
    needs = one.needs(begin)
    (timeline,) = one.timelines(needs, begin, begin + (past + looks + 1) * STEP).values()
    # Before the canary has traffic, then the two steps, half of the time each.
    ticks = [
        replace(tick, step=0 if index == 0 else 1 if index < past // 2 else 2)
        for index, tick in enumerate(timeline.ticks)
    ]
    click.echo(f"  {rollouts} rollouts take in {past} ticks each ...")
    analyses = []
    for index in range(rollouts):
        analysis = Analysis()
        # Half of them are a tick further, so that their batches end at the other ticks.
        for tick in ticks[: past + index % 2]:
            analysis.take(tick)
        analysis.report()
        analyses.append(analysis)
    took = []
    for look in range(looks):
        start = time.process_time()
        for index, analysis in enumerate(analyses):
            analysis.take(ticks[past + index % 2 + look])
            analysis.report()
        took.append(time.process_time() - start)
    signals = len(analyses[0].report().signals)
    click.echo(
        f"  {rollouts} rollouts x {signals} signals: {median(took):.2f} s of one core for a tick "
        f"(of {looks}: {', '.join(f'{one:.2f}' for one in took)})"
    )
    if median(took) > most:
        click.echo(f"  that is more than {most:g} s")
        sys.exit(1)


if __name__ == "__main__":
    main()
