"""Addresses of a local cluster: each has a link to the host and ranges of its own."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

MOST_CLUSTERS = 16


@dataclass(frozen=True, slots=True)
class Network:
    """The addresses of cluster number `index`, 0 to 15. None of them is routed beyond this host."""

    index: int

    @property
    def link(self) -> str:
        """Name of the host's end of the link."""
        return f"kvl{self.index}"

    @property
    def host(self) -> str:
        """Address of the host on the link."""
        return f"10.201.{self.index}.1"

    @property
    def node(self) -> str:
        """Address of the node."""
        return f"10.201.{self.index}.2"

    @property
    def pods(self) -> str:
        """CIDR of the pods."""
        return f"10.202.{self.index}.0/24"

    @property
    def services(self) -> str:
        """CIDR of the ClusterIPs."""
        return f"10.203.{self.index}.0/24"

    @property
    def api_service(self) -> str:
        """ClusterIP of the API server."""
        return f"10.203.{self.index}.1"

    @property
    def dns(self) -> str:
        """ClusterIP of the cluster's DNS."""
        return f"10.203.{self.index}.10"

    def connect(self, node_pid: int) -> None:
        """Lay the link between the host and the network namespace of a process."""
        ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", str(node_pid))
        ip("addr", "add", f"{self.host}/30", "dev", self.link)
        ip("link", "set", self.link, "up")
        for range_ in (self.pods, self.services):
            ip("route", "replace", range_, "via", self.node, "dev", self.link)

    def disconnect(self) -> None:
        """Remove the link, and with it the routes; no link is no error."""
        subprocess.run(
            ["ip", "link", "del", self.link], capture_output=True, check=False, env=_ENVIRONMENT
        )


def ip(*arguments: str) -> None:
    """Run ip, which must succeed."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, env=_ENVIRONMENT)


_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
