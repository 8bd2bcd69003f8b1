"""An operator at its most talkative tells no secret: not in logs, Events, statuses or metrics."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from kvlocal.apiserver import free_ports
from kvquant.adapters.cluster import KubernetesCluster
from kvquant.adapters.connection import Connection
from kvquant.api import names
from kvquant.weights_identity import SECRET
from tests import manifests
from tests.apiserver.conftest import Kubectl
from tests.transplant import holding, make_namespace, promoted, transplant
from tests.waiting import wait_until

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(300)]

HOME = "kvquant-system"
PASSWORD = "planted-password"
API_KEY = "key-for-prometheus-51c0"
BUCKET_KEY = "key-of-a-bucket-77ab"
HOOK = "T0PLANTED-hook-of-somebody"
ALERTS_TOKEN = "token-of-alertmanager-9d2f"


@dataclass
class Told:
    """What an operator has told after a while, and the secrets that it had."""

    text: str
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def told(
    kubectl: Kubectl,
    kubeconfig: Path,
    connection: Connection,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("secrets")
    install = manifests.EXAMPLES / "install" / "operator.yaml"
    kubectl.ok("apply", "--server-side", "--force-conflicts", "-f", str(install))
    token = kubectl.ok("create", "token", "kvquant-operator", "-n", HOME).strip()
    document = yaml.safe_load(kubeconfig.read_text())
    document["users"][0]["user"] = {"token": token}
    credentials = folder / "kubeconfig"
    credentials.write_text(yaml.safe_dump(document))
    namespace = f"secrets-{uuid.uuid4().hex[:8]}"
    make_namespace(connection, namespace)
    transplant(connection, promoted(), namespace, "pro")
    hold = transplant(connection, holding(), namespace, "hold")
    nobody, xds, metrics, health, alerts = free_ports(5)
    (folder / "alerts-token").write_text(ALERTS_TOKEN)
    (folder / "prometheus").mkdir()
    (folder / "prometheus" / "header.X-Api-Key").write_text(API_KEY)
    (folder / "notify").mkdir()
    (folder / "notify" / "url").write_text(f"http://127.0.0.1:{nobody}/hooks/{HOOK}")
    environment = {
        **os.environ,
        "KUBECONFIG": str(credentials),
        "KVQUANT_NAMESPACE": HOME,
        "KVQUANT_WATCH_NAMESPACES": namespace,
        # Nobody answers there, which is what the status and the log then speak of.
        "KVQUANT_PROMETHEUS_URL": f"http://user:{PASSWORD}@127.0.0.1:{nobody}",
        "KVQUANT_PROMETHEUS_AUTH_FOLDER": str(folder / "prometheus"),
        "KVQUANT_XDS_PORT": str(xds),
        "KVQUANT_METRICS_PORT": str(metrics),
        "KVQUANT_HEALTH_PORT": str(health),
        "KVQUANT_ALERTS_PORT": str(alerts),
        "KVQUANT_ALERTS_TOKEN_FILE": str(folder / "alerts-token"),
        # Nobody answers for the bucket, either.
        "KVQUANT_RECORD_URL": "s3://records/kvquant",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{nobody}",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "kvquant",
        "AWS_SECRET_ACCESS_KEY": BUCKET_KEY,
        # Nor for those who are to be told.
        "KVQUANT_NOTIFY_FOLDER": str(folder / "notify"),
        "KVQUANT_LOG_LEVEL": "DEBUG",
    }
    log = folder / "log"
    cluster = KubernetesCluster(connection)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "kvquant"], env=environment, stdout=file, stderr=file
        )
        try:
            wait_until(
                lambda: "cannot be reached" in str(cluster.get(names.KIND, namespace, hold.name)),
                180,
                "the status tells that Prometheus cannot be reached",
                interval=0.5,
            )
            wait_until(
                lambda: "cannot be written to the archive yet" in log.read_text(),
                60,
                "the log tells that the bucket is away",
                interval=0.5,
            )
            wait_until(
                lambda: "A notification is not delivered yet" in log.read_text(),
                60,
                "the log tells that nobody can be told",
                interval=0.5,
            )
            for token_shown, status in ((ALERTS_TOKEN, 400), (f"{ALERTS_TOKEN}x", 401)):
                assert post(f"http://127.0.0.1:{alerts}/alerts", token_shown) == status
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as answer:
                exported = answer.read().decode()
        finally:
            process.terminate()
            process.wait(20)
    kept = cluster.get("Secret", HOME, SECRET)
    assert kept is not None
    everything = [
        log.read_text(),
        exported,
        *map(str, cluster.list(names.KIND, namespace, {})),
        *map(str, cluster.list("Event", namespace, {})),
        *map(str, cluster.list("ConfigMap", namespace, {})),
        *map(str, cluster.list("Deployment", namespace, {})),
    ]
    key = base64.b64decode(kept["data"]["tls.key"]).decode()
    yield Told(
        "\n".join(everything),
        {
            "password": PASSWORD,
            "authorization": base64.b64encode(f"user:{PASSWORD}".encode()).decode(),
            "token": token.split(".")[2],
            "token of alerts": ALERTS_TOKEN,
            "key for Prometheus": API_KEY,
            "key of the bucket": BUCKET_KEY,
            "address of notifications": HOOK,
            "key": kept["data"]["tls.key"][100:180],
            "the key's text": key.splitlines()[1],
            "any key": "PRIVATE KEY",
        },
    )
    kubectl("delete", "namespace", namespace, "--wait=false")


def post(url: str, token: str) -> int:
    """Post nonsense with a token; return the status of the answer."""
    request = urllib.request.Request(
        url, data=b"nonsense", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize(
    "secret",
    [
        *("password", "authorization", "token", "token of alerts", "key for Prometheus"),
        *("key of the bucket", "key", "the key's text", "any key"),
    ],
)
def test_no_secret_is_told(told: Told, secret: str) -> None:
    assert told.secrets[secret] not in told.text


def test_something_was_told(told: Told) -> None:
    assert "kvquant_reconcile_seconds" in told.text
    assert "hold-fp8" in told.text
    assert "kvquant_archive_errors_total" in told.text
    assert "DEBUG" in told.text.upper()
