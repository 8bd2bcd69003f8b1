"""Alerts and dashboard of the operator: they ask for metrics that there are, and fire when due."""

from __future__ import annotations

import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from kvlocal import chart
from kvlocal.cache import REPOSITORY
from kvquant import telemetry  # noqa: F401 - whose metrics are asked for
from kvquant.core import queries as router_metrics
from kvquant.core import shadow_settings
from kvquant.engines import vllm_metrics
from tests import dashboard
from tests.prometheus_server import binary

RULES = chart.CHART / "files" / "rules.yaml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
PARTS = re.compile(r"_(bucket|count|sum|total|created)$")

PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds"}
"""What every client library exports."""


def known() -> set[str]:
    """Return the names of all metrics that the product or its engines export, without endings."""
    ours = {family.name for family in REGISTRY.collect()} | {"kvquant_router_pods"}
    shadows = {v for v in vars(shadow_settings).values() if isinstance(v, str) and "kvquant_" in v}
    routers = {v for v in vars(router_metrics).values() if isinstance(v, str) and "envoy_" in v}
    engines = {*vllm_metrics.SCALARS, *vllm_metrics.HISTOGRAMS, *vllm_metrics.MEANS}
    engines.add("vllm:kv_cache_usage_perc")
    return {PARTS.sub("", name) for name in (*ours, *shadows, *routers, *engines, *PROCESS)}


def asked(text: str) -> set[str]:
    """Return the names of the metrics in a query, without endings."""
    found = re.findall(r"\b(?:kvquant|envoy|vllm|process)[_:][a-z0-9_:]+", text)
    return {PARTS.sub("", name) for name in found if not name.startswith("envoy_cluster_name")} - {
        "envoy_response_code_class"
    }


def test_every_metric_that_is_asked_for_is_one_that_there_is() -> None:
    texts = [*(text for _, text in dashboard.queries()), *(alert["expr"] for alert in ALERTS)]
    assert set().union(*map(asked, texts)) <= known()


def test_every_alert_has_a_page_that_says_what_to_do_and_no_page_is_left_over() -> None:
    pages = {path.stem: path.read_text() for path in (REPOSITORY / "docs/runbooks").glob("*.md")}
    assert set(pages) == {alert["alert"] for alert in ALERTS}
    for alert in ALERTS:
        assert alert["annotations"]["runbook_url"] == f"RUNBOOKS/{alert['alert']}.md"
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        page = pages[alert["alert"]]
        for part in ("**What users feel.**", "**How to look.**", "**What to do.**"):
            assert part in page
    told = (REPOSITORY / "docs/dashboard.md").read_text()
    assert all(f"runbooks/{name}.md" in told for name in pages)


def test_no_alert_of_ours_is_taken_for_one_of_the_rollout_that_it_speaks_of() -> None:
    for alert in ALERTS:
        by = set(re.findall(r"by \(([^)]*)\)", alert["expr"]))
        assert not {name.strip() for one in by for name in one.split(",")} & {
            *("namespace", "service", "deployment", "kvquant_rollout"),
        }


