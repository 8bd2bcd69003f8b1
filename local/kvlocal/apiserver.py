"""The cheap tier: etcd and kube-apiserver on loopback, for tests that need no pods."""

from __future__ import annotations

import http.client
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from types import TracebackType

from kvlocal import components, pki
from kvlocal.binaries import component
from kvlocal.problems import LocalError

SERVICES = "10.96.0.0/24"


def kubectl_command() -> tuple[str, ...]:
    """Return the command that runs kubectl of the same version as the server."""
    return component("kubectl")


class ApiServer:
    """etcd and kube-apiserver, and the controller manager if asked for, while the context is open.

    Attributes:
        kubeconfig: An administrator's kubeconfig.
    """

    def __init__(self, folder: Path, *, controllers: bool = False) -> None:
        self._folder = folder
        self._controllers = controllers
        self._running: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None
        ports = free_ports(3)
        self._layout = components.Layout(
            folder, "127.0.0.1", ports[0], ports[1], ports[2], SERVICES
        )
        self.kubeconfig = self._layout.kubeconfig("admin")

    def __enter__(self) -> ApiServer:
        """Start and wait until the API server is ready.

        Raises:
            LocalError: It did not become ready; the message shows the end of its log.
        """
        layout = self._layout
        authority = pki.make(layout.pki, (*components.SERVICE_NAMES, "127.0.0.1", "10.96.0.1"))
        for client in ("admin", "controller-manager"):
            authority.kubeconfig(client, layout.server, layout.kubeconfig(client))
        try:
            self._start("etcd", components.etcd(layout))
            # The API server waits for etcd by itself.
            self.start_server()
            if self._controllers:
                self._start("kube-controller-manager", components.kube_controller_manager(layout))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything and remove what it stored."""
        self._stop()

    def start_server(self) -> None:
        """Start the API server, for the first time or after `kill_server`, and await it.

        Raises:
            LocalError: It did not become ready; the message shows the end of its log.
        """
        command = components.kube_apiserver(self._layout, bind="127.0.0.1")
        self._server = self._start("kube-apiserver", command)
        self._wait_until_ready(self._server)

    def kill_server(self) -> None:
        """Kill the API server without warning; etcd keeps what it has stored."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._running.remove(self._server)
            self._server = None

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._running.append(process)
        return process

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while not is_ready(self._layout):
            if server.poll() is not None or time.monotonic() > deadline:
                log = (self._folder / "kube-apiserver.log").read_text(errors="replace")
                raise LocalError(f"kube-apiserver did not become ready: {log[-1500:]}")
            time.sleep(0.1)

    def _stop(self) -> None:
        for process in reversed(self._running):
            process.terminate()
        for process in reversed(self._running):
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
        shutil.rmtree(self._folder / "etcd", ignore_errors=True)


def is_ready(layout: components.Layout) -> bool:
    """Tell whether the API server says that it is ready."""
    context = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
    context.load_cert_chain(layout.pki / "admin.crt", layout.pki / "admin.key")
    connection = http.client.HTTPSConnection(
        layout.address, layout.port, context=context, timeout=2
    )
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
