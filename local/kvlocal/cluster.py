"""A one-node cluster: bring it up, ask after it, give it images, take it down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from kvlocal import cgroups, components, configs, containerd, debian, pki
from kvlocal.apiserver import is_ready
from kvlocal.binaries import component, control_plane
from kvlocal.cache import REPOSITORY, cache, locked
from kvlocal.commands import run
from kvlocal.images import Image
from kvlocal.network import MOST_CLUSTERS, Network
from kvlocal.node import layout
from kvlocal.problems import LocalError

READY_WITHIN = 90.0
"""Seconds that a node may take to become ready; it takes about ten."""

_HIDDEN = ("/run", "/var/lib", "/var/log", "/proc", "/sys", "/dev")
"""Folders that the node hides from its own processes, so that nothing of theirs may lie there."""


class Cluster:
    """One local cluster by its name. Several may run beside each other.

    Attributes:
        name: Short name, also in the names of its control group and context.
        kubeconfig: An administrator's kubeconfig, once it has been up.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._home = cache() / "clusters" / name
        self._run = self._home / "run"
        self.kubeconfig = self._run / "admin.conf"

    @property
    def network(self) -> Network:
        """The cluster's addresses.

        Raises:
            LocalError: There is no cluster of that name.
        """
        try:
            return Network(json.loads((self._home / "cluster.json").read_text())["index"])
        except FileNotFoundError:
            raise LocalError(
                f"there is no cluster {self.name!r}: python -m kvlocal up --name {self.name}"
            ) from None

    @property
    def running(self) -> bool:
        """Whether its node runs."""
        return self._node_pid() is not None

    def up(self) -> None:
        """Start a fresh cluster and wait until its node is ready; images of earlier ones are kept.

        Raises:
            LocalError: It runs already, or cannot be started; the message says why.
        """
        if os.geteuid() != 0:
            raise LocalError("a local cluster needs root, because it makes namespaces: use sudo")
        if any(str(self._home).startswith(f"{hidden}/") for hidden in _HIDDEN):
            raise LocalError(f"KVQUANT_CACHE={cache()}: choose a folder outside of {_HIDDEN}")
        if self.running:
            raise LocalError(
                f"cluster {self.name!r} is up already: python -m kvlocal down --name {self.name}"
            )
        debian.ensure_node_tools()
        control_plane()
        self._clean()
        self._allot()
        self._prepare()
        self._launch()
        self._wait(lambda: is_ready(self._layout()), "its API server should be ready")
        self._wait(self._node_ready, "its node should be ready")

    def down(self, *, wipe: bool = False) -> None:
        """Stop the cluster and leave the machine clean; a cluster that is down is no error.

        Args:
            wipe: Forget its images too.
        """
        self._stop(patience=5)
        self._clean()
        if wipe:
            shutil.rmtree(self._home, ignore_errors=True)

    def reboot(self) -> None:
        """Cut the node's power and start it again with what it had on its disk.

        Raises:
            LocalError: It does not come up again.
        """
        begun = datetime.now(UTC)
        self._stop(patience=0)
        self._release()
        shutil.rmtree(self._run / "mounts", ignore_errors=True)
        self._launch()
        self._wait(lambda: is_ready(self._layout()), "its API server should be ready again")
        # etcd remembers that the node was ready: only a heartbeat of this boot counts.
        self._wait(lambda: self._node_ready(since=begun), "its node should be ready again")

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it printed.

        Raises:
            LocalError: It failed; the message is kubectl's own.
        """
        return run(
            *component("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments, stdin=stdin
        )

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply manifests by server-side apply.

        Raises:
            LocalError: The API server refuses one.
        """
        text = yaml.safe_dump_all(documents)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def load(self, *images: Image) -> None:
        """Give the node images that it does not have yet in just this build.

        Raises:
            LocalError: containerd refuses one.
        """
        known = self._home / "loaded.json"
        loaded: dict[str, str] = json.loads(known.read_text()) if known.exists() else {}
        for image in images:
            if loaded.get(image.reference) == image.archive.name:
                continue
            containerd.ctr(self._run, "images", "import", str(image.archive))
            loaded[image.reference] = image.archive.name
            known.write_text(json.dumps(loaded))

    def pids(self) -> dict[str, int]:
        """Return the host's process ids of the components, by name; for fault tests."""
        node = self._node_pid()
        if node is None:
            return {}
        inside = {file.name: int(file.read_text()) for file in (self._run / "pids").iterdir()}
        found = {}
        for pid in _descendants(node):
            own = _namespaced_pid(pid)
            for name, wanted in inside.items():
                if own == wanted:
                    found[name] = pid
        return found

    def describe(self) -> dict[str, Any]:
        """Return what there is to know about the cluster, for people and scripts."""
        return {
            "name": self.name,
            "running": self.running,
            "ready": self.running and is_ready(self._layout()),
            "server": self._layout().server,
            "kubeconfig": str(self.kubeconfig),
            "logs": str(self._run / "log"),
        }

    def logs(self, name: str) -> Path:
        """Return the log file of a component.

        Raises:
            LocalError: There is no such component; the message names those that there are.
        """
        folder = self._run / "log"
        file = folder / f"{name}.log"
        if not file.exists():
            there = ", ".join(sorted(p.stem for p in folder.glob("*.log"))) or "none"
            raise LocalError(f"cluster {self.name!r} has no log of {name!r}; it has: {there}")
        return file

    def _stop(self, patience: float) -> None:
        """End the node: ask first, and after `patience` seconds no more."""
        pid = self._node_pid()
        if pid is None:
            return
        deadline = time.monotonic() + patience
        if patience:
            os.kill(pid, signal.SIGTERM)
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)

    def _layout(self) -> components.Layout:
        return layout(self._run, self.network)

    def _allot(self) -> None:
        """Give the cluster a number of its own, which its addresses follow from."""
        own = self._home / "cluster.json"
        with locked("cluster-numbers"):
            if own.exists():
                return
            taken = {
                json.loads(file.read_text())["index"]
                for file in self._home.parent.glob("*/cluster.json")
            }
            free = next((i for i in range(MOST_CLUSTERS) if i not in taken), None)
            if free is None:
                raise LocalError(
                    f"there are {MOST_CLUSTERS} clusters already: remove one with "
                    "python -m kvlocal down --wipe --name NAME (kvlocal status lists them)"
                )
            self._home.mkdir(parents=True, exist_ok=True)
            own.write_text(json.dumps({"index": free}))

    def _prepare(self) -> None:
        network, paths = self.network, self._layout()
        for folder in (self._run / "log", self._run / "pids"):
            folder.mkdir(parents=True)
        authority = pki.make(
            paths.pki,
            (
                *components.SERVICE_NAMES,
                "127.0.0.1",
                configs.NODE_NAME,
                network.node,
                network.api_service,
            ),
        )
        for client in ("admin", "kubelet", "controller-manager", "scheduler", "proxy"):
            authority.kubeconfig(
                client, paths.server, paths.kubeconfig(client), f"kvlocal-{self.name}"
            )
        configs.write(self._run, network, self._cgroup, paths.pki)

    def _launch(self) -> None:
        cgroups.create(self._cgroup)
        with (self._run / "log" / "node.log").open("ab") as log:
            outer = subprocess.Popen(
                [
                    "unshare",
                    *("--mount", "--net", "--pid", "--uts", "--ipc"),
                    *("--fork", "--kill-child", "--mount-proc"),
                    *(sys.executable, "-m", "kvlocal.node"),
                    *(str(self._run), str(self.network.index)),
                ],
                cwd="/",
                env={
                    **{k: v for k, v in os.environ.items() if not k.startswith("KUBE")},
                    "PYTHONPATH": str(REPOSITORY / "local"),
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: cgroups.join(self._cgroup),
            )
        node = self._first_child(outer)
        # It outlives this process by design; its end is nobody's to wait for.
        outer.returncode = 0
        (self._run / "node.pid").write_text(str(node))
        self.network.connect(node)

    def _first_child(self, outer: subprocess.Popen[bytes]) -> int:
        """Return the host's process id of the node's process 1, once it has its own network."""
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and outer.poll() is None:
            for child in children.read_text().split():
                if _namespace(int(child)) not in ("", _namespace(os.getpid())):
                    return int(child)
            time.sleep(0.01)
        raise LocalError(f"no namespaces for cluster {self.name!r}: {self._last_log('node')}")

    def _node_ready(self, since: datetime | None = None) -> bool:
        try:
            node = json.loads(self.kubectl("get", "node", configs.NODE_NAME, "-o", "json"))
        except LocalError:
            return False
        return any(
            c["type"] == "Ready"
            and c["status"] == "True"
            and (since is None or datetime.fromisoformat(c["lastHeartbeatTime"]) >= since)
            for c in node["status"]["conditions"]
        )

    def _wait(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + READY_WITHIN
        while not holds():
            if not self.running or time.monotonic() > deadline:
                logs = "\n".join(self._last_log(n) for n in ("node", "kube-apiserver", "kubelet"))
                raise LocalError(f"cluster {self.name!r}: {what} and is not.\n{logs}")
            time.sleep(0.1)

    def _last_log(self, name: str) -> str:
        file = self._run / "log" / f"{name}.log"
        text = file.read_text(errors="replace")[-600:] if file.exists() else "(none)"
        return f"--- {file}\n{text}"

    @property
    def _cgroup(self) -> str:
        return f"kvlocal-{self.name}"

    def _node_pid(self) -> int | None:
        """Return the node's process 1, if it runs; a recycled process id is not mistaken for it."""
        try:
            pid = int((self._run / "node.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if str(self._run).encode() in command else None

    def _clean(self) -> None:
        """Remove what a run leaves, a crashed one included."""
        self._release()
        shutil.rmtree(self._run, ignore_errors=True)

    def _release(self) -> None:
        """Give back the link and the control group of a node that has ended."""
        if (self._home / "cluster.json").exists():
            self.network.disconnect()
        if not cgroups.remove(self._cgroup):
            raise LocalError(
                f"processes of an earlier cluster {self.name!r} are still in control group "
                f"{self._cgroup}: end them and try again"
            )


def clusters() -> list[Cluster]:
    """Return every cluster that has been up on this machine."""
    return [Cluster(f.parent.name) for f in sorted(cache().glob("clusters/*/cluster.json"))]


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def _descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children]


def _namespaced_pid(pid: int) -> int | None:
    """Return a process's id within the innermost namespace that it is in."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except OSError:
        pass
    return None
