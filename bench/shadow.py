"""What live requests feel of the shadow plane: at work, dead, hung and flooded, against none.

No node is needed: client, Envoy, two simulated engines and the shadow service are processes on
loopback. All conditions take turns within each round, in an order drawn anew, so that whatever
else this machine does falls on all of them. One stands twice: how far apart two rounds without a
shadow are is what noise does.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click

from bench.router import PUNCTUAL, Times, drive
from bench.shadow_ratios import CONFIDENCE, Ratio, ratio
from bench.shadow_stage import BODY, FLOOD, Stage, stage
from kvdemo.load import percentile
from kvquant.core.shadow_settings import DROPPED, RECEIVED
from kvquant.shadow.metrics import BASELINE_ARM, SECONDS
from tests.router.harness import eventually

WARM_SECONDS = 1.0
"""Requests of this time are sent and not measured: a condition has begun when it is measured."""
QUANTILES = (0.5, 0.99)


@dataclass(slots=True)
class Seen:
    """What showed that the condition was there.

    Attributes:
        counts: What was counted, by name, over all rounds.
        missing: Names that counted nothing in some round.
    """

    counts: dict[str, float] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    def must(self, name: str, count: float) -> None:
        """Count what belongs to the condition: without any, it was not there."""
        self.may(name, count)
        if not count:
            self.missing.add(name)

    def may(self, name: str, count: float) -> None:
        """Count what is told and need not be."""
        self.counts[name] = self.counts.get(name, 0.0) + count

    def __str__(self) -> str:
        return ", ".join(f"{count:.0f} {name}" for name, count in self.counts.items())


@asynccontextmanager
async def without(_: Stage, __: int, ___: Seen) -> AsyncIterator[None]:
    """No shadow service, and nothing is copied."""
    yield


@asynccontextmanager
async def at_work(scene: Stage, percent: int, seen: Seen) -> AsyncIterator[None]:
    """Copies are received and replayed."""
    with scene.service(percent):
        await scene.serves()
        await scene.copy(percent)
        yield
        seen.must("copies received", await scene.told(RECEIVED))
        seen.must("replays by the baseline", await _replayed(scene))


@asynccontextmanager
async def dead(scene: Stage, percent: int, seen: Seen) -> AsyncIterator[None]:
    """Nobody listens where the copies go."""
    before = await scene.copies("upstream_cx_connect_fail")
    await scene.copy(percent)
    yield
    seen.must("connections refused", await scene.copies("upstream_cx_connect_fail") - before)


@asynccontextmanager
async def hung(scene: Stage, percent: int, seen: Seen) -> AsyncIterator[None]:
    """Connections are taken by the kernel, and nobody reads or answers."""
    with scene.service(percent) as process:
        await scene.serves()
        process.send_signal(signal.SIGSTOP)
        dropped = await scene.copies("upstream_rq_pending_overflow")
        await scene.copy(percent)
        yield
        seen.must("copies never answered", await scene.copies("upstream_rq_active"))
        seen.may("not sent any more", await scene.copies("upstream_rq_pending_overflow") - dropped)


@asynccontextmanager
async def flooded(scene: Stage, percent: int, seen: Seen) -> AsyncIterator[None]:
    """The queue is full all the time, since others send far more than is ever replayed."""
    with scene.service(percent):
        await scene.serves()
        await scene.copy(percent)
        with scene.flood():
            await eventually(lambda: _refused(scene), 30, "the queue should be full")
            counts: dict[str, Callable[[], Awaitable[float]]] = {
                "copies received": partial(scene.told, RECEIVED),
                "without room": partial(_refused, scene),
                "replays by the baseline": partial(_replayed, scene),
            }
            before = {name: await count() for name, count in counts.items()}
            yield
            for name, count in counts.items():
                seen.must(name, await count() - before[name])


async def _refused(scene: Stage) -> float:
    return await scene.told(DROPPED, 'reason="queue"')


async def _replayed(scene: Stage) -> float:
    return await scene.told(f"{SECONDS}_count", f'arm="{BASELINE_ARM}"')


Condition = Callable[[Stage, int, Seen], AbstractAsyncContextManager[None]]
NONE, AGAIN = "no shadow", "no shadow, again"
CONDITIONS: dict[str, Condition] = {
    NONE: without,
    AGAIN: without,
    "shadow at work": at_work,
    "shadow dead": dead,
    "shadow hung": hung,
    "shadow flooded": flooded,
}


@dataclass(slots=True)
class Measured:
    """One condition's rounds."""

    rounds: list[Times] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)

    @property
    def failed(self) -> int:
        """Requests of the live client without a whole answer."""
        return sum(times.failed for times in self.rounds)

    def seconds(self) -> list[list[float]]:
        """Seconds of the answered requests of each round."""
        return [times.last for times in self.rounds]

    def milliseconds(self, share: float) -> float:
        """Return a quantile of all rounds together."""
        return 1000 * (percentile([s for times in self.rounds for s in times.last], share) or 0.0)


