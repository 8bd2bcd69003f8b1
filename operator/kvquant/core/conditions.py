"""From a turn's outcome to the conditions that people and kstatus read."""

from __future__ import annotations

from kvquant.api.v1alpha1 import Phase, Verdict
from kvquant.core.turn import Turn


def describe(turn: Turn) -> None:
    """Set every condition, the step's label and the verdict from the state that was decided."""
    status = turn.status
    if status.step and status.total_steps:
        turn.set(step_label=f"{status.step}/{status.total_steps}")
    else:
        turn.set(step_label=f"0/{status.total_steps}" if status.total_steps else None)
    _kstatus(turn)
    held = turn.held
    if held is not None:
        turn.condition("Held", True, held[0], held[1][:1024])
    else:
        turn.condition("Held", False, "Moving")
    paused = turn.seen.requests.paused
    turn.condition("Paused", bool(paused), "Requested" if paused else "NotRequested", paused or "")
    killed = turn.seen.requests.killed if status.killed else None
    turn.condition("Killed", status.killed, "Requested" if killed else "NotRequested", killed or "")
    _regime(turn)


def _kstatus(turn: Turn) -> None:
    """Ready, Reconciling and Stalled: in progress, current or failed, as kstatus tells them."""
    phase, held = turn.status.phase, turn.held
    reason, message = phase.value, (turn.status.verdict or "")[:1024]
    stalled = phase in (Phase.ROLLING_BACK, Phase.ROLLED_BACK)
    if phase is Phase.PENDING and held is not None:
        stalled, reason, message = True, held[0], held[1][:1024]
    ready = phase is Phase.PROMOTED
    turn.condition("Ready", ready, reason, message)
    turn.condition("Reconciling", not ready and not stalled, reason, message)
    turn.condition("Stalled", stalled, reason, message)


def _regime(turn: Turn) -> None:
    proofs = turn.status.regime_proof
    whose = f"pods of {turn.baseline.deployment}" if turn.status.adopted else "canary pods"
    passed = sum(1 for proof in proofs if proof.verdict is Verdict.PASS)
    if not proofs:
        turn.condition("RegimeVerified", False, "NotMeasured", "No canary pod was measured yet.")
        return
    turn.condition(
        "RegimeVerified",
        passed == len(proofs),
        "Proven" if passed == len(proofs) else "NotProven",
        f"{passed} of {len(proofs)} {whose} run {turn.status.resolved_dtype}, proven by "
        "dtype and capacity.",
    )
