"""Fixtures that more than one tier of tests uses: a real API server, without a node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from kvquant.adapters.connection import APPLY_PATCH, Connection
from kvquant.errors import ClusterError
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[1]
CRD_FILE = REPOSITORY / "crds" / "kvquant.dev_kvquantrollouts.yaml"
CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/kvquantrollouts.kvquant.dev"

# Properties are tried on the same examples each time, so that chance blocks nobody's change; `make
# fuzz` draws other ones. A busy machine is slow at random, hence no deadline for an example.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("chance", deadline=None)
settings.load_profile("chance" if "EXAMPLES" in os.environ else "same")


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Path of a kubeconfig for an API server that the tests may do anything to.

    KVQUANT_TEST_KUBECONFIG names one that runs already; without it, etcd and kube-apiserver are
    started on loopback for this session and removed after it.
    """
    given = os.environ.get("KVQUANT_TEST_KUBECONFIG")
    if given:
        yield Path(given)
        return
    from kvlocal.apiserver import ApiServer

    with ApiServer(tmp_path_factory.mktemp("apiserver")) as server:
        yield server.kubeconfig


@pytest.fixture(scope="session")
def connection(kubeconfig: Path) -> Iterator[Connection]:
    """An administrator's connection to an API server that serves KVQuantRollout."""
    connection = Connection.from_kubeconfig(str(kubeconfig))
    apply_crd(connection)
    yield connection
    connection.close()


def apply_crd(connection: Connection) -> None:
    """Install the committed CRD and wait until its kind is served."""
    document = yaml.safe_load(CRD_FILE.read_text())
    connection.expect(
        "PATCH",
        CRD_PATH,
        subject="CRD",
        query={"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"},
        body=document,
        content_type=APPLY_PATCH,
    )
    wait_until(lambda: is_served(connection), 30, "KVQuantRollout should be served")


@pytest.fixture(scope="session")
def gateway_api(connection: Connection) -> None:
    """The kinds of the Gateway API, which a cluster has or has not."""
    from kvlocal import gateways

    for document in yaml.safe_load_all(gateways.crds().read_text()):
        if (document or {}).get("kind") == "CustomResourceDefinition":
            connection.expect(
                "PATCH",
                CRD_PATH.rpartition("/")[0] + f"/{document['metadata']['name']}",
                subject="CRD of the Gateway API",
                query={"fieldManager": "tests", "force": "true"},
                body=document,
                content_type=APPLY_PATCH,
            )

    def served() -> bool:
        path = "/apis/gateway.networking.k8s.io/v1/"
        kinds = ("httproutes", "gateways", "gatewayclasses")
        return all(connection.request("GET", path + kind).status == 200 for kind in kinds)

    wait_until(served, 60, "the Gateway API should be served")


def is_served(connection: Connection) -> bool:
    """Whether rollouts can be read and written, which lags behind Established a little."""
    crd = connection.expect("GET", CRD_PATH, subject="CRD")
    if crd_conditions(crd).get("Established") != "True":
        return False
    try:
        connection.expect("GET", "/apis/kvquant.dev/v1alpha1/kvquantrollouts", subject="rollouts")
    except ClusterError:
        return False
    return True


def crd_conditions(crd: dict[str, Any]) -> dict[str, str]:
    """Return the CRD's conditions by type."""
    return {c["type"]: c["status"] for c in crd.get("status", {}).get("conditions", ())}
