"""One rollout in the closed loop: the rule decides, the traffic moves, the rule sees the effect.

All rules see the same system for as long as they want the same; where they part, the simulated
world is copied and each goes on with its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from bench.decisions.argo import Argo
from bench.decisions.books import Books
from bench.decisions.engine import Pod, Request
from bench.decisions.flagger import Flagger
from bench.decisions.kayenta import Kayenta
from bench.decisions.kinds import KINDS, Kind
from bench.decisions.naive import Proportions
from bench.decisions.profiles import AUTO
from bench.decisions.rules import SOAK, Look, Move, Rule
from bench.decisions.traffic import MIXES, Traffic
from bench.decisions.world import BASELINE, CANARY, SCRAPE, World

BEFORE = 600.0
"""Seconds that the baseline serves alone before the canary gets traffic."""
WATCHED_BEFORE = 120.0
"""The last of these, in which the analysis already looks."""
CAP = 3 * 3600.0
"""Seconds after which a rollout that was neither promoted nor rolled back is held."""

PROMOTED, ROLLED_BACK, HELD = "promoted", "rolled back", "held"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one rollout ended under one rule.

    Attributes:
        kind: Name of the kind.
        load: Name of the load.
        run: Number of the run: its seed, and the odd ones have the other mix of lengths.
        rule: Name of the rule.
        end: PROMOTED, ROLLED_BACK or HELD.
        minutes: From the begin of the rollout to its end.
        delay: Minutes from when the fault could first be felt to its end.
        step: Step in which it ended.
        sent: Requests that the canary was sent while it was faulty.
        failed: Requests of the canary that failed.
        why: What the rule said.
    """

    kind: str
    load: str
    run: int
    rule: str
    end: str
    minutes: float
    delay: float
    step: int
    sent: int
    failed: int
    why: str


@cache
def capacity(mix: str) -> float:
    """Return the requests a second that one baseline pod finishes when it never runs dry."""
    traffic, pod, now = Traffic(1.0, "poisson", mix, "capacity"), Pod("pod", AUTO, 1, 0.0), 0.0
    for _ in range(3000):
        pod.arrive(0.0, Request(0.0, *traffic.lengths(), 0))
    while pod.finished < 2500:
        now = pod.due_at
        pod.due(now)
    return pod.finished / now


def canary_pods(weight: int, baseline: int) -> int:
    """Return the canary's pods for a weight, by the rule that the product documents.

    Never more load for a pod than a baseline pod had before the rollout, and of the numbers that
    allow it the one whose load per pod is nearest to the baseline's in the same step.
    """
    fewest = max(1, math.ceil(weight * baseline / 100))
    share = weight * baseline / (100 - weight)
    return min(range(fewest, baseline + 1), key=lambda pods: abs(math.log(share / pods)))


@cache
def history(arrivals: str, pods: int, mix: str, rate: float) -> float:
    """Return the p99 in seconds that an hour of the baseline alone has shown."""
    kind = Kind("history", False, "the hour before", arrivals=arrivals, pods=pods)
    world, books = World(kind, rate, mix, "history"), Books()
    world.run(BEFORE)
    books.read(world)
    first = books
    world.run(BEFORE + 3600.0)
    books.read(world)
    counted = first.increase(BASELINE, world.now, 4000.0)
    assert counted is not None
    return counted.quantile(0.99)


def _ours(_: float) -> Rule:
    # Read late, so that the peers can be driven without the operator's code.
    from bench.decisions.ours import Ours

    return Ours("kvquant")


RULES: dict[str, Callable[[float], Rule]] = {
    "kvquant": _ours,
    "flagger-tight": lambda p99: Flagger("flagger-tight", 60.0, 1.25 * p99),
    "flagger-loose": lambda p99: Flagger("flagger-loose", 300.0, 2.0 * p99),
    "argo-tight": lambda p99: Argo("argo-tight", 120.0, 1.25 * p99),
    "argo-loose": lambda p99: Argo("argo-loose", 120.0, 2.0 * p99),
    "kayenta-tight": lambda _: Kayenta("kayenta-tight", 95.0, 75.0),
    "kayenta-loose": lambda _: Kayenta("kayenta-loose", 75.0, 50.0),
    "z-test": lambda _: Proportions("z-test"),
}
"""Rules by name; each is made of the p99 that the baseline's history shows."""


