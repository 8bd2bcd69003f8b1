"""A Lease of Kubernetes, read and written as it stands."""

from __future__ import annotations

from kvquant.adapters.connection import Connection, raise_for
from kvquant.ports import Object

API = "coordination.k8s.io/v1"


class KubernetesLease:
    """One Lease; see `kvquant.ports.LeaseStore` for what each call promises."""

    def __init__(self, connection: Connection, namespace: str, name: str) -> None:
        self._connection = connection
        self._metadata = {"namespace": namespace, "name": name}
        self._all = f"/apis/{API}/namespaces/{namespace}/leases"
        self._subject = f"Lease {namespace}/{name}"

    def read(self) -> Object | None:
        """Return the Lease, or None when there is none."""
        answer = self._connection.request("GET", f"{self._all}/{self._metadata['name']}")
        if answer.status == 404 and answer.names_an_object:
            return None
        raise_for(answer, self._subject)
        return answer.document

    def create(self, spec: Object) -> Object:
        """Create the Lease; raise `Conflict` when somebody has before."""
        body = {"apiVersion": API, "kind": "Lease", "metadata": self._metadata, "spec": spec}
        return self._connection.expect("POST", self._all, subject=self._subject, body=body)

    def replace(self, lease: Object) -> Object:
        """Write a Lease as it was read, changed; raise `Conflict` when somebody else has before."""
        path = f"{self._all}/{self._metadata['name']}"
        return self._connection.expect("PUT", path, subject=self._subject, body=lease)
