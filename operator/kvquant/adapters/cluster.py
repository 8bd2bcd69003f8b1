"""The `Cluster` port over the Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kvquant import errors
from kvquant.adapters.connection import APPLY_PATCH, MERGE_PATCH, Answer, Connection, raise_for
from kvquant.api import names
from kvquant.core import http_routes
from kvquant.ports import Object

PAGE = 500
"""Objects per page of a list; what kubectl uses."""

LARGE_PAGE = 50
"""The same of a kind whose objects may have a MiB each: an answer may only be so long."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Where the API server keeps a kind.

    Attributes:
        api_version: Group and version.
        plural: Name in paths.
        page: Objects per page of a list.
    """

    api_version: str
    plural: str
    page: int = PAGE

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the path of an object, or of all objects when there is no name.

        An empty namespace stands for all of them.
        """
        root = "/api" if "/" not in self.api_version else "/apis"
        parts = [root, self.api_version]
        if namespace:
            parts += ["namespaces", namespace]
        return "/".join([*parts, self.plural, *filter(None, (name, subresource))])


RESOURCES: Mapping[str, Resource] = {
    names.KIND: Resource(names.API_VERSION, names.PLURAL),
    "ConfigMap": Resource("v1", "configmaps", LARGE_PAGE),
    "Deployment": Resource("apps/v1", "deployments"),
    "Event": Resource("v1", "events"),
    "Gateway": Resource(http_routes.API_VERSION, "gateways"),
    "GatewayClass": Resource(http_routes.API_VERSION, "gatewayclasses"),
    "HTTPRoute": Resource(http_routes.API_VERSION, "httproutes"),
    "HorizontalPodAutoscaler": Resource("autoscaling/v2", "horizontalpodautoscalers"),
    "Job": Resource("batch/v1", "jobs"),
    "Pod": Resource("v1", "pods"),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets"),
    "ReplicaSet": Resource("apps/v1", "replicasets"),
    "Secret": Resource("v1", "secrets"),
    "Service": Resource("v1", "services"),
    "ServiceAccount": Resource("v1", "serviceaccounts"),
}
"""Every kind that the operator and the CLI touch. GatewayClass alone is not namespaced: it is read
in the empty namespace."""


class KubernetesCluster:
    """Kubernetes objects as raw JSON; see `kvquant.ports.Cluster` for what each call promises."""

    def __init__(self, connection: Connection, field_validation: str = "Warn") -> None:
        """Wrap a connection.

        Args:
            connection: The API server to talk to.
            field_validation: What the server does about unknown fields in what is written. Tests
                say `Strict`; the product does not, so that an operator that is newer than the CRD
                on the cluster loses a field of its status and not the whole of it.
        """
        self._connection = connection
        self._writing = {"fieldManager": names.FIELD_MANAGER, "fieldValidation": field_validation}

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return the object, or None when there is none."""
        subject = f"{kind} {namespace}/{name}"
        answer = self._connection.request("GET", _resource(kind).path(namespace, name))
        if answer.status == 404 and answer.names_an_object:
            return None
        _raise_if_not_served(answer, kind)
        raise_for(answer, subject)
        return answer.document

    def list(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Object]:
        """Return the objects whose labels match all the given ones.

        An empty namespace stands for all of them.
        """
        return [_typed(obj, kind) for page in self._pages(kind, namespace, labels) for obj in page]

    def apply(self, obj: Object) -> Object:
        """Server-side apply as our field manager, taking over fields of ours that drifted."""
        kind, namespace, name = _identity(obj)
        answer = self._connection.request(
            "PATCH",
            _resource(kind).path(namespace, name),
            query={**self._writing, "force": "true"},
            body=obj,
            content_type=APPLY_PATCH,
        )
        _raise_if_not_served(answer, kind)
        raise_for(answer, f"{kind} {namespace}/{name}")
        return answer.document

    def patch(self, kind: str, namespace: str, name: str, patch: Object) -> Object:
        """JSON merge patch. With `metadata.resourceVersion` in it, stale raises `Conflict`.

        An object that is gone raises `Conflict` too: reading again tells.
        """
        answer = self._connection.request(
            "PATCH",
            _resource(kind).path(namespace, name),
            query=self._writing,
            body=patch,
            content_type=MERGE_PATCH,
        )
        return _written(answer, f"{kind} {namespace}/{name}")

    def replace_status(self, obj: Object) -> Object:
        """Write the whole status; `metadata.resourceVersion` must be current, else `Conflict`.

        An object that is gone raises `Conflict` too: reading again tells.
        """
        kind, namespace, name = _identity(obj)
        path = _resource(kind).path(namespace, name, "status")
        answer = self._connection.request("PUT", path, query=self._writing, body=obj)
        return _written(answer, f"status of {kind} {namespace}/{name}")

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete the object with its dependents. One that is gone already is no error."""
        answer = self._connection.request(
            "DELETE",
            _resource(kind).path(namespace, name),
            query={"propagationPolicy": "Background"},
        )
        if answer.status != 404:
            raise_for(answer, f"{kind} {namespace}/{name}")

    def _pages(
        self, kind: str, namespace: str, labels: Mapping[str, str]
    ) -> Iterator[Sequence[Object]]:
        path = _resource(kind).path(namespace)
        query = {"limit": str(_resource(kind).page)}
        if labels:
            query["labelSelector"] = ",".join(f"{key}={value}" for key, value in labels.items())
        while True:
            answer = self._connection.request("GET", path, query=query)
            _raise_if_not_served(answer, kind)
            raise_for(answer, f"list of {kind} in {namespace or 'all namespaces'}")
            yield answer.document.get("items") or []
            token = answer.document.get("metadata", {}).get("continue")
            if not token:
                return
            query["continue"] = token


_GATEWAY_API = "install the CRDs of the Gateway API first"
_REMEDIES = {
    names.KIND: "apply the files in crds/ first",
    "Gateway": _GATEWAY_API,
    "GatewayClass": _GATEWAY_API,
    "HTTPRoute": _GATEWAY_API,
}


def _resource(kind: str) -> Resource:
    try:
        return RESOURCES[kind]
    except KeyError:
        known = ", ".join(sorted(RESOURCES))
        raise ValueError(f"no path is known for kind {kind!r}; known are {known}") from None


def _identity(obj: Object) -> tuple[str, str, str]:
    """Return kind, namespace and name of an object."""
    metadata = obj["metadata"]
    return obj["kind"], metadata["namespace"], metadata["name"]


def _typed(obj: Object, kind: str) -> Object:
    """Put back apiVersion and kind, which the API server leaves out of a list's items."""
    return {**obj, "apiVersion": RESOURCES[kind].api_version, "kind": kind}


def _written(answer: Answer, subject: str) -> Object:
    if answer.status == 404 and answer.names_an_object:
        raise errors.Conflict(f"{subject} is gone: {answer.message}")
    raise_for(answer, subject)
    return answer.document


def _raise_if_not_served(answer: Answer, kind: str) -> None:
    """Tell a missing kind from a missing object: both are 404."""
    if answer.status == 404 and not answer.names_an_object:
        remedy = _REMEDIES.get(kind, "it is too old")
        raise errors.Refused(f"the cluster does not serve {kind}: {remedy}")