@dataclass(slots=True)
class _Branch:
    """A world, and the rules that have wanted the same of it so far."""

    world: World
    books: Books
    rules: list[Rule]
    step: int
    since: float


def rollout(kind_name: str, load_name: str, run: int, rules: Sequence[str]) -> list[Outcome]:
    """Roll one canary out under each of the rules."""
    kind = KINDS[kind_name]
    mix = MIXES[run % len(MIXES)]
    rate = dict(kind.loads)[load_name] * kind.pods * capacity(mix)
    slowest = history(kind.arrivals, kind.pods, mix, rate)
    world = World(kind, rate, mix, f"{kind_name} {load_name} {run}")
    branch = _Branch(world, Books(), [RULES[name](slowest) for name in rules], 0, BEFORE)
    world.scale(CANARY, canary_pods(kind.ladder[0], kind.pods), cold=False)
    at = BEFORE - WATCHED_BEFORE
    while at < BEFORE:
        world.run(at)
        for rule in branch.rules:
            rule.look(_look(branch, kind))
        at += SCRAPE
    world.run(BEFORE)
    world.begin()
    _climb(branch, kind)
    outcomes: list[Outcome] = []
    branches = [branch]
    while branches:
        branch = branches.pop()
        while branch.rules:
            branches += _turn(branch, kind, (kind_name, load_name, run), outcomes)
    return outcomes


def _climb(branch: _Branch, kind: Kind) -> None:
    branch.step += 1
    branch.since = branch.world.now
    weight = kind.ladder[branch.step - 1]
    branch.world.scale(CANARY, canary_pods(weight, kind.pods))
    branch.world.weight = weight


def _look(branch: _Branch, kind: Kind) -> Look:
    world, step = branch.world, branch.step
    branch.books.read(world)
    last = step >= len(kind.ladder)
    weight = None if last else kind.ladder[step]
    pods = None if weight is None else canary_pods(weight, kind.pods)
    tick = world.tick(step, weight, pods)
    return Look(world.now, branch.since, step, last, tick, branch.books)


def _turn(
    branch: _Branch, kind: Kind, case: tuple[str, str, int], outcomes: list[Outcome]
) -> list[_Branch]:
    """Let one tick pass; return the branches that have split off."""
    world = branch.world
    world.run(world.now + SCRAPE)
    look = _look(branch, kind)
    staying: list[Rule] = []
    climbing: list[Rule] = []
    for rule in branch.rules:
        move, why = rule.look(look)
        end = ""
        if move is Move.ROLL_BACK:
            end = ROLLED_BACK
        elif move is Move.ADVANCE and world.now - branch.since >= SOAK:
            if branch.step == len(kind.ladder):
                end = PROMOTED
            else:
                climbing.append(rule)
                continue
        elif world.now >= BEFORE + CAP:
            end = HELD
        if end:
            outcomes.append(_outcome(branch, case, rule.name, end, why))
        else:
            staying.append(rule)
    if not climbing:
        branch.rules = staying
        return []
    if not staying:
        branch.rules = climbing
        _climb(branch, kind)
        return []
    # The rules are parted, not copied: only the world and its books are wanted twice.
    other_world, other_books = world.fork(branch.books)
    branch.rules = staying
    other = _Branch(other_world, other_books, climbing, branch.step, branch.since)
    _climb(other, kind)
    return [other]


def _outcome(branch: _Branch, case: tuple[str, str, int], rule: str, end: str, why: str) -> Outcome:
    world = branch.world
    sent, failed = world.canary_counts()
    return Outcome(
        *case,
        rule,
        end,
        (world.now - BEFORE) / 60,
        max(0.0, world.now - world.onset) / 60,
        branch.step,
        max(0, sent - world.sent_before),
        failed,
        why,
    )
