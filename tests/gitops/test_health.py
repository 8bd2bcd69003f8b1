"""What Flux (kstatus) and Argo CD make of a rollout in each state, by their own means."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import lupa
import pytest

from kvlocal import binaries
from kvquant.api import names
from kvquant.api.v1alpha1 import Phase
from kvquant.ports import Object
from tests.conftest import REPOSITORY
from tests.site import Site

HEALTH = (REPOSITORY / "examples" / "gitops" / "argocd-health.lua").read_text()


@pytest.fixture(scope="session")
def kstatus() -> Path:
    return binaries.kstatus()


def flux(binary: Path, obj: Object) -> str:
    done = subprocess.run([str(binary)], input=json.dumps(obj), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[0]


def argo(obj: Object) -> tuple[str, str]:
    """Return status and message, as Argo CD's Lua gets them from its global `obj`."""
    runtime = lupa.LuaRuntime()
    runtime.globals().obj = runtime.table_from(obj, recursive=True)
    found = runtime.execute(HEALTH)
    return str(found["status"]), str(found["message"])


@pytest.fixture
def site() -> Site:
    site = Site()
    site.deploy()
    return site


def seen(site: Site, ref: Any) -> Object:
    """Return a rollout as the API server shows it."""
    return copy.deepcopy(site.raw(ref))


def test_a_rollout_that_nobody_has_looked_at_is_on_its_way(site: Site, kstatus: Path) -> None:
    ref = site.apply()
    fresh = seen(site, ref)
    fresh.pop("status", None)
    assert argo(fresh) == ("Progressing", "Waiting for the kvquant operator")
    site.until_phase(ref, Phase.PROVISIONING)
    edited = seen(site, ref)
    edited["metadata"]["generation"] += 1
    assert flux(kstatus, edited) == "InProgress"
    assert argo(edited)[0] == "Progressing"


@pytest.mark.parametrize(
    "phase", [Phase.PROVISIONING, Phase.VERIFYING, Phase.SHADOWING, Phase.PROGRESSING]
)
def test_every_phase_on_the_way_is_progress(site: Site, kstatus: Path, phase: Phase) -> None:
    ref = site.apply()
    site.until_phase(ref, phase)
    assert flux(kstatus, seen(site, ref)) == "InProgress"
    assert argo(seen(site, ref))[0] == "Progressing"


def test_promoted_is_current_and_healthy_and_says_why(site: Site, kstatus: Path) -> None:
    ref = site.apply()
    status = site.until_settled(ref)
    assert status.phase is Phase.PROMOTED
    assert flux(kstatus, seen(site, ref)) == "Current"
    assert argo(seen(site, ref)) == ("Healthy", status.verdict)


def test_rolled_back_is_a_failure_with_its_cause(site: Site, kstatus: Path) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    site.annotate(ref, abort="because")
    status = site.until_settled(ref)
    assert status.phase is Phase.ROLLED_BACK
    assert flux(kstatus, seen(site, ref)) == "Failed"
    health, message = argo(seen(site, ref))
    assert health == "Degraded"
    assert message


def test_a_target_that_is_missing_is_a_failure_that_names_it(kstatus: Path) -> None:
    site = Site()
    ref = site.apply()
    for _ in range(3):
        site.turn(ref)
    assert flux(kstatus, seen(site, ref)) == "Failed"
    health, message = argo(seen(site, ref))
    assert health == "Degraded"
    assert "llama" in message


@pytest.mark.parametrize("asked", ["paused", "killed"])
def test_what_a_person_holds_is_suspended(site: Site, kstatus: Path, asked: str) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    site.annotate(ref, **{asked: "Ada"})
    for _ in range(3):
        site.turn(ref)
    assert argo(seen(site, ref))[0] == "Suspended"
    assert flux(kstatus, seen(site, ref)) == "InProgress"


def test_one_that_is_being_deleted_is_terminating(site: Site, kstatus: Path) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROGRESSING)
    going = seen(site, ref)
    going["metadata"]["deletionTimestamp"] = "2026-11-26T12:00:00Z"
    going["metadata"]["finalizers"] = [names.FINALIZER]
    assert flux(kstatus, going) == "Terminating"
