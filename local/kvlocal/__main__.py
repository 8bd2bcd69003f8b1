"""`python -m kvlocal`: local clusters from the command line."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from kvlocal import addons, binaries, debian, images, sbom
from kvlocal.cache import progress
from kvlocal.cluster import Cluster, clusters
from kvlocal.problems import LocalError

NAME = click.option("--name", default="dev", show_default=True, help="Which cluster.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    r"""Run a real one-node Kubernetes on this machine, without Docker.

    \b
    python -m kvlocal up --name dev --with-prometheus
    export KUBECONFIG=$(python -m kvlocal status --name dev -o kubeconfig)
    python -m kvlocal build-image engine-sim --name dev
    python -m kvlocal logs kubelet --name dev
    python -m kvlocal down --name dev
    """


@main.command()
@NAME
@click.option("--with-prometheus", is_flag=True, help="Run Prometheus in it, too.")
def up(name: str, with_prometheus: bool) -> None:
    """Start a fresh cluster and wait until its node is ready."""
    cluster = Cluster(name)
    system = images.system_images()
    begun = time.monotonic()
    with progress(f"starting cluster {name}"):
        cluster.up()
    cluster.load(*system)
    addons.install_dns(cluster)
    if with_prometheus:
        addons.install_prometheus(cluster)
    addons.wait(cluster, prometheus=with_prometheus)
    click.echo(f"Ready after {time.monotonic() - begun:.0f} s. Next:")
    click.echo(f"  export KUBECONFIG={cluster.kubeconfig}")


@main.command()
@NAME
@click.option("--wipe", is_flag=True, help="Forget its images, too.")
def down(name: str, wipe: bool) -> None:
    """Stop a cluster and leave the machine clean."""
    Cluster(name).down(wipe=wipe)
    click.echo(f"Cluster {name} is down.")


@main.command()
@click.option("--name", help="Only this cluster.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "kubeconfig"]),
    default="text",
    help="kubeconfig prints just the path.",
)
def status(name: str | None, output: str) -> None:
    """Tell which clusters there are, and whether they run."""
    found = [Cluster(name)] if name else clusters()
    told = [cluster.describe() for cluster in found]
    if output == "json":
        click.echo(json.dumps(told, indent=2))
        return
    if not told:
        click.echo("There is no cluster. Start one: python -m kvlocal up")
    for one in told:
        if output == "kubeconfig":
            click.echo(one["kubeconfig"])
        else:
            state = "ready" if one["ready"] else "starting" if one["running"] else "down"
            click.echo(f"{one['name']}: {state}, {one['server']}, KUBECONFIG={one['kubeconfig']}")


@main.command()
@click.option("--without-images", is_flag=True, help="Only the API server, not the node's parts.")
def build(without_images: bool) -> None:
    """Build everything that is kept in the cache, so that nothing slow comes later."""
    binaries.control_plane()
    if not without_images:
        debian.ensure_node_tools()
        for image in (*images.everything(), images.envoy_gateway()):
            click.echo(f"  ready: {image.reference}")


@main.command("sbom")
@click.option("--folder", default="build/sbom", type=click.Path(path_type=Path), help="Where to.")
def write_sbom(folder: Path) -> None:
    """Write SPDX and provenance of the product's images, from what is truly in them."""
    for name in images.PRODUCT:
        for path in sbom.write(images.build(name), folder):
            click.echo(f"wrote {path}")


@main.command("build-image")
@click.argument("image", type=click.Choice(images.PRODUCT))
@NAME
def build_image(image: str, name: str) -> None:
    """Build an image of images/ and give it to the cluster, if that runs."""
    built = images.build(image)
    cluster = Cluster(name)
    if cluster.running:
        with progress(f"giving {built.reference} to cluster {name}"):
            cluster.load(built)
    click.echo(f"{built.reference}: {built.archive}")


@main.command()
@click.argument("component")
@NAME
@click.option("--lines", default=50, show_default=True, help="How many of the last lines.")
def logs(component: str, name: str, lines: int) -> None:
    """Show the end of a component's log: node, kubelet, kube-apiserver, containerd, ..."""
    text = Cluster(name).logs(component).read_text(errors="replace")
    click.echo("\n".join(text.splitlines()[-lines:]))


if __name__ == "__main__":
    try:
        main()
    except LocalError as error:
        click.echo(f"kvlocal: {error}", err=True)
        sys.exit(1)
