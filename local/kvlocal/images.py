"""Images, built by buildah from images/*/Dockerfile without a container engine."""

from __future__ import annotations

import platform
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kvlocal import binaries, debian
from kvlocal.cache import REPOSITORY, cache, digest, locked, progress
from kvlocal.commands import run
from kvlocal.configs import PAUSE_IMAGE
from kvlocal.problems import LocalError

DEBIAN_RELEASE = "bookworm"
PYTHON_OF_RELEASE = "3.11"
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
BASE_KEY = f"{DEBIAN_RELEASE}-1"

PRODUCT = ("operator", "router", "shadow", "evaluation", "engine-sim")
"""Images of the product, each with a folder in images/."""

BUILDS_KEPT = 3

COREDNS_IMAGE = "localhost/kvlocal/coredns:1"
PROMETHEUS_IMAGE = "localhost/kvlocal/prometheus:1"
ALERTMANAGER_IMAGE = "localhost/kvlocal/alertmanager:1"
ENVOY_GATEWAY_IMAGE = "localhost/kvlocal/envoy-gateway:1"

_SOURCES = {
    "operator": ("operator/kvquant", "requirements.lock"),
    "router": (),
    "shadow": ("operator/kvquant",),
    "evaluation": ("operator/kvquant",),
    "engine-sim": (),
}
"""What a product's Dockerfile copies besides its own folder in images/."""

_LOCKS = {
    "operator": "requirements.lock",
    "router": "images/router/requirements.lock",
    "shadow": "images/shadow/requirements.lock",
    "evaluation": "images/evaluation/requirements.lock",
    "engine-sim": "images/engine-sim/requirements.lock",
}


@dataclass(frozen=True, slots=True)
class Image:
    """A built image.

    Attributes:
        reference: Name that pods use.
        archive: OCI archive; its file name changes with its contents.
    """

    reference: str
    archive: Path

    @property
    def name(self) -> str:
        """The reference without registry and tag."""
        return self.reference.rsplit("/", 1)[-1].split(":")[0]


def build(name: str) -> Image:
    """Build one of the product's images, or return the build of the very same sources.

    Raises:
        LocalError: There is no such image, or it cannot be built.
    """
    if name not in PRODUCT:
        raise LocalError(f"there is no image {name!r}; there are: {', '.join(PRODUCT)}")
    debian.ensure_image_tools()
    base = _base()

    def fill(context: Path) -> None:
        for source in (f"images/{name}", *_SOURCES[name]):
            _copy(REPOSITORY / source, context / source)
        shutil.copytree(_wheels(name), context / "wheels", copy_function=_link)

    return _build(
        f"localhost/kvquant/{name}:dev",
        fill,
        [
            REPOSITORY / "images" / name,
            *(REPOSITORY / source for source in _SOURCES[name]),
            BASE_KEY,
        ],
        f"images/{name}/Dockerfile",
        base,
    )


def lock_of(name: str) -> str:
    """Return the lock of a product's image, relative to the repository."""
    return _LOCKS[name]


def everything() -> list[Image]:
    """Build every image that a cluster with the product in it needs.

    Raises:
        LocalError: One cannot be built.
    """
    return [*system_images(), *(build(name) for name in PRODUCT)]


def system_images() -> list[Image]:
    """Build what the cluster itself runs on: pause, CoreDNS and Prometheus.

    Raises:
        LocalError: One cannot be built.
    """
    debian.ensure_image_tools()
    return [
        _build(
            PAUSE_IMAGE,
            _pause_context,
            [_PAUSE_SOURCE],
            "Dockerfile",
            None,
        ),
        _build(
            COREDNS_IMAGE,
            lambda context: _binary_context(context, binaries.coredns()),
            [binaries.coredns().name],
            "Dockerfile",
            None,
        ),
        _build(
            PROMETHEUS_IMAGE,
            lambda context: _binary_context(context, binaries.prometheus()),
            [binaries.prometheus().name],
            "Dockerfile",
            None,
        ),
    ]


def alertmanager() -> Image:
    """Build Alertmanager, which a cluster runs only when it is asked to.

    Raises:
        LocalError: It cannot be built.
    """
    debian.ensure_image_tools()
    binary = binaries.alertmanager()
    return _build(
        ALERTMANAGER_IMAGE,
        lambda context: _binary_context(context, binary),
        [binary.name],
        "Dockerfile",
        None,
    )


def envoy_gateway() -> Image:
    """Build Envoy Gateway, likewise. Its pods ask for the command by its name.

    Raises:
        LocalError: It cannot be built.
    """
    debian.ensure_image_tools()
    binary = binaries.envoy_gateway()

    def fill(context: Path) -> None:
        _binary_context(context, binary, "/usr/local/bin/envoy-gateway")

    return _build(ENVOY_GATEWAY_IMAGE, fill, [binary.name], "Dockerfile", None)


