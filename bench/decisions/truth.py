"""Whether a canary is bad at a load: a whole fleet runs it for an hour, and another the baseline's.

A kind says what it means to be; this says what users would feel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from bench.decisions.histogram import quantile
from bench.decisions.kinds import KINDS, Kind
from bench.decisions.profiles import AUTO
from bench.decisions.rollout import capacity
from bench.decisions.traffic import MIXES
from bench.decisions.world import CANARY, World

_SETTLING, _HOUR = 900.0, 3600.0
HARM, HARMLESS = 1.25, 1.1
"""By how much slower is bad, and up to how much is good; between them opinions differ."""
_FAILURES = 0.005
_DEATHS = 2
"""Deaths in an hour from which a canary is bad: one can be bad luck."""

GOOD, BAD, MILD = "good", "bad", "mild"


@dataclass(frozen=True, slots=True)
class Truth:
    """What the whole fleet feels, as ratios of the canary's engine to the baseline's.

    Attributes:
        verdict: GOOD, BAD, or MILD: its harm is hardly felt at this load, so that opinions differ
            and the cell is left out of the totals.
        slower: Ratios of p50, p90 and p99 end to end, p90 to the first token and mean between
            tokens, by name; infinite when nothing finishes.
        failed: Share of requests that failed, beyond the baseline's.
        deaths: Deaths in the hour, beyond the baseline's.
    """

    verdict: str
    slower: dict[str, float]
    failed: float
    deaths: float


def _felt(kind: Kind, load: float, mix: str) -> tuple[dict[str, float], float, float]:
    world = World(kind, load * kind.pods * capacity(mix), mix, "truth")
    world.scale(CANARY, kind.pods, cold=False)
    world.weight = 100.0
    world.run(_SETTLING)
    world.begin()
    # What ended well within the hour, of what was begun in it: a fleet that hangs has next to none.
    before, failed_before = world.canary_counts()
    world.latencies = []
    world.run(_SETTLING + _HOUR)
    sent, failed = world.canary_counts()
    times = sorted(world.latencies)
    missing = int(max(0, sent - before - len(times)) * (len(times) < 0.5 * (sent - before)))
    times += [math.inf] * missing
    pods = world.sides[CANARY].pods
    first = [sum(counts) for counts in zip(*(pod.ttft.bins().counts for pod in pods), strict=True)]
    tokens = sum(sum(pod.itl.counts) for pod in pods)
    values = {f"p{q}": times[min(len(times) - 1, int(q / 100 * len(times)))] for q in (50, 90, 99)}
    values["TTFT p90"] = quantile(0.9, pods[0].ttft.bounds, first)
    values["ITL"] = sum(pod.itl.sum for pod in pods) / tokens
    share = (failed - failed_before) / max(1, sent - before)
    return values, share, float(world.sides[CANARY].deaths)


@cache
def truth(kind_name: str, load_name: str) -> Truth:
    """Return what is true of a cell, over both mixes of lengths."""
    kind = KINDS[kind_name]
    load = dict(kind.loads)[load_name]
    control = replace(kind, profile=AUTO, errors=0.0, crash="", hang=False)
    ratios: dict[str, list[float]] = {}
    failed = deaths = 0.0
    for mix in MIXES:
        values, share, died = _felt(kind, load, mix)
        usual, usual_share, usual_died = _felt(control, load, mix)
        for name, value in values.items():
            ratios.setdefault(name, []).append(value / usual[name])
        failed += (share - usual_share) / len(MIXES)
        deaths += (died - usual_died) / len(MIXES)
    slower = {name: sum(both) / len(both) for name, both in ratios.items()}
    worst = max(slower.values())
    if worst >= HARM or failed >= _FAILURES or deaths >= _DEATHS:
        verdict = BAD
    elif worst <= HARMLESS and not kind.bad:
        verdict = GOOD
    else:
        verdict = MILD
    return Truth(verdict, slower, failed, deaths)
