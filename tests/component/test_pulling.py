"""Images of ours come from the user's registry, whose Secrets every pod that needs them names."""

from __future__ import annotations

from typing import Any

import pytest

from kvquant.api.v1alpha1 import Phase, Status
from kvquant.config import OperatorConfig
from tests.component.test_evaluation import SET, config_map
from tests.site import Site, engine_pool, rollout

OWN = [{"name": "models"}]


def secrets(site: Site) -> dict[str, Any]:
    """Return what each pod template that is there now names, by the name or kind of its object."""
    named = {pool["metadata"]["name"]: pool for pool in site.cluster.objects("Deployment")}
    named.update(("Job", job) for job in site.cluster.objects("Job"))
    pods = {name: obj["spec"]["template"]["spec"] for name, obj in named.items()}
    return {name: pod.get("imagePullSecrets") for name, pod in pods.items()}


@pytest.mark.parametrize(
    ("text", "named"),
    [("", None), ("registry,mirror", [{"name": "registry"}, {"name": "mirror"}])],
)
def test_every_pod_of_ours_names_them_and_the_pools_keep_their_own(
    text: str, named: object
) -> None:
    site = Site(config=OperatorConfig(image_pull_secrets=text))
    target = engine_pool()
    target["spec"]["template"]["spec"]["imagePullSecrets"] = OWN
    site.deploy(target)
    site.cluster.put(config_map())
    ref = site.apply(rollout(evaluation=SET))
    seen: dict[str, Any] = {}

    def goes_on(status: Status) -> bool:
        seen.update(secrets(site))
        return status.phase is Phase.PROGRESSING

    site.until(ref, goes_on)
    pools = {"llama": OWN, "llama-fp8-pool": OWN}
    ours = dict.fromkeys(("llama-router", "llama-router-shadow", "Job"), named)
    assert seen == {**pools, **ours}