_PAUSE_SOURCE = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int s) { _exit(0); }
static void reap(int s) { while (waitpid(-1, 0, WNOHANG) > 0); }
int main() {
  signal(SIGINT, end); signal(SIGTERM, end); signal(SIGCHLD, reap);
  for (;;) pause();
}
"""
"""Process 1 of every pod: it holds the namespaces and buries what the containers leave."""


def _pause_context(context: Path) -> None:
    (context / "pause.c").write_text(_PAUSE_SOURCE)
    run("gcc", "-Os", "-static", "-s", "-o", str(context / "pause"), str(context / "pause.c"))
    (context / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')


def _binary_context(context: Path, binary: Path, where: str = "/run-it") -> None:
    shutil.copy(binary, context / "run")
    (context / "run").chmod(0o755)
    (context / "Dockerfile").write_text(f'FROM scratch\nCOPY run {where}\nENTRYPOINT ["{where}"]\n')


def _base() -> str:
    """Return the image that the others are built from: Debian with Python, and little else."""
    reference = f"localhost/kvlocal/base:{BASE_KEY}"
    with locked("image-base"):
        if _buildah_has(reference):
            return reference
        with tempfile.TemporaryDirectory(dir=_folder("contexts")) as scratch:
            root, context = Path(scratch, "root"), Path(scratch, "context")
            context.mkdir()
            with progress(f"making a base image of Debian {DEBIAN_RELEASE} (about a minute, once)"):
                run(
                    "debootstrap",
                    "--variant=minbase",
                    f"--include={BASE_PACKAGES}",
                    DEBIAN_RELEASE,
                    str(root),
                )
                for dead in (
                    "var/cache/apt",
                    "var/lib/apt/lists",
                    "usr/share/doc",
                    "usr/share/man",
                ):
                    shutil.rmtree(root / dead, ignore_errors=True)
                with tarfile.open(context / "root.tar", "w") as archive:
                    archive.add(root, arcname=".", filter=_without_devices)
                (context / "Dockerfile").write_text(
                    'FROM scratch\nADD root.tar /\nCMD ["python3"]\n'
                )
                _buildah("build", "--tag", reference, str(context))
    return reference


def _without_devices(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.ischr() or member.isblk() else member


def _wheels(name: str) -> Path:
    """Return a folder with the wheels of an image's lock, for the Python of the base image."""
    lock = REPOSITORY / _LOCKS[name]
    folder = _folder("wheels") / f"{name}-{digest([lock])}"
    with locked(f"wheels-{name}"):
        if folder.exists():
            return folder
        machine = platform.machine()
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in (35, 34, 31, 28, 27, 17)]
        with (
            progress(f"downloading the wheels of {lock.relative_to(REPOSITORY)}"),
            tempfile.TemporaryDirectory(dir=folder.parent) as unfinished,
        ):
            run(
                *(sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes"),
                *("--no-deps", "--only-binary", ":all:", "--python-version", PYTHON_OF_RELEASE),
                *(f"--platform={p}" for p in (*platforms, f"manylinux2014_{machine}")),
                *("-r", str(lock), "-d", str(Path(unfinished, "wheels"))),
            )
            Path(unfinished, "wheels").rename(folder)
    return folder


def _build(
    reference: str,
    fill: Callable[[Path], None],
    sources: list[Path | str],
    dockerfile: str,
    base: str | None,
) -> Image:
    short = reference.rsplit("/", 1)[-1].split(":")[0]
    archive = _folder("images") / f"{short}-{digest([reference, *sources])}.tar"
    with locked(f"image-{short}"):
        if archive.exists():
            return Image(reference, archive)
        with (
            progress(f"building image {reference}"),
            tempfile.TemporaryDirectory(dir=_folder("contexts")) as context,
        ):
            fill(Path(context))
            arguments = ["--build-arg", f"BASE={base}"] if base else []
            _buildah(
                *("build", "--layers", "--isolation=chroot", "--pull-never", "--tag", reference),
                *("--file", str(Path(context, dockerfile)), *arguments, context),
            )
            unfinished = archive.with_suffix(".unfinished")
            unfinished.unlink(missing_ok=True)
            # Not compressed: it only travels to a containerd on the same disk.
            _buildah(
                "push", "--disable-compression", reference, f"oci-archive:{unfinished}:{reference}"
            )
            _forget_old_builds(archive.parent, short)
            unfinished.rename(archive)
    return Image(reference, archive)


def _forget_old_builds(folder: Path, short: str) -> None:
    """Keep the builds of the last few states of the sources: checkouts may take turns."""
    builds = [
        path for path in folder.glob(f"{short}-*.tar") if "-" not in path.stem[len(short) + 1 :]
    ]
    for older in sorted(builds, key=lambda path: path.stat().st_mtime)[:-BUILDS_KEPT]:
        older.unlink()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _folder(name: str) -> Path:
    folder = cache() / name
    folder.mkdir(exist_ok=True)
    return folder


def _buildah_has(reference: str) -> bool:
    try:
        _buildah("inspect", "--type", "image", reference)
    except LocalError:
        return False
    return True


def _buildah(*arguments: str) -> None:
    run("buildah", *_store(), *arguments)


def _store() -> list[str]:
    folder = cache() / "buildah"
    return [
        *("--root", str(folder / "store"), "--runroot", str(folder / "run")),
        *("--storage-driver", "overlay"),
    ]
