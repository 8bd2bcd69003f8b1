"""Random kills of everything beside the engines, over many quick rollouts under load.

Every other rollout is of a canary that is too slow. Whatever is killed and when, the good ones must
be promoted and the bad ones rolled back, no weight may be skipped, nothing decided twice, and no
request lost but those that a router had which was killed.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import click

from kvdemo.load import Outcome
from kvlocal import addons, product
from kvlocal.cluster import Cluster
from kvquant.adapters.connection import Connection
from kvquant.api import names
from kvquant.api.v1alpha1 import DecisionKind, Phase, Status
from kvquant.world import pod_view
from tests.e2e.stage import ROUTER, Stage, failures
from tests.waiting import wait_until

STEPS = (20, 50, 100)
LADDER = [0, 20, 50, 80, 100]
LOST_BEFORE, LOST_AFTER = 15.0, 45.0
"""Seconds around the kill of a router in which requests may be lost: those that it was serving, and
those sent to its address until it is out of the Service. Kubernetes' controllers do that, which
take half a minute to begin anew after the API server was killed."""
ENDS_WITHIN = 600.0
PAUSE = (2.0, 12.0)
"""Seconds between two kills, at least and at most. Anything needs some seconds to come back, and a
rollout moves only while operator, routers and Prometheus are all there."""


@dataclass(slots=True)
class Toll:
    """What was killed, and what went wrong.

    Attributes:
        kills: Number of kills by victim.
        routers: When a router was killed, in seconds of `time.time`.
        rollouts: Number of rollouts by their end.
        requests: Number of requests sent.
        lost: Of these, how many a killed router took along.
        wrong: Every promise that was broken.
    """

    kills: Counter[str] = field(default_factory=Counter)
    routers: list[float] = field(default_factory=list)
    rollouts: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    lost: int = 0
    wrong: list[str] = field(default_factory=list)


def _victims(stage: Stage, toll: Toll) -> dict[str, Callable[[], bool]]:
    def router() -> bool:
        # Two at once would be nobody's to survive. The Deployment's own count may be an old one.
        pods = stage.pods(**{names.LABEL_ROUTER: ROUTER})
        if sum(pod_view(pod, None).ready for pod in pods) < 2:
            return False
        toll.routers.append(time.time())
        return stage.kill_and_replace(stage.namespace, **{names.LABEL_ROUTER: ROUTER})

    def api_server() -> bool:
        stage.restart_api_server()
        return True

    def prometheus() -> bool:
        # In the last step, the canary's latency is compared with the baseline's of the first step,
        # when that had the same load. Once that is lost with the store, the rollout waits for a
        # person to decide, by design.
        if stage.weights[-1:] not in ([], [0], [STEPS[0]]):
            return False
        return stage.kill_and_replace(addons.PROMETHEUS_NAMESPACE, app="prometheus")

    return {
        "operator": stage.kill_operator,
        "router": router,
        "Prometheus": prometheus,
        "API server": api_server,
    }


def _life(stage: Stage, good: bool, chance: random.Random, toll: Toll, most: int) -> None:
    """Play one rollout to its end and kill whatever chance chooses, at most so often."""
    stage.serve(faults="int8_per_token_head:decode_slowdown=3")
    name, dtype = ("good", "fp8") if good else ("bad", "int8")
    stage.roll_out(
        name,
        dtype,
        steps=[{"weight": weight, "soak": "10s"} for weight in STEPS],
        progressDeadline="10m",
        traffic={"router": {"name": ROUTER, "replicas": 2, "drainTimeout": "20s"}},
    )
    load = stage.send()
    victims = _victims(stage, toll)
    begun = time.monotonic()
    status = stage.status(name)
    while not status.settled and time.monotonic() < begun + ENDS_WITHIN:
        moment = time.monotonic() + chance.uniform(*PAUSE)

        def due(status: Status, moment: float = moment) -> bool:
            return status.settled or time.monotonic() >= moment

        status = stage.until(name, due, 60, "the next moment to kill should come")
        victim = chance.choice(sorted(victims))
        if status.settled or toll.kills.total() >= most:
            continue
        if victims[victim]():
            toll.kills[victim] += 1
    load.stop()
    toll.requests += len(load.outcomes)
    _judge(stage, status, good, load.outcomes, toll)
    unexplained = [o for o in failures(load) if not _by_router(o, toll)]
    toll.lost += len(failures(load)) - len(unexplained)
    toll.wrong += [f"{stage.namespace}: lost without a cause: {o}" for o in unexplained[:5]]


def _by_router(outcome: Outcome, toll: Toll) -> bool:
    return any(at - LOST_BEFORE < outcome.began < at + LOST_AFTER for at in toll.routers)


def _judge(stage: Stage, status: Status, good: bool, outcomes: list[Outcome], toll: Toll) -> None:
    wanted = Phase.PROMOTED if good else Phase.ROLLED_BACK
    toll.rollouts[status.phase.value] += 1
    where = f"{stage.namespace}, {'good' if good else 'bad'} canary"
    if not status.settled or status.phase is not wanted:
        toll.wrong.append(f"{where}: {status.phase.value} in the end: {status.verdict}")
    went = stage.weights[:-1] if not good and stage.weights[-1:] == [0] else stage.weights
    if went != LADDER[: len(went)]:
        toll.wrong.append(f"{where}: the weights went {stage.weights}")
    once = [d.reason for d in status.decisions if d.kind is DecisionKind.ADVANCE]
    # The promotion, which gives the canary the rest, is no step.
    if len(once) != len(set(stage.weights) - {0, 100}):
        toll.wrong.append(f"{where}: {len(once)} steps for the weights {stage.weights}")
    first = next((d.at for d in status.decisions if d.kind is DecisionKind.ADVANCE), None)
    early = [o for o in outcomes if o.from_canary and (not first or o.began < first.timestamp())]
    if early:
        toll.wrong.append(f"{where}: {len(early)} requests of the canary before its first step")


def _play(
    cluster: Cluster, connection: Connection, toll: Toll, kills: int, seconds: float, seed: int
) -> None:
    chance = random.Random(seed)
    begun, number = time.monotonic(), 0
    while toll.kills.total() < kills and time.monotonic() < begun + seconds:
        stage = Stage(cluster, connection, f"chaos-{number}")
        wait_until(lambda: cluster.describe()["ready"], 60, "the API server should answer")
        stage.open()
        try:
            _life(stage, number % 2 == 0, chance, toll, kills)
        finally:
            stage.close()
        number += 1
        click.echo(f"  {number} rollouts, {toll.kills.total()} of {kills} kills ...", err=True)


@click.command(help=__doc__)
@click.option("--kills", default=200, show_default=True)
@click.option("--seconds", default=7200.0, show_default=True, help="Begin no rollout after these.")
@click.option("--seed", default=1, show_default=True, help="Of what is killed, and when.")
@click.option("--cluster", "name", default="bench", show_default=True)
def main(kills: int, seconds: float, seed: int, name: str) -> None:
    """Kill; exit 1 when a promise was broken."""
    cluster = product.start(name)
    connection, toll = Connection.from_kubeconfig(str(cluster.kubeconfig)), Toll()
    try:
        _play(cluster, connection, toll, kills, seconds, seed)
    except KeyboardInterrupt:
        click.echo("interrupted: the rollout on its way does not count", err=True)
    finally:
        connection.close()
        cluster.down()
    for victim, count in sorted(toll.kills.items()):
        click.echo(f"{victim:12s} killed {count} times")
    for wrong in toll.wrong:
        click.echo(f"BROKEN: {wrong}")
    ends = ", ".join(f"{count} {phase}" for phase, count in sorted(toll.rollouts.items()))
    click.echo(
        f"{toll.kills.total()} kills within {toll.rollouts.total()} rollouts ({ends}): "
        f"{len(toll.wrong)} promises broken; {toll.lost} of {toll.requests} requests were lost, "
        f"with {len(toll.routers)} killed routers"
    )
    sys.exit(1 if toll.wrong else 0)


if __name__ == "__main__":
    main()
