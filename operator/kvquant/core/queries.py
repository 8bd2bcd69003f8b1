"""Every PromQL text of ours, and the window over which it is read.

Counters are read as ranges and their increases computed in Python (`kvquant.core.counters`),
because `increase()` extrapolates to the window's edges, does not count a series from zero when it
appears, and would need one query for each rollout's own window. Ranges over the longest window
serve all rollouts together: the number of queries does not grow with them, and what was measured
before a restart of the operator is found again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kvquant.core.evidence import EvidenceNeed
from kvquant.core.scope import EVERYWHERE, Scope

# Envoy 1.40, counters by upstream cluster (a router's slot), as measured:
#
#   a request that                 completed  xx class 5   timeout  remote_with_active_rq  rq_time
#   is answered with 2xx               +1                                                     +1
#   is answered with 5xx               +1         +1                                          +1
#   times out before its headers       +1    +1 (code 504)    +1
#   times out in its stream            +1                     +1
#   is cut before its headers          +1    +1 (code 503)                  +1
#   is cut in its stream               +1                                   +1
#   meets a refusal, then answered     +1                                                     +1
#   meets only refusals                +1    +1 (code 503)
#   finds no healthy pod               +1    +1 (code 503)
#   is given up by its client        +1 if in its stream, else nothing
#
# `completed` and the codes count when the headers go out, each request once, retries or not.
#
#   a request that             total  retry  failure_eject  limit_exceeded  none_healthy
#   reaches a pod at once        +1
#   meets a refusal, then not    +1     +1         +1
#   meets only refusals                 +2         +3             +1
#   finds no healthy pod                                                         +1
#
# `total` counts at once when a request has got a connection, whatever becomes of it afterwards: so
# total - retry + failure_eject + none_healthy is how many were started, each once.
COMPLETED = "envoy_cluster_upstream_rq_completed"
BY_CLASS = "envoy_cluster_upstream_rq_xx"
BY_CODE = "envoy_cluster_upstream_rq"
TIMEOUTS = "envoy_cluster_upstream_rq_timeout"
RESETS = "envoy_cluster_upstream_cx_destroy_remote_with_active_rq"
ACTIVE = "envoy_cluster_upstream_rq_active"
TRIES = "envoy_cluster_upstream_rq_total"
RETRIES = "envoy_cluster_upstream_rq_retry"
REFUSED_TRIES = "envoy_cluster_upstream_rq_pending_failure_eject"
ONLY_REFUSED = "envoy_cluster_upstream_rq_retry_limit_exceeded"
NOBODY_THERE = "envoy_cluster_upstream_cx_none_healthy"
HEALTHY = "envoy_cluster_membership_healthy"
ROUTER_UPTIME = "envoy_server_uptime"
LATENCY = "envoy_cluster_upstream_rq_time_bucket"

PREEMPTIONS = "vllm:num_preemptions_total"
FINISHED = "vllm:request_success_total"
ENGINE_STARTED = "process_start_time_seconds"
CACHE_CONFIG = "vllm:cache_config_info"

CLUSTER_LABEL = "envoy_cluster_name"
CLASS_LABEL = "envoy_response_code_class"
CODE_LABEL = "envoy_response_code"
SERVER_ERRORS = "5"
TIMED_OUT = "504"
UNAVAILABLE = "503"

MOST_POINTS = 120
"""Points of a range: enough to see restarts, few enough for a window of hours."""
FINEST_STEP = timedelta(seconds=1)
"""Of a window's begin, as much may be lost as one step is long."""

_POD_NAME_LIMIT = 58
"""Kubernetes cuts a pod's name here before it appends five random characters."""


@dataclass(frozen=True, slots=True)
class Window:
    """The instants of a range read, in milliseconds since the epoch; both ends are among them."""

    start_ms: int
    end_ms: int
    step_ms: int

    @property
    def end(self) -> float:
        """The last instant in seconds since the epoch."""
        return self.end_ms / 1000

    @property
    def step(self) -> float:
        """Seconds between two instants."""
        return self.step_ms / 1000


def window(needs: Iterable[EvidenceNeed], now: datetime) -> Window:
    """Return the range that holds every need's window and ends now.

    It begins at the earliest instant asked for, or up to one step later: requests of the step
    before must not count in this one. Only a baseline's earlier window is rounded outwards,
    because it does not grow: what an advance rested on must be found in it again.
    """
    needs = list(needs)
    end = round(now.timestamp() * 1000)
    since = min(n.since for n in needs)
    earlier = min((n.baseline_since for n in needs if n.baseline_since is not None), default=since)
    length = max(0, end - math.ceil(min(since, earlier).timestamp() * 1000))
    return _grid(end, length, outwards=earlier < since)


def window_since(since: datetime, now: datetime) -> Window:
    """Return the range from an instant, or up to one step later, until now."""
    end = round(now.timestamp() * 1000)
    return _grid(end, max(0, end - math.ceil(since.timestamp() * 1000)), outwards=False)


