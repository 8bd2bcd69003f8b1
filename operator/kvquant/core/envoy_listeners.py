"""The listeners of the router's Envoy: one for clients, one for Prometheus and the kubelet."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from kvquant.api import names
from kvquant.core.envoy_upstreams import (
    ADMIN_CLUSTER,
    BUFFER_LIMIT_BYTES,
    SHADOW_CLUSTER,
    Json,
    seconds,
)
from kvquant.core.shadow_settings import GENERATION_PATHS, MARK_HEADER

WEIGHT_PREFIX = "kvquant.weight"
"""Runtime keys of the weights: this, a dot and the slot."""
MIRROR_KEY = "kvquant.mirror"
"""Runtime key of the share of requests that are copied to the shadow service, in per cent."""
NEVER_COPIED = ("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key")
"""Headers that prove who a client is: no copy has them, not even within the cluster."""
ROUTER_STAT_PREFIX = "router"
"""Label `envoy_http_conn_manager_prefix` of what clients see."""
STATS_PREFIX = "stats"
IDLE_BEYOND_TIMEOUT = timedelta(seconds=30)
"""A stream may be silent for longer than a request may last, so that only the request's own
time-out, which is counted, ever ends a slow answer."""
RETRIES = 2
HOST_DRAWS = 400
"""Draws by which a retry looks for a pod that was not tried yet. Of two pods, a draw sees only the
other one with a chance of 1/64 (see CHOICES); 400 draws, some 50 us, miss it in 2 of 1,000 cases.
"""


def clients_listener(
    port: int, weights: Mapping[str, int], request_timeout: timedelta, hash_header: str | None
) -> Json:
    """Return the listener that splits requests between the slots.

    Args:
        port: Where clients are served.
        weights: Committed per cents by slot.
        request_timeout: Longest time that one request may take, streaming included.
        hash_header: Header that keeps a conversation on one arm and one pod.
    """
    weighted: Json = {
        "runtime_key_prefix": WEIGHT_PREFIX,
        "clusters": [{"name": slot, "weight": weights[slot]} for slot in names.SLOTS],
    }
    route: Json = {
        "timeout": seconds(request_timeout),
        "idle_timeout": seconds(request_timeout + IDLE_BEYOND_TIMEOUT),
        "weighted_clusters": weighted,
        # Only where no byte of the request can have reached an engine: an engine that has seen a
        # prompt may be computing it, and a second copy would double the harm of an overload.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": RETRIES,
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.retry.host."
                        "previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
            "host_selection_retry_max_attempts": HOST_DRAWS,
        },
    }
    if hash_header is not None:
        # One hash chooses the arm as well as the pod. A request without the header goes anywhere.
        route["hash_policy"] = [{"header": {"header_name": hash_header}}]
        weighted["use_hash_policy"] = True
    manager = _connection_manager(
        ROUTER_STAT_PREFIX,
        [
            *(_mirrored(path, route) for path in GENERATION_PATHS),
            {"match": {"prefix": "/"}, "route": route},
        ],
    )
    manager |= {
        "stream_idle_timeout": seconds(request_timeout + IDLE_BEYOND_TIMEOUT),
        "request_headers_timeout": "60s",
        "preserve_external_request_id": True,
        "access_log": [_error_log()],
    }
    return _listener("clients", "0.0.0.0", port, manager)  # noqa: S104 - clients come from other pods


def _mirrored(path: str, route: Json) -> Json:
    """Return the route of an endpoint of which requests are copied, by chance, to the shadow."""
    return {
        "match": {"path": path},
        "route": {
            **route,
            "request_mirror_policies": [
                {
                    "cluster": SHADOW_CLUSTER,
                    "request_headers_mutations": [{"remove": name} for name in NEVER_COPIED],
                    "runtime_fraction": {
                        "runtime_key": MIRROR_KEY,
                        "default_value": {"numerator": 0, "denominator": "HUNDRED"},
                    },
                }
            ],
        },
    }


def stats_listener(port: int) -> Json:
    """Return the listener that shows metrics and readiness, and nothing else of the admin."""
    # No route but these two: everything else of the admin interface answers 404 here.
    get = [{"name": ":method", "string_match": {"exact": "GET"}}]
    manager = _connection_manager(
        STATS_PREFIX,
        [
            {
                "match": {"path": path, "headers": get},
                "route": {"cluster": ADMIN_CLUSTER, "timeout": "15s"},
            }
            for path in ("/stats/prometheus", "/ready")
        ],
    )
    return _listener("stats", "0.0.0.0", port, manager)  # noqa: S104 - scraped from elsewhere


def _connection_manager(stat_prefix: str, routes: list[Json]) -> Json:
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.network."
        "http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": stat_prefix,
        # Nobody is trusted to steer the router by x-envoy-* headers, in-cluster clients included.
        "use_remote_address": True,
        "internal_address_config": {
            "cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]
        },
        "skip_xff_append": True,
        # Clients must not see which proxy or which arm served them.
        "server_header_transformation": "PASS_THROUGH",
        "route_config": {
            "name": stat_prefix,
            # What Envoy says of an untrusted client, for which engines have no use; and the mark of
            # what is not billed, which no client may put on its own requests.
            "request_headers_to_remove": ["x-envoy-external-address", MARK_HEADER],
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                    "suppress_envoy_headers": True,
                },
            }
        ],
    }


def _listener(name: str, host: str, port: int, manager: Json) -> Json:
    return {
        "name": name,
        "address": _address(host, port),
        "per_connection_buffer_limit_bytes": BUFFER_LIMIT_BYTES,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }


def _error_log() -> Json:
    """Log what failed at the router or behind it, one JSON line each; no prompt, no query."""
    return {
        "name": "envoy.access_loggers.stdout",
        "filter": {
            "or_filter": {
                "filters": [
                    {
                        "status_code_filter": {
                            "comparison": {
                                "op": "GE",
                                "value": {
                                    "default_value": 500,
                                    "runtime_key": "kvquant.log_from_status",
                                },
                            }
                        }
                    },
                    {"response_flag_filter": {"flags": ["UT", "UR", "UC", "UF", "UH", "SI"]}},
                ]
            }
        },
        "typed_config": {
            "@type": "type.googleapis.com/"
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {
                "json_format": {
                    "time": "%START_TIME%",
                    "method": "%REQ(:METHOD)%",
                    "path": "%PATH(NQ)%",
                    "status": "%RESPONSE_CODE%",
                    "flags": "%RESPONSE_FLAGS%",
                    "details": "%RESPONSE_CODE_DETAILS%",
                    "slot": "%UPSTREAM_CLUSTER%",
                    "pod": "%UPSTREAM_HOST%",
                    "duration_ms": "%DURATION%",
                    "request_id": "%REQ(X-REQUEST-ID)%",
                }
            },
        },
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}
