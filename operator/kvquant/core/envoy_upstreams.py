"""The clusters of the router's Envoy: the two slots, the weights service, its own admin."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

Json = dict[str, Any]

XDS_CLUSTER = "kvquant_xds"
ADMIN_CLUSTER = "kvquant_admin"
SHADOW_CLUSTER = "kvquant_shadow"

BUFFER_LIMIT_BYTES = 32 * 1024 * 1024
"""Most that is held of one request or answer while its other side is slow. The longest prompts
must fit, because a request that does not fit cannot be sent to a second pod."""
NO_LIMIT = 1_000_000
"""Circuit breakers' limits. Envoy's defaults (1,024 requests) would turn a full pool's queue into
503s that look like the engine's; the engines queue by themselves."""
CONNECT_TIMEOUT = timedelta(seconds=3)
"""Fits one lost SYN, which is sent again after 1 s."""
IDLE_TIMEOUT = timedelta(seconds=3)
"""Idle connections are closed by us before the engine does it: vLLM's server closes after 5 s, and
a request that meets the closing is lost without an answer."""
MOST_COPIES = 8
"""Copies of requests that are under way to the shadow service. It takes each within milliseconds;
of one that hangs, a router must not hold more than this many times the longest body."""
COPY_TIMEOUT = timedelta(seconds=30)
CHOICES = 6
"""Pods drawn by chance, of which the one with the fewest requests in flight is taken. Not all of
them: a pod that refuses connections has the fewest, and every retry would choose it again."""
HEALTH_PATH = "/health"

_HTTP_OPTIONS = (
    "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
)
_POLICIES = "type.googleapis.com/envoy.extensions.load_balancing_policies"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the pods of a slot are.

    Attributes:
        host: DNS name with an A or AAAA record for each pod that may serve.
        port: Port on which the engines serve.
    """

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class WeightsService:
    """Where the operator serves weights, and how a router proves who it is.

    Attributes:
        host: DNS name, which the service's certificate must bear.
        port: Port.
        ca: Certificate authority of the service, PEM.
        secret_file: Path of the SDS file that names the token's file (see `token_secret`).
    """

    host: str
    port: int
    ca: str
    secret_file: str


TOKEN_SECRET = "kvquant-token"  # noqa: S105 - the name of a secret, not one


def seconds(duration: timedelta) -> str:
    """Return a duration as Envoy's JSON writes it."""
    return f"{duration.total_seconds():g}s"


def token_secret(token_file: str) -> Json:
    """Return the SDS file's content: the secret is what the token's file holds.

    Envoy watches the file's directory for moves, which is how the kubelet renews a token.
    """
    return {
        "resources": [
            {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                "name": TOKEN_SECRET,
                "generic_secret": {"secret": {"filename": token_file}},
            }
        ]
    }


def slot_cluster(
    slot: str, upstream: Upstream, *, hashed: bool, resolver: tuple[str, int] | None = None
) -> Json:
    """Return the cluster of a slot.

    Args:
        slot: Name of the slot and of the cluster.
        upstream: Where its pods are.
        hashed: Whether a hash of the request chooses the pod, instead of the fewest requests.
        resolver: Address and port of a DNS server; None takes the pod's own.
    """
    policy: tuple[str, Json]
    if hashed:
        policy = "ring_hash", {"@type": f"{_POLICIES}.ring_hash.v3.RingHash"}
    else:
        policy = (
            "least_request",
            {"@type": f"{_POLICIES}.least_request.v3.LeastRequest", "choice_count": CHOICES},
        )
    return {
        "name": slot,
        "cluster_type": _dns(resolver),
        "connect_timeout": seconds(CONNECT_TIMEOUT),
        "per_connection_buffer_limit_bytes": BUFFER_LIMIT_BYTES,
        # A pod that has left its Service gets no new request, healthy or not: its proof may have
        # been withdrawn.
        "ignore_health_on_host_removal": True,
        "load_balancing_policy": {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": f"envoy.load_balancing_policies.{policy[0]}",
                        "typed_config": policy[1],
                    }
                }
            ]
        },
        # Never send to an unhealthy pod, even when all are: an honest 503 is countable.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [
            {
                "timeout": "5s",
                "interval": "2s",
                # Without this, an idle pool would be checked once a minute.
                "no_traffic_interval": "2s",
                "unhealthy_threshold": 3,
                "healthy_threshold": 1,
                "http_health_check": {"path": HEALTH_PATH},
            }
        ],
        "circuit_breakers": {
            "thresholds": [
                {
                    "priority": "DEFAULT",
                    "max_connections": NO_LIMIT,
                    "max_pending_requests": NO_LIMIT,
                    "max_requests": NO_LIMIT,
                    "max_retries": NO_LIMIT,
                }
            ]
        },
        # A node that vanishes must not leave its requests waiting for their whole time-out.
        "upstream_connection_options": {
            "tcp_keepalive": {
                "keepalive_probes": 3,
                "keepalive_time": 30,
                "keepalive_interval": 10,
            }
        },
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS[1]: {
                "@type": _HTTP_OPTIONS[0],
                "common_http_protocol_options": {"idle_timeout": seconds(IDLE_TIMEOUT)},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
        "track_cluster_stats": {"request_response_sizes": True},
        "load_assignment": _endpoint(slot, upstream.host, upstream.port),
    }


