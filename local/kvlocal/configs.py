"""Configuration files of the node's components."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from kvlocal.debian import CNI_FOLDER
from kvlocal.network import Network

PAUSE_IMAGE = "localhost/kvlocal/pause:1"
NODE_NAME = "node1"


def write(folder: Path, network: Network, cgroup: str, pki: Path) -> None:
    """Write every file into the node's folder."""
    cni = folder / "cni" / "net.d"
    cni.mkdir(parents=True, exist_ok=True)
    (cni / "10-bridge.conflist").write_text(json.dumps(_cni(folder, network), indent=1))
    (folder / "containerd.toml").write_text(_containerd(folder))
    (folder / "kubelet.yaml").write_text(yaml.safe_dump(_kubelet(folder, network, cgroup, pki)))
    (folder / "kube-proxy.yaml").write_text(yaml.safe_dump(_kube_proxy(folder, network)))
    # The node itself asks nobody; pods that want the node's resolver get this one.
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def _cni(folder: Path, network: Network) -> dict[str, Any]:
    return {
        "cniVersion": "1.0.0",
        "name": "kvlocal",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(folder / "cni" / "ipam"),
                    "ranges": [[{"subnet": network.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def _containerd(folder: Path) -> str:
    # Debian's containerd. Without CAP_SYS_RESOURCE no process may lower its OOM score, and every
    # sandbox would die: hence restrict_oom_score_adj.
    return f"""version = 2
root = "{folder.parent / "containerd"}"
state = "{folder / "containerd"}"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{folder / "containerd.sock"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_FOLDER}"
    conf_dir = "{folder / "cni" / "net.d"}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "/usr/sbin/runc"
      SystemdCgroup = false
"""


def _kubelet(folder: Path, network: Network, cgroup: str, pki: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{folder / 'containerd.sock'}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet.key"),
        "clusterDNS": [network.dns],
        "clusterDomain": "cluster.local",
        "resolvConf": str(folder / "resolv.conf"),
        "staticPodPath": "",
        "podLogsDir": str(folder / "pod-logs"),
        "volumePluginDir": str(folder / "volume-plugins"),
        # A laptop's disk is fuller than a server's; nothing here is worth an eviction.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "imageGCHighThresholdPercent": 100,
        "nodeStatusUpdateFrequency": "5s",
        "syncFrequency": "10s",
        # The two rate limits slow only the start of many pods at once.
        "registryPullQPS": 0,
        "serializeImagePulls": False,
    }


def _kube_proxy(folder: Path, network: Network) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(folder / "proxy.conf")},
        "clusterCIDR": network.pods,
        "hostnameOverride": NODE_NAME,
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
