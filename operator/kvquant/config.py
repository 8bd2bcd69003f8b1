"""The operator's configuration: environment variables, read once at start."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from kvquant.core.scope import Scope
from kvquant.errors import KVQuantError

DEFAULT_NAMESPACE = "kvquant-system"
NOTIFY_FORMATS = ("cloudevents", "slack")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class ConfigError(KVQuantError):
    """An environment variable that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class OperatorConfig:
    """Settings of one operator process. Each field is the variable KVQUANT_<FIELD>.

    Attributes:
        namespace: Namespace in which the operator runs.
        watch_namespaces: Namespaces to watch, separated by commas; empty: the whole cluster.
        prometheus_url: Where Prometheus answers queries.
        prometheus_timeout: Longest wait for one query, in seconds.
        prometheus_auth_folder: Folder of a mounted Secret with credentials and trust for
            Prometheus, read anew for each query: token; or username and password; header.NAME for
            further headers; ca.crt; tls.crt and tls.key. Empty: none are needed.
        prometheus_namespace_label: Label in which Prometheus keeps a pod's namespace.
        prometheus_pod_label: Label in which Prometheus keeps a pod's name.
        prometheus_matchers: More matchers for every selector of pods' metrics, in PromQL, where
            Prometheus knows several clusters: cluster="prod-1".
        prometheus_delay: Seconds from the begin of a scrape until its samples are found by
            queries; more where they are sent on to another store.
        tick_seconds: Seconds between two looks at the metrics of all rollouts.
        router_image: Image of the routers that the operator creates.
        shadow_image: Image of the shadow services that the operator creates.
        evaluation_image: Image of the Jobs that evaluate example sets.
        image_pull_policy: Pull policy of all of them.
        image_pull_secrets: Names of the Secrets to pull them with, separated by commas, which every
            namespace with a rollout must have; empty: none are needed.
        xds_host: Name by which routers reach this operator's weights service.
        xds_port: Port of the weights service.
        metrics_port: Port of the operator's own Prometheus metrics.
        health_port: Port of the liveness endpoint.
        alerts_port: Port at which Alertmanager tells which alerts fire; 0: it is not listened to.
        alerts_token_file: File with the token that it must bear, such as of a mounted Secret.
            Without a token nobody is heard, unless clients must have certificates.
        alerts_tls_folder: Folder with tls.crt and tls.key for that port; empty: no TLS.
        alerts_client_ca: File with the authorities of which Alertmanager must have a certificate;
            empty: it needs none.
        alerts_matchers: Matchers for the alerts of Prometheus, as prometheus_matchers has them for
            pods' metrics.
        alerts_poll: Seconds between two looks at the alerts of Prometheus; 0: it is not asked.
        record_url: Bucket or folder to which each decision is appended for good, besides the record
            in a ConfigMap: s3://bucket/prefix, gs://bucket/prefix or file:///folder. Credentials
            come from the environment, by the names that the vendor's tools read. Empty: nowhere.
        notify_folder: Folder of a mounted Secret that names who is told what happens to rollouts,
            read anew for each notification: url; and as for Prometheus token, username and
            password, header.NAME, ca.crt, tls.crt and tls.key. Empty: nobody.
        notify_format: cloudevents, or slack for what takes Slack's messages.
        lease_seconds: Seconds of silence after which another replica of the operator takes over
            from the one that decides; 0: this is the only replica, and it asks nobody.
        stuck_after: Seconds without a finished pass after which a rollout's loop counts as stuck.
        log_level: DEBUG, INFO, WARNING or ERROR.
    """

    namespace: str = DEFAULT_NAMESPACE
    watch_namespaces: str = ""
    prometheus_url: str = "http://prometheus.monitoring.svc:9090"
    prometheus_timeout: float = 10.0
    prometheus_auth_folder: str = ""
    prometheus_namespace_label: str = "namespace"
    prometheus_pod_label: str = "pod"
    prometheus_matchers: str = ""
    prometheus_delay: float = 1.0
    tick_seconds: float = 15.0
    router_image: str = "kvquant/router:dev"
    shadow_image: str = "kvquant/shadow:dev"
    evaluation_image: str = "kvquant/evaluation:dev"
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: str = ""
    xds_host: str = "kvquant-xds.kvquant-system.svc"
    xds_port: int = 18000
    metrics_port: int = 9100
    health_port: int = 8080
    alerts_port: int = 0
    alerts_token_file: str = ""
    alerts_tls_folder: str = ""
    alerts_client_ca: str = ""
    alerts_matchers: str = ""
    alerts_poll: float = 5.0
    record_url: str = ""
    notify_folder: str = ""
    notify_format: str = "cloudevents"
    lease_seconds: float = 0.0
    stuck_after: float = 300.0
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> OperatorConfig:
        """Read the configuration.

        Raises:
            ConfigError: A variable does not hold what it should.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, str | int | float] = {}
        for field in fields(cls):
            variable = f"KVQUANT_{field.name.upper()}"
            text = environ.get(variable)
            if text is None:
                continue
            try:
                values[field.name] = _CONVERTERS[str(field.type)](text)
            except ValueError:
                kind = _KINDS[str(field.type)]
                raise ConfigError(f"{variable}={text!r}: expected {kind}") from None
            _check(variable, values[field.name])
        return cls(**values)  # type: ignore[arg-type]  # each value was converted to its field's type

    @property
    def scope(self) -> Scope:
        """How Prometheus labels what it scrapes here."""
        return Scope(
            namespace=self.prometheus_namespace_label,
            pod=self.prometheus_pod_label,
            matchers=self.prometheus_matchers,
        )

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces to watch; empty means all."""
        return _listed(self.watch_namespaces)

    @property
    def pull_secrets(self) -> tuple[str, ...]:
        """Names of the Secrets to pull images with."""
        return _listed(self.image_pull_secrets)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_CONVERTERS = {"str": str, "int": int, "float": float}
