"""An operator whose API server is slow and answers 409, 429 and 500, while clients are served."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator

import pytest
import yaml

from kvlocal import addons, chart, product
from kvlocal.cluster import Cluster
from kvquant.api.v1alpha1 import Phase
from tests.e2e.stage import LADDER, Stage, failures, moves, once
from tests.fault_proxy import ONCE, FaultProxy, Odds

pytestmark = [pytest.mark.node, pytest.mark.full, pytest.mark.timeout(600)]

BAD_DAY = Odds(conflict=0.1, throttled=0.06, broken=0.04, lost=0.06, slow=0.05, delay=(1.0, 3.0))
"""A quarter of all writes goes wrong in one way or another."""

SECRET, FOLDER = "bad-day", "/etc/kvquant/api"


@pytest.fixture
def proxy(cluster: Cluster) -> Iterator[FaultProxy]:
    """A proxy through which the operator's pod, and nobody else, reaches the API server.

    kopf's own watch of rollouts goes by the pod's ServiceAccount and past it; what passes read and
    write does not (`tests/apiserver/test_api_faults.py` leads kopf through it as well).
    """
    (server,) = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"]
    authority = base64.b64decode(server["cluster"]["certificate-authority-data"]).decode()
    trust = ssl.create_default_context(cadata=authority)
    with FaultProxy(server["cluster"]["server"], trust, host=cluster.network.host) as proxy:
        system = ("-n", product.NAMESPACE)
        token = cluster.kubectl("create", "token", "kvquant-operator", *system).strip()
        way = {"server": f"http://{proxy.host}:{proxy.port}"}
        document = {
            "current-context": "c",
            "clusters": [{"name": "k", "cluster": way}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        }
        cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": SECRET, "namespace": product.NAMESPACE},
                "stringData": {"kubeconfig": yaml.safe_dump(document)},
            }
        )
        chart.install(
            cluster,
            {
                "replicas": 1,
                "prometheus": {"tickSeconds": addons.SCRAPE_SECONDS},
                "extraEnv": [{"name": "KUBECONFIG", "value": f"{FOLDER}/kubeconfig"}],
                "extraVolumes": [{"name": "api", "secret": {"secretName": SECRET}}],
                "extraVolumeMounts": [{"name": "api", "mountPath": FOLDER, "readOnly": True}],
            },
        )
        product.wait(cluster)
        try:
            yield proxy
        finally:
            product.install(cluster)
            product.wait(cluster)
            cluster.kubectl("delete", "secret", SECRET, *system)


def test_a_rollout_comes_to_its_end_and_no_client_notices_an_api_server_on_a_bad_day(
    stage: Stage, proxy: FaultProxy
) -> None:
    stage.serve()
    passed = proxy.done["passed"]
    assert passed > 0, "the operator should come by the proxy"
    stage.roll_out("fp8", "fp8", progressDeadline="10m")
    load = stage.send()
    proxy.odds = BAD_DAY
    proxy.owed += ONCE
    promoted = stage.until_settled("fp8", Phase.PROMOTED, 400)
    load.stop()

    assert stage.weights == LADDER
    assert moves(promoted) == once(steps=2), "nothing is decided twice"
    assert not failures(load)
    assert set(ONCE) <= set(proxy.injected)
