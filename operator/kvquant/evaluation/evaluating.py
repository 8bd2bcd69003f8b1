"""An evaluation from its beginning to the verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kvquant.evaluation.arms import Arm, ArmError, reach
from kvquant.evaluation.cells import Margins
from kvquant.evaluation.examples import Example
from kvquant.evaluation.fetching import Dataset
from kvquant.evaluation.judging import judge
from kvquant.evaluation.reporting import Run
from kvquant.evaluation.results import Result
from kvquant.evaluation.running import Pace, Runner
from kvquant.shadow.replaying import Replayer, client

PATIENCE = 60.0
"""Seconds to wait for an arm that does not answer yet."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be evaluated, and how.

    Attributes:
        dataset: The set.
        baseline: The arm that is known to be good.
        canary: The arm in question.
        pace: How the examples are asked.
        margins: What is tolerated.
        patience: Seconds to wait for each arm to answer at all.
        engine_key: API key of the engines; empty: they ask for none.
        rollout: Namespace and name of the rollout; None: none.
    """

    dataset: Dataset
    baseline: Arm
    canary: Arm
    pace: Pace
    margins: Margins
    patience: float = PATIENCE
    engine_key: str = ""
    rollout: str | None = None


async def evaluate(
    plan: Plan, heard: Callable[[Result], None], replayer: Replayer | None = None
) -> Run:
    """Ask both arms all examples, and judge the answers.

    Args:
        plan: What to evaluate.
        heard: Is told what became of each example as soon as that is known.
        replayer: Sends the requests; None: over HTTP to where the arms are.

    Raises:
        ArmError: An arm cannot be asked at all.
    """
    loop = asyncio.get_running_loop()
    async with client() as session:
        asking = replayer or Replayer(session, loop.time, plan.engine_key)
        arms = (plan.baseline, plan.canary)
        for arm in arms:
            await reach(arm, asking, plan.patience)
            _serves(arm, plan.dataset.examples)
        began = loop.time()
        runner = Runner(asking, *arms, plan.pace)
        results = await runner.run(plan.dataset.examples, heard)
        took = loop.time() - began
    # In a thread, as the bootstrap takes seconds.
    judged = await asyncio.to_thread(judge, results, plan.margins, plan.pace.seed)
    return Run(
        plan.dataset,
        plan.baseline,
        plan.canary,
        plan.pace,
        plan.margins,
        results,
        judged,
        now=datetime.now(UTC),
        seconds=took,
        rollout=plan.rollout,
    )


def _serves(arm: Arm, examples: list[Example]) -> None:
    """Raise for examples of a model that an arm does not serve: it would refuse them all.

    Raises:
        ArmError: There are some.
    """
    if arm.model is not None:
        asked = {arm.model}
    else:
        asked = {m for one in examples if isinstance(m := one.body.get("model"), str)}
    missing = sorted(asked - set(arm.served))
    if arm.served and missing:
        raise ArmError(
            f"the {arm.name} at {arm.place} serves {', '.join(arm.served)} and not {missing[0]!r}, "
            f"which the set asks for: name what to ask for by --{arm.name}-model"
        )
