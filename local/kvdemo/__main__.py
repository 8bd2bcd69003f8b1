"""`make demo`: from nothing to one promoted and one rolled-back rollout, with a report of each."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import click

from kvdemo import table, traces
from kvdemo.load import Load, Outcome, Recipe
from kvdemo.search import Finding, Search, compared
from kvdemo.watch import NAMESPACE, Watch
from kvlocal import product
from kvlocal.addons import SCRAPE_SECONDS
from kvlocal.cache import REPOSITORY
from kvlocal.cluster import Cluster
from kvlocal.problems import LocalError
from kvquant.adapters.connection import Connection
from kvquant.api.v1alpha1 import Phase, Status

CLUSTER = "demo"
EXAMPLES = REPOSITORY / "examples" / "demo"
REPORTS = REPOSITORY / "build" / "demo"
ROUTER = "llama-router"
GOOD, BAD = "llama-fp8", "llama-int8"
RECIPE = Recipe(planted=traces.SENTENCES)


def main() -> int:
    """Run the demo; return 0 only when all was as it should be.

    Both rollouts end as they should, no request fails, and what was planted is found nowhere.
    """
    begun = time.monotonic()
    click.secho("1. A real one-node Kubernetes with Prometheus and the operator", bold=True)
    try:
        cluster = product.start(CLUSTER)
    except LocalError as error:
        click.echo(f"demo: {error}", err=True)
        return 1
    try:
        good = _play(cluster)
    except (LocalError, TimeoutError) as error:
        click.secho(f"demo: {error}", fg="red", err=True)
        _hint(cluster)
        return 1
    finally:
        if not _kept():
            cluster.down()
    click.echo(f"\nThe demo took {time.monotonic() - begun:.0f} s.")
    if _kept():
        _hint(cluster)
    else:
        click.echo("The cluster is down again. KEEP=1 make demo keeps it up to look around.")
    return 0 if good else 1


def _play(cluster: Cluster) -> bool:
    connection = Connection.from_kubeconfig(str(cluster.kubeconfig))
    watch, load = Watch(connection), _Traffic(cluster)
    search = Search(lambda: traces.collect(cluster, NAMESPACE))
    try:
        click.secho("\n2. Two simulated vLLM pods with a 16-bit KV cache", bold=True)
        cluster.kubectl("apply", "--server-side", "-f", str(EXAMPLES / "baseline.yaml"))
        cluster.kubectl("rollout", "status", "-n", NAMESPACE, "deployment/llama", "--timeout=90s")
        click.secho(f"\n3. Rollout {GOOD}: 16-bit to FP8 (kubectl apply)", bold=True)
        _apply(cluster, "rollout-fp8.yaml")
        first = watch.until(GOOD, _over, 420, load.begin_when_routed, search.once_compared)
        promoted = first.phase is Phase.PROMOTED
        second: Status | None = None
        if promoted:
            click.secho(f"\n4. Rollout {BAD}: FP8 to INT8, whose pods are slow", bold=True)
            _apply(cluster, "rollout-int8.yaml")
            second = watch.until(BAD, _over, 180, search.once_compared)
    finally:
        load.stop()
    rolled_back = second is not None and second.phase is Phase.ROLLED_BACK
    click.secho("\n5. What the client saw", bold=True)
    outcomes = load.outcomes
    click.echo(table.render(table.rows(watch.stages, outcomes)))
    failed = [o for o in outcomes if o.problem]
    for outcome in failed[:5]:
        click.secho(f"  failed: {outcome.problem}", fg="red")
    click.secho("\n6. Why", bold=True)
    for name in (GOOD, BAD) if second is not None else (GOOD,):
        _report(cluster, name)
    copies = [compared(GOOD, first), _stripped(cluster, search)]
    for finding in copies:
        _verdict(finding.text, finding.good)
    _verdict(f"{GOOD} was promoted", promoted)
    _verdict(f"{BAD} was rolled back by itself", rolled_back)
    _verdict(f"{len(outcomes)} requests sent, {len(failed)} failed", bool(outcomes) and not failed)
    well = promoted and rolled_back and bool(outcomes) and not failed
    return well and all(finding.good for finding in copies)


def _stripped(cluster: Cluster, search: Search) -> Finding:
    """Look once more at what is there in the end, reports included."""
    try:
        search.take(traces.collect(cluster, NAMESPACE, copied=False))
    except LocalError as error:
        return Finding(False, f"the planted e-mail and card could not be searched for: {error}")
    search.take({f"report {path.stem}": path.read_text() for path in REPORTS.glob("*.html")})
    return search.verdict()


class _Traffic:
    """Steady load through the router, from the moment that the router answers."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._load: Load | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        """Every request that has ended."""
        return self._load.outcomes if self._load is not None else []

    def begin_when_routed(self, status: Status) -> None:
        """Start when the router's pods are ready; the baseline serves everything then."""
        if self._load is not None or status.router is None:
            return
        try:
            ready = self._cluster.kubectl(
                *("get", "deployment", ROUTER, "-n", NAMESPACE),
                *("-o", "jsonpath={.status.availableReplicas}"),
            )
            address = self._cluster.kubectl(
                *("get", "service", ROUTER, "-n", NAMESPACE, "-o", "jsonpath={.spec.clusterIP}")
            )
        except LocalError:
            return
        if ready.strip():
            click.echo(f"           {RECIPE.rate:g} requests/s begin, through the router")
            self._load = Load(f"http://{address}:8000", RECIPE)
            self._load.start()

    def stop(self) -> None:
        """Send no more, and wait for the last answers."""
        if self._load is not None:
            self._load.stop()


def _apply(cluster: Cluster, file: str) -> None:
    cluster.kubectl("apply", "-f", str(EXAMPLES / file))


def _over(status: Status) -> bool:
    return status.settled


def _report(cluster: Cluster, name: str) -> None:
    REPORTS.mkdir(parents=True, exist_ok=True)
    path = REPORTS / f"{name}.html"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kvquant.cli", "report", name, "-n", NAMESPACE),
            *("--prometheus-service", "monitoring/prometheus:9090", "-o", str(path)),
            *("--tick", f"{SCRAPE_SECONDS}s"),
        ],
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        click.echo(f"  report of {name}: {_short(path)}")
    else:
        click.secho(f"  no report of {name}: {done.stderr.strip()}", fg="red")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _verdict(text: str, good: bool) -> None:
    click.echo(f"  {click.style('yes' if good else 'NO', fg='green' if good else 'red')}  {text}")


def _kept() -> bool:
    return os.environ.get("KEEP", "") not in ("", "0")


def _hint(cluster: Cluster) -> None:
    if not _kept():
        return
    click.echo(
        f"The cluster stays up:\n  export KUBECONFIG={cluster.kubeconfig}\n"
        f"  .venv/bin/kubectl-kvquant status -n {NAMESPACE}\n"
        f"Tear it down: .venv/bin/python -m kvlocal down --name {CLUSTER}"
    )


if __name__ == "__main__":
    sys.exit(main())