def shadow_cluster(upstream: Upstream, resolver: tuple[str, int] | None = None) -> Json:
    """Return the cluster that gets the copies of requests, in which nobody waits for an answer.

    A copy that cannot be sent at once is dropped: nothing of it may ever slow down the original.
    """
    return {
        "name": SHADOW_CLUSTER,
        "cluster_type": _dns(resolver),
        "connect_timeout": "1s",
        # The longest body must fit, because a copy that is held up holds up its original.
        "per_connection_buffer_limit_bytes": BUFFER_LIMIT_BYTES,
        "circuit_breakers": {
            "thresholds": [
                {
                    "priority": "DEFAULT",
                    "max_connections": MOST_COPIES,
                    "max_pending_requests": MOST_COPIES,
                    "max_requests": MOST_COPIES,
                    "max_retries": 0,
                }
            ]
        },
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS[1]: {
                "@type": _HTTP_OPTIONS[0],
                "common_http_protocol_options": {
                    "idle_timeout": seconds(IDLE_TIMEOUT),
                    "max_stream_duration": seconds(COPY_TIMEOUT),
                },
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
        "load_assignment": _endpoint(SHADOW_CLUSTER, upstream.host, upstream.port),
    }


def xds_cluster(service: WeightsService) -> Json:
    """Return the cluster of the weights service: HTTP/2 over TLS, with the token in each stream."""
    return {
        "name": XDS_CLUSTER,
        "cluster_type": _dns(),
        "connect_timeout": seconds(CONNECT_TIMEOUT),
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": service.host,
                "common_tls_context": {
                    # As a client, Envoy stops at 1.2 unless told otherwise.
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "alpn_protocols": ["h2"],
                    "validation_context": {
                        "trusted_ca": {"inline_string": service.ca},
                        "match_typed_subject_alt_names": [
                            {"san_type": "DNS", "matcher": {"exact": service.host}}
                        ],
                    },
                },
            },
        },
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS[1]: {
                "@type": _HTTP_OPTIONS[0],
                "explicit_http_config": {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": "10s", "timeout": "5s"}
                    }
                },
                "http_filters": [_credential_injector(service.secret_file), _upstream_codec()],
            }
        },
        "load_assignment": _endpoint(XDS_CLUSTER, service.host, service.port),
    }


def admin_cluster(port: int) -> Json:
    """Return the cluster through which two paths of the admin interface are shown outside."""
    return {
        "name": ADMIN_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": _endpoint(ADMIN_CLUSTER, "127.0.0.1", port),
    }


def _credential_injector(secret_file: str) -> Json:
    return {
        "name": "envoy.filters.http.credential_injector",
        "typed_config": {
            "@type": "type.googleapis.com/"
            "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
            "overwrite": True,
            "credential": {
                "name": "envoy.http.injected_credentials.generic",
                "typed_config": {
                    "@type": "type.googleapis.com/"
                    "envoy.extensions.http.injected_credentials.generic.v3.Generic",
                    "header": "authorization",
                    "header_value_prefix": "Bearer ",
                    "credential": {
                        "name": TOKEN_SECRET,
                        "sds_config": {
                            "path_config_source": {"path": secret_file},
                            "resource_api_version": "V3",
                            "initial_fetch_timeout": "1s",
                        },
                    },
                },
            },
        },
    }


def _upstream_codec() -> Json:
    return {
        "name": "envoy.filters.http.upstream_codec",
        "typed_config": {
            "@type": "type.googleapis.com/"
            "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
        },
    }


def _dns(resolver: tuple[str, int] | None = None) -> Json:
    """Return a cluster type that has an endpoint for each address of the name."""
    config: Json = {
        "@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster",
        "dns_lookup_family": "V4_PREFERRED",
        "dns_refresh_rate": "1s",
        "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "5s"},
    }
    if resolver is not None:
        config["typed_dns_resolver_config"] = {
            "name": "envoy.network.dns_resolver.cares",
            "typed_config": {
                "@type": "type.googleapis.com/"
                "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [
                    {"socket_address": {"address": resolver[0], "port_value": resolver[1]}}
                ],
                "dns_resolver_options": {"no_default_search_domain": True},
            },
        }
    return {"name": "envoy.clusters.dns", "typed_config": config}


def _endpoint(cluster: str, host: str, port: int) -> Json:
    address = {"socket_address": {"address": host, "port_value": port}}
    return {
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
    }
