"""How long a canary still gets requests after the kill switch is pulled, on a real node under load.

Each round begins with a canary that answers half of the requests. The clock starts before the kill
is asked for, and stops when the last request that a canary answered was sent: all of it as the
client sees it, who knows from the fingerprint which pool has answered.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass

import click

from kvdemo.load import Load, percentile
from kvlocal import product
from kvquant.adapters.connection import Connection
from kvquant.api import names
from tests.e2e.stage import Stage
from tests.waiting import wait_until

ROLLOUT = "fp8"
TARGET = 1.0
"""Seconds within which the canary must have got its last request."""
WATCHED = 60
"""Requests after a kill that must all have gone to the baseline before the kill is lifted."""


@dataclass(frozen=True, slots=True)
class Round:
    """One kill, in seconds of `time.time`.

    Attributes:
        asked: Before it was asked for.
        committed: When the status was seen to say so.
        lifted: When its end was asked for.
    """

    asked: float
    committed: float
    lifted: float


def _command_line(stage: Stage, verb: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "kvquant.cli", verb, ROLLOUT, "-n", stage.namespace, "--no-wait"],
        env={**os.environ, "KUBECONFIG": str(stage.cluster.kubeconfig)},
        check=True,
        capture_output=True,
    )


def _round(stage: Stage, load: Load, cli: bool) -> Round:
    stage.until(ROLLOUT, lambda s: s.weights.canary == 50, 120, "half of the traffic should move")
    since = time.time()
    wait_until(
        lambda: sum(o.from_canary and o.began > since for o in load.outcomes) >= 10,
        60,
        "the canary should answer",
        0.1,
    )
    asked = time.time()
    if cli:
        _command_line(stage, "kill")
    else:
        stage.ask(ROLLOUT, names.ANNOTATION_KILLED, "bench")
    wait_until(lambda: stage.status(ROLLOUT).killed, 30, "the kill should be committed", 0.02)
    committed = time.time()
    wait_until(
        lambda: sum(o.began > committed for o in load.outcomes) >= WATCHED,
        60,
        "requests should be answered",
        0.1,
    )
    lifted = time.time()
    stage.ask(ROLLOUT, names.ANNOTATION_KILLED, None)
    return Round(asked, committed, lifted)


def _last_answered(load: Load, this: Round) -> float:
    """Return seconds from the kill to the last request that a canary got; 0 if it got none."""
    hit = [o.began for o in load.outcomes if o.from_canary and this.asked <= o.began < this.lifted]
    return max(hit) - this.asked if hit else 0.0


def _play(stage: Stage, kills: int, rate: float, cli: bool) -> bool:
    stage.serve()
    stage.roll_out(ROLLOUT, "fp8", steps=[{"weight": 50, "soak": "12h"}, {"weight": 100}])
    load = stage.send(rate)
    rounds = []
    for number in range(kills):
        rounds.append(_round(stage, load, cli))
        click.echo(f"  kill {number + 1} of {kills} ...", err=True)
    load.stop()
    # Only now has every request ended, those included that were on their way during a kill.
    click.echo("kill  committed after (s)  last request of the canary sent after (s)")
    last = [_last_answered(load, this) for this in rounds]
    for number, (this, seconds) in enumerate(zip(rounds, last, strict=True), 1):
        click.echo(f"{number:4d}  {this.committed - this.asked:19.3f}  {seconds:41.3f}")
    failed = [o for o in load.outcomes if o.problem]
    for outcome in failed[:5]:
        click.echo(f"failed: {outcome.problem}")
    within = sum(seconds <= TARGET for seconds in last)
    click.echo(
        f"kill switch, {rate:g} requests/s, canary 50 %: {within} of {kills} within {TARGET:g} s; "
        f"median {percentile(last, 0.5):.3f} s, p95 {percentile(last, 0.95):.3f} s, "
        f"max {max(last):.3f} s; {len(load.outcomes)} requests, {len(failed)} failed"
    )
    return within == kills


@click.command(help=__doc__)
@click.option("--kills", default=20, show_default=True)
@click.option("--rate", default=20.0, show_default=True, help="Requests per second.")
@click.option("--cli", is_flag=True, help="Kill with kubectl kvquant, whose start counts too.")
@click.option("--cluster", "name", default="bench", show_default=True)
def main(kills: int, rate: float, cli: bool, name: str) -> None:
    """Measure; exit 1 when a kill took longer than the target."""
    cluster = product.start(name)
    connection = Connection.from_kubeconfig(str(cluster.kubeconfig))
    stage = Stage(cluster, connection, "bench-kill")
    try:
        stage.open()
        good = _play(stage, kills, rate, cli)
    finally:
        stage.close()
        connection.close()
        cluster.down()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
