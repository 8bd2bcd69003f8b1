"""What runs in the cluster besides the product: DNS, Prometheus and Alertmanager if asked for."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from kvlocal import images
from kvlocal.cluster import Cluster
from kvlocal.images import ALERTMANAGER_IMAGE, COREDNS_IMAGE, PROMETHEUS_IMAGE

SCRAPE_SECONDS = 1

PROMETHEUS_NAMESPACE = "monitoring"

Object = dict[str, Any]

COREFILE = """
.:53 {
    errors
    health :8081
    ready :8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        ttl 5
    }
    cache 5
    reload
}
"""

PROMETHEUS_CONFIG = f"""
global:
  scrape_interval: {SCRAPE_SECONDS}s
  scrape_timeout: {SCRAPE_SECONDS}s
scrape_configs:
- job_name: pods
  kubernetes_sd_configs:
  - role: pod
  relabel_configs:
  - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape]
    regex: "true"
    action: keep
  # A pod that has ended keeps its address for a while, and another may have it by then.
  - source_labels: [__meta_kubernetes_pod_phase]
    regex: Running
    action: keep
  - source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_path]
    regex: (.+)
    target_label: __metrics_path__
  # One target a pod, at the annotated port, whatever ports it declares.
  - source_labels: [__meta_kubernetes_pod_ip, __meta_kubernetes_pod_annotation_prometheus_io_port]
    separator: ":"
    target_label: __address__
  - source_labels: [__meta_kubernetes_namespace]
    target_label: namespace
  - source_labels: [__meta_kubernetes_pod_name]
    target_label: pod
  - source_labels: [__meta_kubernetes_pod_container_init]
    regex: "true"
    action: drop
"""

ALERTING_CONFIG = """
rule_files: [/etc/config/rules.yml]
alerting:
  alertmanagers:
  - static_configs:
    - targets: ["alertmanager.monitoring.svc:9093"]
"""

ALERTMANAGER_CONFIG = """
route:
  receiver: all
  # Each alert is a group of its own, and is told at once.
  group_by: ["..."]
  group_wait: 0s
  group_interval: 1s
receivers:
- name: all
  webhook_configs:
"""

WEBHOOK = """
  - url: {url}
    http_config:
      authorization: {{credentials_file: /etc/token/token}}