def test_panels_do_not_overlap_and_have_queries_of_their_own_source() -> None:
    ids = [panel["id"] for panel in dashboard.DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for one, two in combinations([p["gridPos"] for p in dashboard.DASHBOARD["panels"]], 2):
        apart_x = one["x"] + one["w"] <= two["x"] or two["x"] + two["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= two["y"] or two["y"] + two["h"] <= one["y"]
        assert apart_x or apart_y, (one, two)
    for panel in dashboard.panels():
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"


def test_prometheus_understands_the_rules_as_they_are_and_in_the_chart(tmp_path: Path) -> None:
    _promtool("check", "rules", str(RULES))
    document = yaml.safe_load(
        chart.render(
            {"monitoring": {"rules": True, "runbooks": "https://docs.example.com/books"}},
            "--show-only=templates/rules.yaml",
        )
    )
    rendered = tmp_path / "rules.yaml"
    rendered.write_text(yaml.safe_dump(document["spec"]))
    _promtool("check", "rules", str(rendered))
    (group,) = document["spec"]["groups"]
    for ours, theirs in zip(ALERTS, group["rules"], strict=True):
        assert theirs["expr"] == ours["expr"]
        url = theirs["annotations"]["runbook_url"]
        assert url == f"https://docs.example.com/books/{ours['alert']}.md"


WHOSE = 'rollout_namespace="inference",rollout="llama-fp8"'
HELD = {
    f"kvquant_rollout_held{{{WHOSE}}}": "1x300",
    f'kvquant_rollout_phase{{{WHOSE},phase="Progressing"}}': "1x300",
}
STUCK = {
    f"kvquant_rollout_phase_started_timestamp_seconds{{{WHOSE}}}": "0x300",
    f'kvquant_rollout_phase{{{WHOSE},phase="Provisioning"}}': "1x300",
}
BACK = {
    f"kvquant_rollout_phase_started_timestamp_seconds{{{WHOSE}}}": "0x5 360x300",
    f'kvquant_rollout_phase{{{WHOSE},phase="RolledBack"}}': "0x5 1x300",
}
LEADS = {'kvquant_leader{instance="a"}': "1x300", 'kvquant_leader{instance="b"}': "0x300"}
CONNECTED = 'kvquant_router_pods{router_namespace="inference",router="llama-router",state='
READ, FAILED = (f'kvquant_prometheus_reads_total{{outcome="{o}"}}' for o in ("read", "failed"))


@pytest.mark.parametrize(
    ("alert", "series", "minutes", "fires"),
    [
        ("KVQuantNoLeader", {'kvquant_leader{instance="a"}': "0x300"}, 4, True),
        ("KVQuantNoLeader", {}, 4, True),
        ("KVQuantNoLeader", LEADS, 200, False),
        # A failover, and a leader that hands over in an upgrade.
        ("KVQuantNoLeader", {"kvquant_leader": "1x5 0x1 1x300"}, 8, False),
        (
            "KVQuantPassesFail",
            {'kvquant_reconcile_errors_total{error="Refused"}': "0+2x300"},
            30,
            1,
        ),
        (
            "KVQuantPassesFail",
            {'kvquant_reconcile_errors_total{error="Conflict"}': "0x5 3x300"},
            30,
            0,
        ),
        ("KVQuantPrometheusUnread", {READ: "9x300", FAILED: "0+3x300"}, 20, True),
        ("KVQuantPrometheusUnread", {READ: "0+3x300", FAILED: "0+1x300"}, 200, False),
        (
            "KVQuantPrometheusUnread",
            {READ: "0+3x10 30x4 30+3x300", FAILED: "0x10 0+3x4 12x300"},
            15,
            0,
        ),
        ("KVQuantRolloutStuck", STUCK, 70, True),
        ("KVQuantRolloutStuck", STUCK, 50, False),
        (
            "KVQuantRolloutStuck",
            {k.replace("Provisioning", "Progressing"): v for k, v in STUCK.items()},
            200,
            0,
        ),
        ("KVQuantRolloutHeld", HELD, 130, True),
        ("KVQuantRolloutHeld", HELD, 110, False),
        (
            "KVQuantRolloutHeld",
            {k.replace("Progressing", "Promoted"): v for k, v in HELD.items()},
            200,
            0,
        ),
        ("KVQuantRolledBack", BACK, 10, True),
        ("KVQuantRolledBack", BACK, 40, False),
        ("KVQuantRolledBack", HELD, 10, False),
        ("KVQuantRouterUnconnected", {CONNECTED + '"connected"}': "0x300"}, 6, True),
        ("KVQuantRouterUnconnected", {CONNECTED + '"connected"}': "2x3 0x2 2x300"}, 20, False),
        (
            "KVQuantRouterLags",
            {CONNECTED + '"connected"}': "2x300", CONNECTED + '"applied"}': "1x300"},
            6,
            1,
        ),
        (
            "KVQuantRouterLags",
            {CONNECTED + '"connected"}': "2x300", CONNECTED + '"applied"}': "2x300"},
            200,
            0,
        ),
        ("KVQuantArchiveBehind", {"kvquant_archive_pending_decisions": "4x300"}, 61, True),
        ("KVQuantArchiveBehind", {"kvquant_archive_pending_decisions": "4x30 0x300"}, 90, False),
    ],
)
def test_an_alert_fires_when_it_should_and_not_on_a_good_day(
    alert: str, series: dict[str, str], minutes: int, fires: bool, tmp_path: Path
) -> None:
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                        "eval_time": f"{minutes}m",
                        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                    }
                ],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump(test))
    _promtool("test", "rules", str(file))


def _promtool(*arguments: str) -> None:
    done = subprocess.run([binary("promtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
