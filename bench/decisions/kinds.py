"""The canaries and circumstances that a rule is tried on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bench.decisions.engine import Profile
from bench.decisions.profiles import AUTO, FP8, INT8

LOADS = {"low": 0.2, "medium": 0.5, "high": 0.8}
"""Traffic as a share of what the baseline pool can carry."""


def slower(profile: Profile, times: float) -> Profile:
    """Return an engine that takes that many times as long for everything."""
    return replace(
        profile,
        floor=profile.floor * times,
        sequence=profile.sequence * times,
        context=profile.context * times,
        prompt=profile.prompt * times,
        attention=profile.attention * times,
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """A canary and what happens while it is rolled out.

    Attributes:
        name: Short name.
        bad: Whether it ought to be rolled back, where its harm is felt at all (see `truth.py`).
        what: In one phrase.
        profile: The canary's engine.
        loads: Loads by name, as shares of the baseline's capacity.
        pods: Baseline pods.
        ladder: Canary's weights step by step, in per cent. The last leaves a little for control.
        arrivals: How requests come: one of `traffic.ARRIVALS`.
        errors: Share of the canary's requests that it answers with 500 at once.
        crash: "once" or "often" (every ten minutes), of a canary pod.
        hang: Whether the canary stops to finish anything some minutes into the rollout.
        drift: By how much both arms have become slower when 40 minutes have passed.
        warm_up: By how much a pod is slower in its first minute.
        scrapes: How the scrapes go: "well", "gap" (none for five minutes) or "late".
        gross: Whether the harm is gross: a factor of two and more.
    """

    name: str
    bad: bool
    what: str
    profile: Profile = AUTO
    loads: tuple[tuple[str, float], ...] = tuple(LOADS.items())
    pods: int = 8
    ladder: tuple[int, ...] = (10, 25, 50, 95)
    arrivals: str = "poisson"
    errors: float = 0.0
    crash: str = ""
    hang: bool = False
    drift: float = 1.0
    warm_up: float = 1.0
    scrapes: str = "well"
    gross: bool = False


_SATURATED = (("0.90", 0.90), ("0.97", 0.97))
_SPARSE = (("0.01", 0.01), ("0.03", 0.03))

KINDS = {
    kind.name: kind
    for kind in (
        Kind("identical", False, "the baseline once more"),
        Kind("one-of-eight", False, "identical, 1 canary pod beside 7", pods=7,
             ladder=(12, 25, 50, 95)),
        Kind("bursty", False, "identical, requests in bursts", arrivals="bursty"),
        Kind("saturated", False, "identical, near saturation", loads=_SATURATED),
        Kind("better", False, "fp8: twice the cache, as recorded", profile=FP8),
        Kind("crash-once", False, "identical, one innocent crash", crash="once"),
        Kind("drift", False, "identical, both arms slow down by 1.3", drift=1.3),
        Kind("diurnal", False, "identical, traffic swings by a third", arrivals="diurnal"),
        Kind("gap", False, "identical, no samples for five minutes", scrapes="gap"),
        Kind("late", False, "identical, one scrape in five is missed", scrapes="late"),
        Kind("warm-up", False, "identical, pods 3x slower in their first minute", warm_up=3.0),
        Kind("sparse", False, "identical, hardly any traffic", loads=_SPARSE),
        Kind("slower-1.3", True, "everything takes 1.3 times as long", profile=slower(AUTO, 1.3)),
        Kind("slower-2", True, "everything takes twice as long", profile=slower(AUTO, 2.0),
             gross=True),
        Kind("int8", True, "int8 on Triton, as recorded", profile=INT8, gross=True),
        Kind("long-prompts", True, "prefill takes 3x as long from 8,000 tokens on",
             profile=replace(AUTO, long_from=8_000, long_times=3.0)),
        Kind("crowded", True, "decoding takes twice as long from 4 sequences on",
             profile=replace(AUTO, crowd_from=4, crowd_times=2.0)),
        Kind("errors", True, "one request in fifty is answered with 500", errors=0.02),
        Kind("crash-often", True, "a canary pod dies every ten minutes", crash="often"),
        Kind("half-cache", True, "half of the KV cache: queues and preemptions",
             profile=replace(AUTO, capacity=AUTO.capacity // 2)),
        Kind("hang", True, "the canary stops to finish requests", hang=True, gross=True),
    )
}  # fmt: skip
