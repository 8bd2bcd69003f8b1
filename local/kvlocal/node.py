"""Process 1 of a node: private namespaces, then every component, restarted when it ends.

Run by `cluster.py` under unshare. Whatever this process starts ends with it, because the kernel
kills a PID namespace with its first process; a crash leaves nothing that runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from kvlocal import components, configs, containerd
from kvlocal.apiserver import is_ready
from kvlocal.binaries import component
from kvlocal.network import Network, ip

SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet would set on the whole machine: it gets files of its own to write to."""

RESTART_AFTER = 0.5
"""Seconds between the end of a component and its restart."""


def layout(folder: Path, network: Network) -> components.Layout:
    """Return where a node's control plane keeps its things and listens."""
    return components.Layout(folder, network.node, 6443, 2379, 2380, network.services)


class Node:
    """The components of one node, as children of this process."""

    def __init__(self, folder: Path, network: Network) -> None:
        self._folder = folder
        self._layout = layout(folder, network)
        self._commands: dict[str, list[str]] = {}
        self._running: dict[int, str] = {}
        self._due: dict[str, float] = {}
        self._stopping = False

    def run(self) -> None:
        """Start everything in order, then keep it running until SIGTERM."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        paths = self._layout
        containerd.forget_stale_containers(self._folder)
        self._start("containerd", containerd.command(self._folder))
        self._start("etcd", components.etcd(paths))
        self._start("kube-apiserver", components.kube_apiserver(paths, bind="0.0.0.0"))
        while not is_ready(paths) and not self._stopping:
            self._attend()
            time.sleep(0.1)
        self._start("kube-controller-manager", components.kube_controller_manager(paths))
        self._start("kube-scheduler", components.kube_scheduler(paths))
        self._start(
            "kubelet",
            [
                *component("kubelet"),
                f"--config={self._folder / 'kubelet.yaml'}",
                f"--kubeconfig={paths.kubeconfig('kubelet')}",
                f"--hostname-override={configs.NODE_NAME}",
                f"--node-ip={paths.address}",
            ],
        )
        self._start(
            "kube-proxy",
            [*component("kube-proxy"), f"--config={self._folder / 'kube-proxy.yaml'}"],
        )
        while not self._stopping:
            self._attend()
            time.sleep(0.1)

    def _start(self, name: str, command: list[str]) -> None:
        if self._stopping:
            return
        self._commands[name] = command
        with (self._folder / "log" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._running[process.pid] = name
        (self._folder / "pids" / name).write_text(str(process.pid))

    def _attend(self) -> None:
        """Reap whatever has ended, orphans of pods included; start components again."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            name = self._running.pop(pid, None)
            if name is not None:
                print(f"{name} ended with status {status}; it is started again", flush=True)
                self._due[name] = time.monotonic() + RESTART_AFTER
        for name, due in list(self._due.items()):
            if time.monotonic() >= due:
                del self._due[name]
                self._start(name, self._commands[name])

    def _stop(self, *_: int | FrameType | None) -> None:
        self._stopping = True


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def isolate(folder: Path, network: Network) -> None:
    """Arrange this process's own mounts and network so that nothing of the host is changed."""
    scratch = folder / "mounts"
    groups = scratch / "cgroup"
    groups.mkdir(parents=True, exist_ok=True)
    # A sysfs of this network namespace, with the host's control groups kept. This has to come
    # before the mounts are shared, or undoing a mount here would take it from its peers too.
    _mount("--rbind", "/sys/fs/cgroup", str(groups))
    _mount("-t", "sysfs", "sysfs", "/sys")
    _mount("--rbind", str(groups), "/sys/fs/cgroup")
    subprocess.run(["umount", "-l", str(groups)], check=True)
    _mount("--make-rshared", "/")
    for path in ("/run", "/var/log"):
        _mount("-t", "tmpfs", "tmpfs", path)
    for path in ("/run/lock", "/run/netns"):
        Path(path).mkdir()
    # What the kubelet and CNI keep in /var/lib stays off the real one.
    private = folder / "var-lib"
    (private / "kubelet").mkdir(parents=True, exist_ok=True)
    _mount("--bind", str(private), "/var/lib")
    _mount("--make-rshared", "/var/lib")
    for name, value in SYSCTLS.items():
        file = scratch / name.replace("/", "_")
        file.write_text(f"{value}\n")
        if Path("/proc/sys", name).exists():
            _mount("--bind", str(file), f"/proc/sys/{name}")
    subprocess.run(["hostname", configs.NODE_NAME], check=True)
    ip("link", "set", "lo", "up")
    while not Path("/sys/class/net/eth0").exists():
        time.sleep(0.02)
    ip("addr", "add", f"{network.node}/30", "dev", "eth0")
    ip("link", "set", "eth0", "up")
    ip("route", "add", "default", "via", network.host)
    for name in (
        "ipv4/ip_forward",
        "ipv4/conf/all/route_localnet",
        "bridge/bridge-nf-call-iptables",
    ):
        switch = Path("/proc/sys/net", name)
        if switch.exists():
            switch.write_text("1")


def main() -> int:
    """Be the node; the arguments are its folder and its cluster's number."""
    folder, network = Path(sys.argv[1]), Network(int(sys.argv[2]))
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    isolate(folder, network)
    for name in ("log", "pids"):
        (folder / name).mkdir(exist_ok=True)
    # Addresses that pods of an earlier boot had are free again.
    shutil.rmtree(folder / "cni" / "ipam", ignore_errors=True)
    Node(folder, network).run()
    shutil.rmtree(folder / "pids", ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