def _grid(end: int, length: int, *, outwards: bool) -> Window:
    finest = round(FINEST_STEP.total_seconds() * 1000)
    steps = max(1, min(MOST_POINTS, length // finest))
    # Whole milliseconds: both ends lie on the grid exactly.
    step = -(-length // steps) if outwards else length // steps
    return Window(end - steps * step, end, max(1, step))


def router_counters(needs: Sequence[EvidenceNeed], scope: Scope = EVERYWHERE) -> str:
    """Select the routers' counters of requests, requests in flight and uptimes."""
    metrics = (COMPLETED, BY_CLASS, BY_CODE, TIMEOUTS, RESETS, ACTIVE, HEALTHY, ROUTER_UPTIME)
    return scope.select(
        f'__name__=~"{"|".join(metrics)}"',
        *_where(needs, [need.router for need in needs], scope),
        # The first alternative is empty, because each label is missing in some of the metrics.
        one_of(CLUSTER_LABEL, ["", *_slots(needs)]),
        one_of(CLASS_LABEL, ["", SERVER_ERRORS]),
        one_of(CODE_LABEL, ["", UNAVAILABLE, TIMED_OUT]),
    )


def router_latency(needs: Sequence[EvidenceNeed], scope: Scope = EVERYWHERE) -> str:
    """Select the routers' latency histograms; their bounds are milliseconds."""
    return LATENCY + scope.select(
        *_where(needs, [need.router for need in needs], scope), one_of(CLUSTER_LABEL, _slots(needs))
    )


def engine_counters(needs: Sequence[EvidenceNeed], scope: Scope = EVERYWHERE) -> str:
    """Select the engines' preemptions, finished requests and starts."""
    metrics = (PREEMPTIONS, FINISHED, ENGINE_STARTED)
    deployments = [arm.deployment for need in needs for arm in (need.baseline, need.canary)]
    return scope.select(f'__name__=~"{"|".join(metrics)}"', *_where(needs, deployments, scope))


def cache_config_times(
    namespaces: Iterable[str], pods: Sequence[str] = (), scope: Scope = EVERYWHERE
) -> str:
    """Ask when each pod's cache config was sampled; the config itself is in the labels.

    Args:
        namespaces: Where the pods are.
        pods: Their names; none asks for all pods of the namespaces.
        scope: How Prometheus labels them.
    """
    named = [one_of(scope.pod, pods)] if pods else []
    return f"timestamp({CACHE_CONFIG}{scope.select(one_of(scope.namespace, namespaces), *named)})"


def pods_of(deployment: str) -> str:
    """Return a regular expression for the names of a Deployment's pods, to be matched whole.

    A pod is called `<deployment>-<hash of the template>-<five characters>`; a long name is cut.
    """
    prefix = f"{deployment}-"
    if not is_cut(deployment):
        return f"{_literal(prefix)}[a-z0-9]{{1,10}}-[a-z0-9]{{5}}"
    return f"{_literal(prefix[:_POD_NAME_LIMIT])}[a-z0-9-]{{5,16}}"


def is_cut(deployment: str) -> bool:
    """Tell whether Kubernetes may cut the names of a Deployment's pods."""
    return len(f"{deployment}-") + len("0123456789-") > _POD_NAME_LIMIT


def any_pod_of(label: str, deployments: Iterable[str]) -> str:
    """Return the matcher of the pods of any of the Deployments."""
    pods = "|".join(sorted({pods_of(name) for name in deployments}))
    return f'{label}=~"{_quoted(pods)}"'


def one_of(label: str, values: Iterable[str]) -> str:
    """Return the matcher of a label that has any of the values."""
    # The order is fixed, so that the same question is the same text to caches on the way.
    alternatives = "|".join(sorted({_literal(value) for value in values}))
    return f'{label}=~"{_quoted(alternatives)}"'


def _where(
    needs: Sequence[EvidenceNeed], deployments: Iterable[str], scope: Scope
) -> tuple[str, str]:
    namespaces = one_of(scope.namespace, [n.namespace for n in needs])
    return namespaces, any_pod_of(scope.pod, deployments)


def _slots(needs: Iterable[EvidenceNeed]) -> list[str]:
    return [slot for need in needs for slot in (need.baseline.slot, need.canary.slot)]


def _literal(text: str) -> str:
    """Escape what a regular expression would read as more than text; names hold only dots."""
    return re.sub(r"[^A-Za-z0-9_:-]", lambda match: "\\" + match.group(), text)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def alerts(scope: Scope = EVERYWHERE) -> str:
    """Ask for every alert that fires or is pending: `core.alerts.polled` reads the answer.

    It tells when a rule has said so last, and since when its condition holds.
    """
    selector = scope.select()
    return f"timestamp(ALERTS{selector}) or ALERTS_FOR_STATE{selector}"


ALERTS = alerts()
"""The same without any matchers."""
