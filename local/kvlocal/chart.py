"""The Helm chart: rendered, installed, and what is generated from it.

`python -m kvlocal.chart` writes the manifest of `examples/install` and the chart's README anew.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kvlocal import binaries
from kvlocal.cache import REPOSITORY
from kvlocal.cluster import Cluster
from kvlocal.commands import run

CHART = REPOSITORY / "charts" / "kvquant-operator"
RELEASE = "kvquant"
NAMESPACE = "kvquant-system"
MANIFEST = REPOSITORY / "examples" / "install" / "operator.yaml"
README = CHART / "README.md"

HEADER = """\
# The operator, its rights and its services, for those who do without Helm. Generated from
# charts/kvquant-operator by `make manifests`. Apply crds/ first:
#   kubectl apply --server-side -f crds/ && kubectl apply -f examples/install/operator.yaml
"""

Values = Mapping[str, Any]


def ensure() -> None:
    """Have Helm ready, so that nothing waits for it later.

    Raises:
        LocalError: It cannot be built.
    """
    binaries.helm()


def namespace() -> dict[str, Any]:
    """Return the namespace of the operator, in which nothing may run that asks for privileges."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": labels},
    }


def render(
    values: Values | None = None, *arguments: str, release: str = RELEASE, chart: Path = CHART
) -> str:
    """Return what the chart makes of values, without a cluster.

    Raises:
        LocalError: Helm refuses the values, or the chart; the message is Helm's own.
    """
    where = f"--namespace={NAMESPACE}"
    return _helm("template", release, str(chart), *arguments, where, values=values)


def install(cluster: Cluster, values: Values | None = None, *arguments: str) -> None:
    """Install the chart in a cluster or upgrade it, and wait for nothing.

    Raises:
        LocalError: Helm fails.
    """
    helm(cluster, "upgrade", "--install", RELEASE, str(CHART), *arguments, values=values)


def helm(cluster: Cluster, verb: str, *arguments: str, values: Values | None = None) -> str:
    """Run Helm on a cluster, in the namespace of the operator, and return what it printed.

    Raises:
        LocalError: It failed; the message is Helm's own.
    """
    return helm_in(cluster, NAMESPACE, verb, *arguments, values=values)


def helm_in(cluster: Cluster, namespace: str, *arguments: str, values: Values | None = None) -> str:
    """Run Helm on a cluster, in any namespace, and return what it printed.

    Raises:
        LocalError: It failed; the message is Helm's own.
    """
    where = (f"--kubeconfig={cluster.kubeconfig}", f"--namespace={namespace}")
    return _helm(*arguments, *where, values=values)


def manifest() -> str:
    """Return the manifest of `examples/install`.

    Raises:
        LocalError: Helm fails.
    """
    # The CRD lies in crds/ already.
    rendered = render({"crds": {"install": False}})
    return f"{HEADER}{yaml.safe_dump(namespace(), sort_keys=False)}{rendered}"


def readme() -> str:
    """Return the chart's README, with a table of its values.

    Raises:
        LocalError: helm-docs fails.
    """
    return run(
        *(str(binaries.helm_docs()), "--dry-run", "--log-level=error"),
        *(f"--chart-search-root={CHART}", "--skip-version-footer"),
    )


def _helm(verb: str, *arguments: str, values: Values | None) -> str:
    given = [] if values is None else ["--values=-"]
    stdin = None if values is None else yaml.safe_dump(dict(values))
    return run(str(binaries.helm()), verb, *arguments, *given, stdin=stdin)


if __name__ == "__main__":
    for path, text in ((MANIFEST, manifest()), (README, readme())):
        path.write_text(text)
        sys.stdout.write(f"wrote {path.relative_to(REPOSITORY)}\n")
