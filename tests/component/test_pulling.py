"""Images of ours come from the user's registry, whose Secrets every pod that needs them names."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.api.v1alpha1 import Phase, Status
from kvquant.config import OperatorConfig
from tests.site import NAMESPACE, Site, rollout

SET = {"dataset": {"configMapName": "rag"}}
DATASET = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "rag", "namespace": NAMESPACE},
    "data": {"set.jsonl": '{"id": "1"}'},
}


def secrets(site: Site) -> dict[str, Any]:
    """Return what each pod template that is there now names, by the name of its object."""
    return {
        "evaluation" if kind == "Job" else obj["metadata"]["name"]: obj["spec"]["template"][
            "spec"
        ].get("imagePullSecrets")
        for kind in ("Deployment", "Job")
        for obj in site.cluster.objects(kind)
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [("", None), ("registry,mirror", [{"name": "registry"}, {"name": "mirror"}])],
)
def test_every_pod_of_ours_names_them_and_the_pools_keep_their_own(
    text: str, named: object
) -> None:
    site = Site(config=OperatorConfig(image_pull_secrets=text))
    site.deploy()
    site.cluster.put(DATASET)
    ref = site.apply(rollout(evaluation=SET))
    seen: dict[str, Any] = {}

    def goes_on(status: Status) -> bool:
        seen.update(secrets(site))
        return status.phase is Phase.PROGRESSING

    site.until(ref, goes_on)
    pools = {"llama": None, "llama-fp8-pool": None}
    ours = dict.fromkeys(("llama-router", "llama-router-shadow", "evaluation"), named)
    assert seen == {**pools, **ours}
