"""An evaluation from its beginning to the verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from kvquant.evaluation.arms import Arm, ArmError, reach
from kvquant.evaluation.examples import Example
from kvquant.evaluation.judging import judge
from kvquant.evaluation.plan import Plan, Run
from kvquant.evaluation.results import Result
from kvquant.evaluation.running import Runner
from kvquant.shadow.replaying import Replayer, client


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
    return Run(plan, results, judged, now=datetime.now(UTC), seconds=took)


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