"""


def install_dns(cluster: Cluster) -> None:
    """Install CoreDNS and wait until it answers.

    Raises:
        LocalError: It does not become ready.
    """
    cluster.apply(*_dns(cluster.network.dns))


def install_prometheus(cluster: Cluster) -> None:
    """Install Prometheus, which scrapes every annotated pod; `wait` waits for it.

    Raises:
        LocalError: The API server refuses it.
    """
    cluster.apply(*_prometheus())


def install_alertmanager(cluster: Cluster, urls: Sequence[str], token: str, rules: str) -> None:
    """Install Alertmanager, and have Prometheus, which must be there, evaluate rules for it.

    Args:
        cluster: The cluster.
        urls: Webhooks that are told of every alert.
        token: What they are shown.
        rules: Rule file of Prometheus, as text.

    Raises:
        LocalError: The API server refuses something, or it does not become ready.
    """
    cluster.load(images.alertmanager())
    cluster.apply(*_alertmanager(urls, token), *_prometheus(rules))
    _restart(cluster, "alertmanager", "prometheus")


def remove_alertmanager(cluster: Cluster) -> None:
    """Stop Alertmanager, and have Prometheus, which loses what it has stored, evaluate no rules.

    Raises:
        LocalError: Prometheus does not become ready.
    """
    cluster.kubectl("delete", "deployment/alertmanager", "-n", PROMETHEUS_NAMESPACE)
    install_prometheus(cluster)
    _restart(cluster, "prometheus")


def _restart(cluster: Cluster, *deployments: str) -> None:
    """Begin anew with what was applied: nobody here looks at a changed configuration."""
    where = ("-n", PROMETHEUS_NAMESPACE)
    for name in deployments:
        cluster.kubectl("rollout", "restart", *where, f"deployment/{name}")
    for name in deployments:
        cluster.kubectl("rollout", "status", "--timeout=90s", *where, f"deployment/{name}")


def wait(cluster: Cluster, *, prometheus: bool) -> None:
    """Wait until what was installed is ready.

    Raises:
        LocalError: It does not become ready.
    """
    rollout = ("rollout", "status", "--timeout=90s")
    cluster.kubectl(*rollout, "-n", "kube-system", "deployment/coredns")
    if prometheus:
        cluster.kubectl(*rollout, "-n", PROMETHEUS_NAMESPACE, "deployment/prometheus")


def _dns(address: str) -> list[Object]:
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    return [
        *_reader(
            "coredns",
            "kube-system",
            [
                _rule([""], ["endpoints", "services", "pods", "namespaces", "nodes"]),
                _rule(["discovery.k8s.io"], ["endpointslices"]),
            ],
        ),
        _config_map("coredns", "kube-system", "Corefile", COREFILE),
        _deployment(
            "coredns",
            "kube-system",
            COREDNS_IMAGE,
            ["-conf", "/etc/config/Corefile"],
            {"path": "/ready", "port": 8181},
            dnsPolicy="Default",
        ),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {"clusterIP": address, "selector": {"app": "coredns"}, "ports": ports},
        },
    ]


def _alertmanager(urls: Sequence[str], token: str) -> list[Object]:
    config = ALERTMANAGER_CONFIG + "".join(WEBHOOK.format(url=url) for url in urls)
    deployment = _deployment(
        "alertmanager",
        PROMETHEUS_NAMESPACE,
        ALERTMANAGER_IMAGE,
        [
            "--config.file=/etc/config/alertmanager.yml",
            "--storage.path=/data",
            "--cluster.listen-address=",
        ],
        {"path": "/-/ready", "port": 9093},
    )
    pod = deployment["spec"]["template"]["spec"]
    pod["containers"][0]["volumeMounts"].append({"name": "token", "mountPath": "/etc/token"})
    pod["volumes"].append({"name": "token", "secret": {"secretName": "alertmanager"}})
    return [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "alertmanager", "namespace": PROMETHEUS_NAMESPACE},
            "data": {"token": base64.b64encode(token.encode()).decode()},
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "alertmanager", "namespace": PROMETHEUS_NAMESPACE},
        },
        _config_map("alertmanager", PROMETHEUS_NAMESPACE, "alertmanager.yml", config),
        deployment,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "alertmanager", "namespace": PROMETHEUS_NAMESPACE},
            "spec": {
                "selector": {"app": "alertmanager"},
                "ports": [{"name": "http", "port": 9093}],
            },
        },
    ]


def _prometheus(rules: str = "") -> list[Object]:
    config = _config_map(
        "prometheus",
        PROMETHEUS_NAMESPACE,
        "prometheus.yml",
        PROMETHEUS_CONFIG + (ALERTING_CONFIG if rules else ""),
    )
    if rules:
        config["data"]["rules.yml"] = rules
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PROMETHEUS_NAMESPACE}},
        *_reader("prometheus", PROMETHEUS_NAMESPACE, [_rule([""], ["pods"])]),
        config,
        _deployment(
            "prometheus",
            PROMETHEUS_NAMESPACE,
            PROMETHEUS_IMAGE,
            ["--config.file=/etc/config/prometheus.yml", "--storage.tsdb.path=/data"],
            {"path": "/-/ready", "port": 9090},
        ),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "prometheus", "namespace": PROMETHEUS_NAMESPACE},
            "spec": {"selector": {"app": "prometheus"}, "ports": [{"name": "http", "port": 9090}]},
        },
    ]


def _reader(name: str, namespace: str, rules: list[Object]) -> list[Object]:
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": namespace},
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": f"kvlocal:{name}"},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"kvlocal:{name}"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": f"kvlocal:{name}",
            },
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    ]


def _rule(groups: list[str], resources: list[str]) -> Object:
    return {"apiGroups": groups, "resources": resources, "verbs": ["get", "list", "watch"]}


def _config_map(name: str, namespace: str, file: str, text: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": {file: text},
    }


def _deployment(
    name: str, namespace: str, image: str, arguments: list[str], ready: Object, **pod: Any
) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "serviceAccountName": name,
                    "containers": [
                        {
                            "name": name,
                            "image": image,
                            "imagePullPolicy": "Never",
                            "args": arguments,
                            "readinessProbe": {"httpGet": ready, "periodSeconds": 1},
                            "volumeMounts": [
                                {"name": "config", "mountPath": "/etc/config"},
                                {"name": "data", "mountPath": "/data"},
                            ],
                        }
                    ],
                    "volumes": [
                        {"name": "config", "configMap": {"name": name}},
                        {"name": "data", "emptyDir": {}},
                    ],
                    **pod,
                },
            },
        },
    }