async def measure(
    rounds: int, seconds: float, rate: float, percent: int, seed: int
) -> dict[str, Measured]:
    """Let the conditions take turns."""
    chance = random.Random(seed)
    measured = {name: Measured() for name in CONDITIONS}
    with tempfile.TemporaryDirectory() as folder:
        async with stage(Path(folder)) as scene:
            for number in range(rounds):
                for name in chance.sample(list(CONDITIONS), len(CONDITIONS)):
                    one = measured[name]
                    async with CONDITIONS[name](scene, percent, one.seen):
                        for length in (WARM_SECONDS, seconds):
                            times = await drive(
                                scene.session,
                                f"{scene.envoy.url}/v1/completions",
                                rate,
                                length,
                                body=BODY,
                                # The same moments for every condition of a round.
                                seed=seed + number,
                            )
                    one.rounds.append(times)
                    await scene.rest()
                click.echo(f"round {number + 1} of {rounds} is over", err=True)
    return measured


def tell(measured: dict[str, Measured], percent: int, seed: int) -> tuple[str, bool]:
    """Print the table.

    Returns:
        The last line, and whether no live request failed and every condition was really there.
    """
    base = measured[NONE].seconds()
    head = f"ratio [{CONFIDENCE:.0%}]"
    click.echo(
        f"| live requests with | p50 ms | {head} | p99 ms | {head} | requests | failed | seen |\n"
        "|---|--:|--:|--:|--:|--:|--:|---|"
    )
    ratios: dict[str, list[Ratio]] = {}
    for name, one in measured.items():
        ratios[name] = [ratio(one.seconds(), base, share, seed) for share in QUANTILES]
        cells = [
            f"{one.milliseconds(share):.1f} | {'1' if name == NONE else told}"
            for share, told in zip(QUANTILES, ratios[name], strict=True)
        ]
        count = sum(len(times.last) for times in one.rounds)
        click.echo(f"| {name} | {' | '.join(cells)} | {count} | {one.failed} | {one.seen} |")
    late = [late for one in measured.values() for times in one.rounds for late in times.late]
    latest = 1000 * (percentile(late, 0.99) or 0.0)
    busy = ": this machine was busy, and the figures are about that" if latest > PUNCTUAL else ""
    click.echo(f"\n{percent} % copied; requests were sent up to {latest:.1f} ms late (p99){busy}")
    slower = [
        f"{name} p{share * 100:g} {told}"
        for name, both in ratios.items()
        for share, told, noise in zip(QUANTILES, both, ratios[AGAIN], strict=True)
        if told.slower_than(noise)
    ]
    absent = [
        f"{name}: no {what}" for name, one in measured.items() for what in sorted(one.seen.missing)
    ]
    failed = sum(one.failed for one in measured.values())
    verdict = f"beyond noise: {'; '.join(slower)}" if slower else "p50 and p99 within noise"
    worst = max(ratios.items(), key=lambda item: item[1][1].value)
    line = (
        f"live requests with a shadow at work, dead, hung or flooded: {failed} failed, {verdict}; "
        f"largest p99 ratio {worst[1][1]} ({worst[0]})"
    )
    if absent:
        line += f"; not shown, because it did not happen: {'; '.join(absent)}"
    return line, not failed and not absent


@click.command(help=__doc__)
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(2, 100))
@click.option(
    *("--seconds", "seconds"),
    default=7.0,
    show_default=True,
    type=click.FloatRange(1, 60),
    help="Of each condition in each round.",
)
@click.option(
    *("--rate", "rate"),
    default=20.0,
    show_default=True,
    type=click.FloatRange(1, 200),
    help="Live requests per second. The simulated engine is near its end at 40.",
)
@click.option("--percent", default=10, show_default=True, type=click.IntRange(1, 50))
@click.option("--seed", default=1000, show_default=True)
def main(rounds: int, seconds: float, rate: float, percent: int, seed: int) -> None:
    """Measure and tell."""
    measured = asyncio.run(measure(rounds, seconds, rate, percent, seed))
    click.echo(
        f"{rounds} rounds of {seconds:g} s, {rate:g} requests/s, flood {FLOOD:g} copies/s, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}, seed {seed}\n"
    )
    line, good = tell(measured, percent, seed)
    click.echo(line)
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    main()
