"""What may be asked of a rollout, when, and how one sees that it was taken up.

A verb writes an annotation and nothing else; the operator alone writes the status. `pause` and
`kill` are levels: they hold until they are lifted. `promote`, `abort` and `retry` are one-shot:
each new token is carried out once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvquant.api import names
from kvquant.api.v1alpha1 import DecisionKind, Phase, Status, Verdict
from kvquant.cli.rollouts import Seen, kill_holds, obeys_kill, status_of

RUNNING = frozenset(
    {Phase.PROVISIONING, Phase.VERIFYING, Phase.EVALUATING, Phase.SHADOWING, Phase.PROGRESSING}
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a verb cannot apply now, and which verb is the right one, if there is one."""

    why: str
    instead: str | None = None


@dataclass(frozen=True, slots=True)
class Verb:
    """One thing that people may ask for.

    Attributes:
        name: The verb on the command line.
        annotation: What it writes.
        sets: Whether it sets the annotation; else it takes it away.
        once: Whether the annotation's value is a token that is carried out once.
        refusal: Tells why it cannot apply now; None when it can.
        moot: Tells that things are already as asked; None when there is something to do.
        promise: Tells what is going to happen.
        done: Tells whether the operator has taken up the token that was written.
        outcome: Tells what came of it.
    """

    name: str
    annotation: str
    sets: bool
    once: bool
    refusal: Callable[[Seen], Refusal | None]
    moot: Callable[[Seen], str | None]
    promise: Callable[[Seen], str]
    done: Callable[[Seen, str | None], bool]
    outcome: Callable[[Seen], str]


def _ended(seen: Seen) -> Refusal | None:
    status = seen.status
    if seen.deleting:
        return Refusal("it is being deleted; its traffic goes back to the baseline first")
    if status.phase is Phase.ROLLED_BACK:
        return Refusal("it has been rolled back and takes no traffic", "retry")
    if status.phase is Phase.ROLLING_BACK:
        return Refusal("it is rolling back, which nothing may hold up; retry once it is RolledBack")
    if status.phase is Phase.PROMOTED:
        instead = None if status.settled else "abort"
        return Refusal(f"it has been promoted{_too_late(seen)}", instead)
    return None


def _too_late(seen: Seen) -> str:
    """Say what is left to do once the rollback window is closed."""
    if not seen.status.settled:
        return ""
    serving = seen.status.baseline if seen.status.handed_back else seen.status.canary
    pool = serving.deployment if serving else "the new pool"
    return (
        " and its rollback window is closed: the old pool is gone. To go back, make a new "
        f"KVQuantRollout with targetRef.name: {pool} and the old dtype"
    )


def _handing_back(seen: Seen) -> bool:
    """Tell whether a promoted pool gives its traffic to a target that has adopted the dtype."""
    return seen.status.adopting and not seen.deleting


def _cannot_pause(seen: Seen) -> Refusal | None:
    return None if _handing_back(seen) else _ended(seen)


def _cannot_resume(seen: Seen) -> Refusal | None:
    return Refusal("it is being deleted") if seen.deleting else None


def _cannot_promote(seen: Seen) -> Refusal | None:
    status = seen.status
    if (over := _ended(seen)) is not None:
        # To have one more step is no reason to abort: whoever says promote wants it promoted.
        return over if over.instead != "abort" else Refusal("it has been promoted already")
    if status.killed or seen.asked(names.ANNOTATION_KILLED):
        return Refusal("the kill switch holds: every request goes to the baseline", "unkill")
    if seen.asked(names.ANNOTATION_PAUSED):
        return Refusal("it is paused", "resume")
    if status.phase not in (Phase.EVALUATING, Phase.SHADOWING, Phase.PROGRESSING):
        return Refusal(
            f"it is {status.phase}: no canary serves yet, and the regime proof cannot be skipped. "
            "See what it waits for",
            "status",
        )
    if status.next_step is not None:
        return Refusal(
            f"step {status.step} is over and the pods of step {status.next_step} are being made "
            "ready already; it goes on by itself",
            "status",
        )
    return None


