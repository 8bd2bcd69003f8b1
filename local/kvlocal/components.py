"""The command lines of etcd and of the Kubernetes components that every tier runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvlocal.binaries import component

SERVICE_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
)
"""DNS names by which pods reach the API server."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the control plane keeps its things and listens.

    Attributes:
        folder: Folder of this cluster.
        address: Address of the API server.
        port: Its port.
        etcd_port: etcd's port on loopback; its peers' port is the next one.
        services: CIDR of the ClusterIPs.
    """

    folder: Path
    address: str
    port: int
    etcd_port: int
    etcd_peer_port: int
    services: str

    @property
    def pki(self) -> Path:
        """Folder of the certificates."""
        return self.folder / "pki"

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://{self.address}:{self.port}"

    def kubeconfig(self, client: str) -> Path:
        """Path of a client's kubeconfig."""
        return self.folder / f"{client}.conf"


def etcd(layout: Layout) -> list[str]:
    """Return etcd's command line. It does not wait for the disk: nothing here outlives a crash."""
    client = f"http://127.0.0.1:{layout.etcd_port}"
    peer = f"http://127.0.0.1:{layout.etcd_peer_port}"
    return [
        *component("etcd"),
        "--name=kvlocal",
        f"--data-dir={layout.folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=kvlocal={peer}",
        "--log-level=warn",
    ]


def kube_apiserver(layout: Layout, bind: str) -> list[str]:
    """Return the API server's command line; it listens on the address `bind`."""
    pki = layout.pki
    return [
        *component("kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{layout.etcd_port}",
        f"--advertise-address={layout.address}",
        f"--bind-address={bind}",
        f"--secure-port={layout.port}",
        f"--service-cluster-ip-range={layout.services}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'admin.crt'}",
        f"--kubelet-client-key={pki / 'admin.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--requestheader-client-ca-file={pki / 'ca.crt'}",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki / 'front-proxy.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy.key'}",
    ]


def kube_controller_manager(layout: Layout) -> list[str]:
    """Return the controller manager's command line."""
    pki, kubeconfig = layout.pki, layout.kubeconfig("controller-manager")
    return [
        *component("kube-controller-manager"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--service-account-private-key-file={pki / 'sa.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        f"--flex-volume-plugin-dir={layout.folder / 'volume-plugins'}",
        "--allocate-node-cidrs=false",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
    ]


def kube_scheduler(layout: Layout) -> list[str]:
    """Return the scheduler's command line."""
    kubeconfig = layout.kubeconfig("scheduler")
    return [
        *component("kube-scheduler"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
    ]
