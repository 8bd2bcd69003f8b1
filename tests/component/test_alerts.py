"""SLO alerts around a rollout: who is blamed, who waits, and what an operator may forget."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from kvquant.alerting.board import Note, Receipt
from kvquant.api.v1alpha1 import AlertSource, Phase, Status
from kvquant.core.alerts import Alert, PolledAlert
from kvquant.core.evidence import CacheConfig
from kvquant.core.ticking import TickNeed, Timeline
from kvquant.errors import Conflict, Unavailable
from kvquant.ports import RouterKey
from kvquant.reconciler import Ref
from tests.fakes.cluster import Fault
from tests.site import NAMESPACE, Site, engine_pool, held, rollout

ROUTER = RouterKey(NAMESPACE, "llama-router")
BURN = {
    "alertname": "LlamaErrorBudgetBurn",
    "namespace": NAMESPACE,
    "service": "llama-router",
    "severity": "critical",
}
SOON = 10.0


@pytest.fixture
def site() -> Site:
    it = Site()
    it.deploy()
    return it


def tell(
    site: Site,
    labels: Mapping[str, str] = BURN,
    *,
    since: float = 0,
    ended: float | None = None,
) -> Receipt:
    """Let Alertmanager tell of an alert; times are seconds from now."""
    at = site.now + timedelta(seconds=since)
    alert = Alert.of(labels, at, AlertSource.WEBHOOK, site.now)
    end = None if ended is None else site.now + timedelta(seconds=ended)
    return site.alerts.tell([Note(alert, end)])


def poll(site: Site, *alerts: Mapping[str, str], fires: bool = True, since: float = 0) -> None:
    """Let Prometheus tell all the alerts that fire."""
    at = site.now + timedelta(seconds=since)
    site.alerts.polled([PolledAlert(labels, fires, at, site.now) for labels in alerts])


def has_traffic(status: Status) -> bool:
    return (status.phase, status.weights.canary) == (Phase.PROGRESSING, 10)


def moving(site: Site, **spec: Any) -> Ref:
    ref = site.apply(rollout(**spec))
    site.until(ref, has_traffic)
    site.turn(ref)
    return ref


def cause(status: Status) -> str:
    return next(d.message for d in status.decisions if d.kind.value == "RollBack")


def test_one_that_begins_while_the_canary_has_traffic_rolls_back_in_the_very_next_pass(
    site: Site,
) -> None:
    ref = moving(site)
    tell(site)
    site.reconciler.reconcile(ref)
    status = site.status(ref)
    assert (status.phase, status.weights.canary) == (Phase.ROLLING_BACK, 0)
    assert status.decisions[-1].reason == "AlertFiring"
    told = status.decisions[-1].message
    assert "LlamaErrorBudgetBurn" in told
    assert "severity=critical" in told
    assert "learned by webhook" in told
    assert f"{site.now:%H:%M:%S}" in told
    site.reconciler.reconcile(ref)
    assert site.traffic.weights[ROUTER]["green"] == 0
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK
    assert site.lost == []


@pytest.mark.parametrize("paused", [True, False])
def test_neither_a_pause_nor_an_outage_of_prometheus_keeps_it_from_rolling_back(
    site: Site, paused: bool
) -> None:
    ref = moving(site)
    site.metrics.outage = "connection refused"
    if paused:
        site.annotate(ref, paused="true")
    site.turn(ref)
    assert held(site.status(ref)) is not None
    tell(site)
    site.reconciler.reconcile(ref)
    assert site.status(ref).decisions[-1].reason == "AlertFiring"


class Hanging:
    """Metrics that do not answer, and tell that they were asked."""

    def __init__(self) -> None:
        self.asked, self.let_go = threading.Event(), threading.Event()

    def ticks(self, needs: Sequence[TickNeed], now: datetime) -> Mapping[str, Timeline]:
        self.asked.set()
        assert self.let_go.wait(SOON)
        return {}

    def cache_configs(
        self, namespace: str, pods: Sequence[str], now: datetime
    ) -> Mapping[str, CacheConfig]:
        return {}


def test_it_does_not_wait_for_a_pass_that_waits_for_prometheus(site: Site) -> None:
    ref = moving(site)
    hanging = Hanging()
    site.reconciler = site.operator(site.cluster, hanging, site.traffic)
    woken = threading.Event()
    site.alerts.wake = lambda *_: woken.set()
    site.reconciler.reconcile(ref, None, lambda: True)  # registers what concerns it
    hanging.asked.clear()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(site.reconciler.reconcile, ref, None, woken.is_set)
        assert hanging.asked.wait(SOON)
        receipt = tell(site)
        assert waiting.result(SOON).after is None, "the pass is given up"
    assert not site.alerts.taken(receipt)
    hanging.asked.clear()
    site.reconciler.reconcile(ref, None, woken.is_set)
    assert site.status(ref).phase is Phase.ROLLING_BACK
    assert not hanging.asked.is_set(), "and the next one asks Prometheus nothing"
    assert site.alerts.taken(receipt)
    hanging.let_go.set()


def test_one_that_fires_before_the_rollout_keeps_it_from_beginning(site: Site) -> None:
    ref = site.apply()
    tell(site)
    for _ in range(5):
        site.turn(ref)
    status = site.status(ref)
    assert (status.phase, held(status)) == (Phase.PENDING, "AlertFiring")
    assert "LlamaErrorBudgetBurn" in (status.verdict or "")
    assert len(status.decisions) == 1, "it is told once"
    tell(site, ended=0)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_one_that_fires_before_the_canary_has_traffic_keeps_it_from_the_first_step(
    site: Site,
) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROVISIONING)
    tell(site)
    site.until(ref, lambda s: held(s) == "AlertFiring")
    for _ in range(100):  # beyond the progress deadline
        site.turn(ref)
    status = site.status(ref)
    assert (status.phase, status.weights.canary) == (Phase.VERIFYING, 0)
    assert status.alerts[0].before_traffic
    tell(site, since=-500, ended=0)
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert site.status(ref).alerts == ()


def test_one_that_is_told_late_is_judged_by_when_it_began(site: Site) -> None:
    ref = moving(site)
    traffic = site.status(ref).canary_since
    assert traffic is not None
    tell(site, since=(traffic - site.now).total_seconds() - 1)
    for _ in range(30):
        site.turn(ref)
    status = site.status(ref)
    assert (status.step, held(status)) == (1, "AlertFiring"), "it waits, and blames nobody"
    tell(site, since=-1000, ended=0)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_one_that_fires_again_is_held_against_the_canary(site: Site) -> None:
    ref = moving(site)
    tell(site, since=-1000)
    site.turn(ref)
    assert site.status(ref).alerts[0].before_traffic
    tell(site, since=-1000, ended=0)
    site.turn(ref)
    assert site.status(ref).alerts == ()
    tell(site)
    site.turn(ref)
    assert "AlertFiring" in site.reasons(ref)


def test_within_the_rollback_window_it_rolls_back_too(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROMOTED)
    site.turn(ref)
    tell(site)
    site.turn(ref)
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK
    assert "LlamaErrorBudgetBurn" in cause(site.status(ref))
    assert site.lost == []


def test_after_the_rollback_window_it_changes_nothing(site: Site) -> None:
    ref = site.apply()
    before = site.until_settled(ref)
    assert before.phase is Phase.PROMOTED
    tell(site)
    site.turn(ref)
    assert site.status(ref) == before


def test_the_old_pool_is_kept_while_an_alert_fires_that_only_pauses(site: Site) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROMOTED)
    tell(site, {**BURN, "severity": "warning"})
    for _ in range(40):
        site.turn(ref)
    status = site.status(ref)
    assert not status.settled
    assert held(status) == "AlertFiring"
    assert site.deployment("llama")["spec"]["replicas"] == 2
    tell(site, {**BURN, "severity": "warning"}, since=-1, ended=0)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_a_warning_holds_the_step_for_as_long_as_it_fires(site: Site) -> None:
    ref = moving(site)
    warning = {**BURN, "severity": "warning"}
    tell(site, warning)
    for _ in range(30):
        site.turn(ref)
    assert (site.status(ref).step, held(site.status(ref))) == (1, "AlertFiring")
    tell(site, warning, ended=0)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_an_alert_that_holds_a_step_can_be_ignored_without_starting_over(site: Site) -> None:
    ref = moving(site)
    tell(site, {**BURN, "severity": "warning"})
    site.turn(ref)
    site.edit_spec(
        ref, alerts=[{"match": {"alertname": "LlamaErrorBudgetBurn"}, "policy": "ignore"}]
    )
    assert site.until_settled(ref).phase is Phase.PROMOTED
    assert "SpecChanged" not in site.reasons(ref)
    assert site.status(ref).attempt == 1


@pytest.mark.parametrize(
    "labels",
    [
        {**BURN, "namespace": "elsewhere"},
        {**BURN, "service": "another"},
        {**BURN, "severity": "info"},
        {"alertname": "Watchdog", "severity": "none"},
        {},
    ],
)
def test_what_does_not_concern_it_changes_nothing(site: Site, labels: dict[str, str]) -> None:
    ref = moving(site)
    assert site.alerts.taken(tell(site, labels)), "nobody has to be waited for"
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_of_two_rollouts_only_the_one_that_it_speaks_of_rolls_back() -> None:
    site = Site()
    site.deploy()
    site.deploy(engine_pool("qwen"))
    llama, qwen = site.apply(), site.apply(rollout("qwen-fp8", "qwen"))
    site.until(llama, has_traffic, qwen)
    site.until(qwen, lambda s: s.weights.canary > 0, llama)
    site.turn(llama, qwen)
    woken: list[tuple[str, str]] = []
    site.alerts.wake = lambda namespace, name: woken.append((namespace, name))
    tell(site)
    assert woken == [(NAMESPACE, "llama-fp8")]
    assert site.until_settled(llama, qwen).phase is Phase.ROLLED_BACK
    assert site.until_settled(qwen, llama).phase is Phase.PROMOTED
    assert site.lost == []


def test_an_operator_that_starts_anew_still_knows_what_fired_before_the_canary_had_traffic(
    site: Site,
) -> None:
    ref = site.apply()
    site.until_phase(ref, Phase.PROVISIONING)
    tell(site)
    site.until(ref, lambda s: held(s) == "AlertFiring")
    site.restart()
    for _ in range(20):
        site.turn(ref)
    assert (site.status(ref).phase, held(site.status(ref))) == (Phase.VERIFYING, "AlertFiring")
    tell(site, since=-500, ended=0)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_what_was_told_counts_as_taken_only_when_the_status_has_it(site: Site) -> None:
    ref = moving(site)
    receipt = tell(site)
    assert not site.alerts.taken(receipt)
    site.cluster.faults.append(Fault(Conflict("somebody was first"), verb="replace_status"))
    site.reconciler.reconcile(ref)
    assert site.status(ref).phase is Phase.PROGRESSING
    assert not site.alerts.taken(receipt)
    site.reconciler.reconcile(ref)
    assert site.alerts.taken(receipt)
    assert site.status(ref).phase is Phase.ROLLING_BACK
    site.restart()
    site.turn(ref)
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK


@pytest.mark.parametrize("call", range(12))
def test_an_operator_that_dies_at_any_call_loses_no_alert(site: Site, call: int) -> None:
    ref = moving(site)
    began = site.now
    receipt = tell(site)
    site.cluster.faults.append(Fault(Unavailable("it dies here"), skip=call))
    died = False
    try:
        for _ in range(3):
            site.reconciler.reconcile(ref)
    except Unavailable:
        died = True
    taken = site.alerts.taken(receipt)
    site.cluster.faults.clear()
    site.restart()
    if not taken:  # Alertmanager was not answered with 200
        tell(site, since=(began - site.now).total_seconds())
    for _ in range(3):
        site.turn(ref)
    assert site.reasons(ref).count("AlertFiring") == 1
    assert site.traffic.weights[ROUTER]["green"] == 0
    assert died or call > 5


def test_one_that_began_while_the_operator_was_away_rolls_back(site: Site) -> None:
    ref = moving(site)
    site.let_pass(30)
    site.restart()
    tell(site, since=-20)
    site.turn(ref)
    assert "AlertFiring" in site.reasons(ref)


def test_nothing_is_taken_back_to_a_baseline_that_has_no_ready_pod(site: Site) -> None:
    ref = moving(site)
    site.cluster.edit("Deployment", NAMESPACE, "llama", lambda obj: obj["spec"].update(replicas=0))
    site.control()
    tell(site)
    site.turn(ref)
    status = site.status(ref)
    assert (status.phase, status.weights.canary) == (Phase.PROGRESSING, 10)
    site.cluster.edit("Deployment", NAMESPACE, "llama", lambda obj: obj["spec"].update(replicas=2))
    site.control()
    site.let_pass(10)
    assert site.until_settled(ref).phase is Phase.ROLLED_BACK
    assert "AlertFiring" in site.reasons(ref)


def test_one_that_nobody_repeats_is_forgotten_in_the_end(site: Site) -> None:
    ref = site.apply()
    tell(site)
    site.turn(ref)
    assert held(site.status(ref)) == "AlertFiring"
    site.let_pass(13 * 3600)
    assert site.until_settled(ref).phase is Phase.PROMOTED


def test_one_that_is_killed_is_not_rolled_back_but_waits(site: Site) -> None:
    ref = moving(site)
    site.annotate(ref, killed="by Ada")
    site.turn(ref)
    tell(site)
    site.turn(ref)
    site.annotate(ref, killed=None)
    for _ in range(5):
        site.turn(ref)
    assert (site.status(ref).phase, held(site.status(ref))) == (Phase.VERIFYING, "AlertFiring")
    assert "AlertFiring" not in site.reasons(ref)


class TestPolled:
    @pytest.fixture
    def site(self) -> Site:
        it = Site(polls=True)
        it.deploy()
        return it

    def test_one_that_begins_while_the_canary_has_traffic_rolls_back(self, site: Site) -> None:
        ref = self._moving(site)
        poll(site, BURN)
        site.reconciler.reconcile(ref)
        assert site.status(ref).decisions[-1].reason == "AlertFiring"
        assert "learned by polling" in site.status(ref).decisions[-1].message

    def test_one_that_is_pending_changes_nothing(self, site: Site) -> None:
        ref = self._moving(site)
        for _ in range(400):
            poll(site, BURN, fires=False)
            site.turn(ref)
        assert site.status(ref).phase is Phase.PROMOTED

    def test_one_whose_condition_held_before_the_canary_had_traffic_is_not_its_fault(
        self, site: Site
    ) -> None:
        ref = self._moving(site)
        poll(site, BURN, since=-1000)
        site.turn(ref)
        assert held(site.status(ref)) == "AlertFiring"

    def test_nothing_begins_unless_it_is_known_whether_an_alert_fires(self, site: Site) -> None:
        ref = site.apply()
        for _ in range(5):
            site.turn(ref)
        assert (site.status(ref).phase, held(site.status(ref))) == (
            Phase.PENDING,
            "MetricsUnavailable",
        )
        woken: list[str] = []
        site.alerts.wake = lambda _, name: woken.append(name)
        poll(site)
        assert woken == [ref.name]
        site.turn(ref)
        assert site.status(ref).phase is Phase.PROVISIONING

    def test_an_outage_is_neither_the_beginning_nor_the_end_of_an_alert(self, site: Site) -> None:
        ref = site.apply()
        poll(site, BURN, since=-60)
        site.turn(ref)
        assert held(site.status(ref)) == "AlertFiring"
        for _ in range(60):
            site.alerts.polled(None)
            site.turn(ref)
        assert site.status(ref).alerts, "nobody has said that it is over"
        # A Prometheus that has just come back has not evaluated its rules yet.
        poll(site)
        site.turn(ref)
        assert site.status(ref).alerts
        poll(site, BURN, fires=False)
        site.turn(ref)
        poll(site, BURN)
        site.turn(ref)
        assert (site.status(ref).phase, held(site.status(ref))) == (Phase.PENDING, "AlertFiring")
        assert self._until_settled(site, ref).phase is Phase.PROMOTED

    def test_a_prometheus_that_lost_its_memory_does_not_make_an_old_alert_a_new_one(
        self, site: Site
    ) -> None:
        ref = self._moving(site)
        poll(site, BURN, since=-1000)
        site.turn(ref)
        for _ in range(5):
            poll(site)
            site.turn(ref)
        poll(site, BURN)
        for _ in range(5):
            poll(site, BURN)
            site.turn(ref)
        assert site.status(ref).phase is Phase.PROGRESSING

    def test_an_operator_that_starts_anew_blames_nobody_for_what_fired_before(
        self, site: Site
    ) -> None:
        ref = self._moving(site)
        poll(site, BURN, since=-1000)
        site.turn(ref)
        site.restart()
        site.turn(ref)
        for _ in range(5):
            poll(site, BURN)
            site.turn(ref)
        assert (site.status(ref).phase, held(site.status(ref))) == (
            Phase.PROGRESSING,
            "AlertFiring",
        )

    def test_a_rule_that_is_no_longer_evaluated_says_nothing_of_now(self, site: Site) -> None:
        ref = self._moving(site)
        old = site.now - timedelta(minutes=4)
        site.alerts.polled([PolledAlert(BURN, True, site.now, old)])
        site.turn(ref)
        assert site.status(ref).alerts == ()

    def _moving(self, site: Site) -> Ref:
        ref = site.apply()
        while not has_traffic(site.status(ref)):
            poll(site)
            site.turn(ref)
        return ref

    def _until_settled(self, site: Site, ref: Ref) -> Status:
        for _ in range(400):
            poll(site)
            site.turn(ref)
        return site.status(ref)
