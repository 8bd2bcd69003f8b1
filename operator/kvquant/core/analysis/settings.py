"""What the analysis tolerates and how sure it wants to be. The defaults are argued in the docs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CustomSignal:
    """A signal of the user's that joins the tests.

    Attributes:
        name: By which `Arm.custom` holds it.
        tolerance: For a `Share`, the excess that is tolerated, as a fraction of one; for `Bins`,
            the slow-down of its quantile that is tolerated, as a fraction (0.2: a fifth slower).
        quantile: Quantile of `Bins` that is compared.
        higher_is_worse: Direction of harm of a `Share`.
    """

    name: str
    tolerance: float
    quantile: float = 0.9
    higher_is_worse: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """Tolerances, error budget and durations.

    Attributes:
        slowdown: Slow-down of the latency's p99 that is tolerated, as a fraction; p90 and p50 get
            four and three fifths of it, because the body of a distribution moves less by chance.
        first_token_slowdown: Of the time to the first token, at p90 and p99.
        token_slowdown: Of the mean time between two tokens.
        failures: Excess of the share of failed requests that is tolerated.
        page_faults: Preemptions per request beyond twice the baseline's that are tolerated.
        deaths_per_hour: Engine deaths per pod and hour that are nobody's fault.
        most_deaths: Deaths in one step beyond the baseline's that roll back without any statistics;
            None: the rate alone decides.
        min_requests: Requests that either arm must have ended in a step before it may pass.
        min_seconds: Shortest evidence of a step that may pass.
        patience: Seconds of evidence in one step after which harm beyond the tolerance that is
            likely, but not yet certain at the error budget, rolls back too.
        budget: Probability that a canary as good as the baseline is ever rolled back, per rollout.
        batch: Usual length of a batch in seconds.
        warm_up: Seconds after a change of the weight that count for nothing.
        time_scale: Factor by which recorded time was compressed: durations are divided by it.
        custom: Signals of the user's.
    """

    slowdown: float = 0.25
    first_token_slowdown: float = 0.5
    token_slowdown: float = 0.15
    failures: float = 0.005
    page_faults: float = 0.05
    deaths_per_hour: float = 0.1
    most_deaths: int | None = None
    min_requests: int = 100
    min_seconds: float = 600.0
    patience: float = 900.0
    budget: float = 0.05
    batch: float = 30.0
    warm_up: float = 60.0
    time_scale: float = 1.0
    custom: tuple[CustomSignal, ...] = field(default=())

    def scaled(self, seconds: float) -> float:
        """Return a duration in the time of the recording."""
        return seconds / self.time_scale