def _cannot_abort(seen: Seen) -> Refusal | None:
    status = seen.status
    if status.phase in RUNNING or (status.phase is Phase.PROMOTED and not status.settled):
        return Refusal("it is being deleted, which goes back already") if seen.deleting else None
    if status.phase is Phase.PENDING:
        return Refusal("it has not begun, so that there is nothing to take back", "pause")
    if status.phase is Phase.PROMOTED:
        return Refusal(f"it has been promoted{_too_late(seen)}")
    return _ended(seen)


def _cannot_retry(seen: Seen) -> Refusal | None:
    status = seen.status
    if seen.deleting or status.phase in (Phase.ROLLING_BACK, Phase.PROMOTED):
        return _ended(seen)
    if status.phase is not Phase.ROLLED_BACK and not _undecided(status):
        return Refusal(f"it is {status.phase}: attempt {status.attempt} is still on its way")
    if status.killed or seen.asked(names.ANNOTATION_KILLED):
        return Refusal("the kill switch holds, and nothing begins under it", "unkill")
    if seen.asked(names.ANNOTATION_PAUSED):
        return Refusal("it is paused, and nothing begins while it is", "resume")
    return None


def _undecided(status: Status) -> bool:
    """Tell whether an example set was asked and there is no verdict, so that it may be again."""
    again = (Verdict.ERROR, Verdict.INCONCLUSIVE)
    report = status.evaluation
    return status.phase is Phase.EVALUATING and report is not None and report.verdict in again


def _cannot_kill(seen: Seen) -> Refusal | None:
    if seen.status.phase is Phase.PROMOTED and seen.status.settled and not _handing_back(seen):
        return Refusal(f"it has been promoted{_too_late(seen)}")
    return None


def _kill_holds(seen: Seen) -> bool:
    return kill_holds(status_of(seen.raw))


def _kill_is_over(seen: Seen) -> bool:
    return not obeys_kill(status_of(seen.raw))


def _pool(seen: Seen) -> str:
    return seen.status.canary.deployment if seen.status.canary else "the promoted pool"


def _killed(seen: Seen) -> str:
    if _handing_back(seen):
        return f"every request goes to {_pool(seen)}, and nothing is handed over"
    return f"every request goes to the baseline (canary {seen.status.weights.canary} %)"


def _kill_promise(seen: Seen) -> str:
    if _handing_back(seen):
        return (
            f"sends every request to {_pool(seen)} at once and keeps it so until unkill. The "
            "target's pods stay; their hand-over goes on afterwards"
        )
    return (
        "sends every request to the baseline at once and keeps it so until unkill. The canary's "
        "pods stay; the steps start over afterwards"
    )


def _pause_promise(seen: Seen) -> str:
    if _handing_back(seen):
        return (
            "goes no further with the hand-over until resume. Traffic still returns to "
            f"{_pool(seen)} by itself when the target gives way, and kill still acts"
        )
    return (
        f"{_held_at(seen)} until resume. It still rolls back by itself when a signal fails, and "
        "abort and kill still act"
    )


def _anytime(_: Seen) -> Refusal | None:
    return None


def _never_moot(_: Seen) -> str | None:
    return None


def _held_at(seen: Seen) -> str:
    status = seen.status
    if status.phase is Phase.PROGRESSING:
        return f"stays at step {status.step_label} ({status.weights.canary} % on the canary)"
    return f"goes no further than {status.phase}"


def _next(seen: Seen) -> str:
    if seen.status.phase is Phase.EVALUATING and seen.spec.shadow.percent:
        return "goes on to shadowing"
    steps, number = seen.spec.steps, seen.status.step
    if number >= len(steps):
        return "is promoted: the canary pool becomes the serving pool"
    return f"goes on to step {number + 1}/{len(steps)} ({steps[number].weight} %)"


def _whither(seen: Seen) -> str:
    """Say where a rollout stands now."""
    status = seen.status
    step = f", step {status.step_label}" if status.step and status.step_label else ""
    return f"{status.phase}{step}, canary {status.weights.canary} %"


def _promoted_so_far(seen: Seen) -> str:
    status = seen.status
    if status.phase is Phase.PROGRESSING and status.next_step is not None:
        return f"the pods of step {status.next_step} are being made ready; traffic follows them"
    return _whither(seen)


def _aborted_so_far(seen: Seen) -> str:
    return (
        f"every request goes to the baseline (canary {seen.status.weights.canary} %); "
        "the canary's pods go once their requests are answered"
    )