_KINDS = {"str": "a text", "int": "a whole number", "float": "a number"}

_PROMQL = {
    "KVQUANT_PROMETHEUS_NAMESPACE_LABEL": "namespace",
    "KVQUANT_PROMETHEUS_POD_LABEL": "pod",
    "KVQUANT_PROMETHEUS_MATCHERS": "matchers",
    "KVQUANT_ALERTS_MATCHERS": "matchers",
}
"""Variables that become part of a query, and which field of `Scope` checks them."""

_SECRET_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")

_MAY_BE_OFF = frozenset({"KVQUANT_ALERTS_PORT", "KVQUANT_ALERTS_POLL", "KVQUANT_LEASE_SECONDS"})
"""Variables in which 0 turns something off."""


def _check(variable: str, value: str | float) -> None:
    """Refuse what would be found out much later, or never."""
    if variable in _PROMQL:
        try:
            Scope(**{_PROMQL[variable]: str(value)})
        except ValueError as error:
            raise ConfigError(f"{variable}: {error}") from None
    if variable == "KVQUANT_NOTIFY_FORMAT" and value not in NOTIFY_FORMATS:
        raise ConfigError(f"{variable}={value!r}: expected one of {', '.join(NOTIFY_FORMATS)}")
    if variable == "KVQUANT_LOG_LEVEL" and value not in LOG_LEVELS:
        raise ConfigError(f"{variable}={value!r}: expected one of {', '.join(LOG_LEVELS)}")
    if variable == "KVQUANT_IMAGE_PULL_SECRETS":
        for secret in _listed(str(value)):
            if not _SECRET_NAME.fullmatch(secret):
                raise ConfigError(
                    f"{variable}: {secret!r} is no name of a Secret, such as registry"
                )
    if variable in _MAY_BE_OFF and value == 0:
        return
    if isinstance(value, int) and not 1 <= value <= 65535:
        raise ConfigError(f"{variable}={value}: expected a port from 1 to 65535")
    if isinstance(value, float) and not 0 < value < math.inf:
        raise ConfigError(f"{variable}={value}: expected a number of seconds above 0")
