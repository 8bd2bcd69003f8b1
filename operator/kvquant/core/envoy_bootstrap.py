"""The router's Envoy bootstrap: static but for the weights, which are runtime keys.

Nothing here depends on the operator being alive. Endpoints come by DNS, weights from the layer
below until the weights service speaks, so that a router which starts alone serves what was
committed last. Such a router copies nothing: what a copy costs needs somebody who watches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from kvquant.api import names
from kvquant.core.envoy_listeners import (
    MIRROR_KEY,
    STATS_PREFIX,
    WEIGHT_PREFIX,
    clients_listener,
    stats_listener,
)
from kvquant.core.envoy_upstreams import (
    ADMIN_CLUSTER,
    XDS_CLUSTER,
    Json,
    Upstream,
    WeightsService,
    admin_cluster,
    seconds,
    shadow_cluster,
    slot_cluster,
    xds_cluster,
)
from kvquant.core.shadow_settings import BUCKETS

ADMIN_PORT = 9901
"""Envoy's admin interface; on loopback only, because it can do anything to the router."""
STATS_PORT = 9902
"""What Prometheus and the kubelet may see of it."""
LAYER = "kvquant"
"""Name of the runtime layer, and of the RTDS resource, that the weights service serves."""
SUM_OF_WEIGHTS = 100
INITIAL_FETCH_TIMEOUT = timedelta(seconds=3)
"""How long a starting router waits for the weights service before it serves what was committed."""
# fmt: off
LATENCY_BOUNDS_MS = (
    5, 7, 10, 15, 20, 30, 40, 50, 70,
    100, 150, 200, 300, 400, 500, 700,
    1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 7_000,
    10_000, 15_000, 20_000, 30_000, 40_000, 50_000, 70_000,
    100_000, 150_000, 200_000, 300_000, 400_000, 500_000, 600_000,
)
# fmt: on
"""Upper bounds of the latency histograms in milliseconds: 5 ms to 600 s, no step wider than 1.5x,
and two significant digits each, which Envoy's histograms resolve exactly."""


BODY_BOUNDS = tuple(bound for _, bound in BUCKETS if bound != float("inf"))
"""Upper bounds of the histogram of the bodies' lengths in bytes. Against it, the shadow service's
own count tells how much of each length was copied."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What differs from one router to the next.

    Attributes:
        slots: Where each slot's pods are found.
        shadow: Where copies of requests go.
        weights: Committed per cents by slot; they sum to 100.
        port: Port on which clients are served.
        request_timeout: Longest time that one request may take, streaming included.
        hash_header: Header that keeps a conversation on one arm and one pod.
        xds: Where live weights come from.
        admin_port: Port of Envoy's admin interface on loopback.
        stats_port: Port of metrics and readiness.
        dns_resolver: Address and port of a DNS server for the slots; None takes the pod's own.
    """

    slots: Mapping[str, Upstream]
    shadow: Upstream
    weights: Mapping[str, int]
    port: int
    request_timeout: timedelta
    xds: WeightsService
    hash_header: str | None = None
    admin_port: int = ADMIN_PORT
    stats_port: int = STATS_PORT
    dns_resolver: tuple[str, int] | None = None


def check_weights(weights: Mapping[str, int]) -> None:
    """Raise ValueError unless every slot has a weight and they sum to 100."""
    if set(weights) != set(names.SLOTS):
        raise ValueError(
            f"weights name the slots {sorted(weights)}: name exactly {', '.join(names.SLOTS)}"
        )
    for slot, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= 100:
            raise ValueError(f"weight of slot {slot} is {weight!r}: give whole per cents, 0 to 100")
    if sum(weights.values()) != SUM_OF_WEIGHTS:
        raise ValueError(f"weights {dict(weights)} sum to {sum(weights.values())}: make it 100")


def check_mirror(mirror: int) -> None:
    """Raise ValueError unless it is a share of requests that may be copied."""
    if isinstance(mirror, bool) or not isinstance(mirror, int) or not 0 <= mirror <= 100:
        raise ValueError(f"mirror is {mirror!r}: give whole per cents, 0 to 100")


def runtime_layer(weights: Mapping[str, int], mirror: int = 0) -> dict[str, Any]:
    """Return the runtime keys of the split, as the static layer and RTDS both hold them.

    Args:
        weights: Per cents by slot.
        mirror: Share of the requests of which a copy goes to the shadow service, in per cent.

    Raises:
        ValueError: The weights are not per cents of both slots that sum to 100, or the mirror is
            none.
    """
    check_weights(weights)
    check_mirror(mirror)
    layer: dict[str, Any] = {}
    keys = {f"{WEIGHT_PREFIX}.{slot}": weights[slot] for slot in names.SLOTS}
    for key, value in (keys | {MIRROR_KEY: mirror}).items():
        *path, last = key.split(".")
        inner = layer
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return layer


def envoy_bootstrap(router: Bootstrap) -> Json:
    """Return the configuration with which Envoy starts, as JSON.

    Raises:
        ValueError: The weights are not per cents of both slots that sum to 100.
    """
    return {
        "admin": {
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": router.admin_port}}
        },
        # Counters are live; histograms show only what was merged. The default of 5 s would let them
        # lag behind the counters by a whole scrape.
        "stats_flush_interval": "1s",
        "stats_config": {
            "histogram_bucket_settings": [
                {"match": {"suffix": "rq_time"}, "buckets": list(LATENCY_BOUNDS_MS)},
                {"match": {"suffix": "rq_body_size"}, "buckets": list(BODY_BOUNDS)},
            ],
            # Scrapes and probes are no traffic.
            "stats_matcher": {
                "exclusion_list": {
                    "patterns": [
                        {"prefix": f"cluster.{ADMIN_CLUSTER}."},
                        {"prefix": f"http.{STATS_PREFIX}."},
                    ]
                }
            },
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": XDS_CLUSTER,
                            "retry_policy": {
                                "retry_back_off": {"base_interval": "0.5s", "max_interval": "2s"}
                            },
                        }
                    }
                ],
            }
        },
        "layered_runtime": {
            "layers": [
                {"name": "committed", "static_layer": runtime_layer(router.weights)},
                {
                    "name": LAYER,
                    "rtds_layer": {
                        "name": LAYER,
                        "rtds_config": {
                            "ads": {},
                            "resource_api_version": "V3",
                            "initial_fetch_timeout": seconds(INITIAL_FETCH_TIMEOUT),
                        },
                    },
                },
            ]
        },
        "static_resources": {
            "listeners": [
                clients_listener(
                    router.port, router.weights, router.request_timeout, router.hash_header
                ),
                stats_listener(router.stats_port),
            ],
            "clusters": [
                *(
                    slot_cluster(
                        slot,
                        router.slots[slot],
                        hashed=router.hash_header is not None,
                        resolver=router.dns_resolver,
                    )
                    for slot in names.SLOTS
                ),
                shadow_cluster(router.shadow, router.dns_resolver),
                xds_cluster(router.xds),
                admin_cluster(router.admin_port),
            ],
        },
    }