def _condition(seen: Seen, type_: str) -> bool:
    condition = seen.status.condition(type_)
    return condition is not None and condition.status == "True"


def _killed_by_whom(seen: Seen) -> str:
    if _handing_back(seen):
        return _killed(seen)
    decisions = reversed(seen.status.decisions)
    return next((d.message for d in decisions if d.kind is DecisionKind.KILL), "")


PAUSE = Verb(
    "pause",
    names.ANNOTATION_PAUSED,
    sets=True,
    once=False,
    refusal=_cannot_pause,
    moot=lambda seen: (
        f"paused already: {seen.asked(names.ANNOTATION_PAUSED)}"
        if seen.asked(names.ANNOTATION_PAUSED) and _condition(seen, "Paused")
        else None
    ),
    promise=_pause_promise,
    done=lambda seen, _: _condition(seen, "Paused"),
    outcome=_whither,
)

RESUME = Verb(
    "resume",
    names.ANNOTATION_PAUSED,
    sets=False,
    once=False,
    refusal=_cannot_resume,
    moot=lambda seen: (
        "not paused"
        if not seen.asked(names.ANNOTATION_PAUSED) and not _condition(seen, "Paused")
        else None
    ),
    promise=lambda _: "goes on by itself as soon as the evidence allows",
    done=lambda seen, _: not _condition(seen, "Paused"),
    outcome=_whither,
)

PROMOTE = Verb(
    "promote",
    names.ANNOTATION_PROMOTE,
    sets=True,
    once=True,
    refusal=_cannot_promote,
    moot=_never_moot,
    promise=lambda seen: (
        f"{_next(seen)} without waiting for more evidence. It still rolls back by itself when a "
        "signal fails"
    ),
    done=lambda seen, token: seen.status.handled.promote == token,
    outcome=_promoted_so_far,
)

ABORT = Verb(
    "abort",
    names.ANNOTATION_ABORT,
    sets=True,
    once=True,
    refusal=_cannot_abort,
    moot=_never_moot,
    promise=lambda _: (
        "rolls back: every request to the baseline at once, then the canary's pods go. This spec "
        "is not tried again until retry"
    ),
    done=lambda seen, token: seen.status.handled.abort == token and seen.status.weights.canary == 0,
    outcome=_aborted_so_far,
)

RETRY = Verb(
    "retry",
    names.ANNOTATION_RETRY,
    sets=True,
    once=True,
    refusal=_cannot_retry,
    moot=_never_moot,
    promise=lambda seen: (
        "asks the example set again, in a new Job"
        if _undecided(seen.status)
        else f"begins attempt {seen.status.attempt + 1} of the same spec: new canary pods, a new "
        "regime proof, then the steps from the first"
    ),
    done=lambda seen, token: seen.status.handled.retry == token,
    outcome=_whither,
)

KILL = Verb(
    "kill",
    names.ANNOTATION_KILLED,
    sets=True,
    once=False,
    refusal=_cannot_kill,
    moot=lambda seen: (
        f"killed already: {_killed_by_whom(seen)}"
        if seen.asked(names.ANNOTATION_KILLED) and _kill_holds(seen)
        else None
    ),
    promise=_kill_promise,
    done=lambda seen, _: _kill_holds(seen),
    outcome=_killed,
)

UNKILL = Verb(
    "unkill",
    names.ANNOTATION_KILLED,
    sets=False,
    once=False,
    refusal=_anytime,
    moot=lambda seen: (
        "not killed" if not seen.asked(names.ANNOTATION_KILLED) and _kill_is_over(seen) else None
    ),
    promise=lambda seen: (
        "goes on with the hand-over once every pod of the target is proven"
        if _handing_back(seen)
        else "may take traffic again: the steps start over from the first"
    ),
    done=lambda seen, _: _kill_is_over(seen),
    outcome=_whither,
)

ALL = (PAUSE, RESUME, PROMOTE, ABORT, RETRY, KILL, UNKILL)


def applicable(seen: Seen) -> tuple[str, ...]:
    """Return the names of the verbs that would change something now."""
    return tuple(
        verb.name for verb in ALL if verb.refusal(seen) is None and verb.moot(seen) is None
    )
