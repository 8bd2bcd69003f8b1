"""`backtest` against a real Prometheus that remembers recordings of real vLLM servers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kvquant.cli.program import kvquant
from kvquant.core.analysis.samples import RouterSample
from tests import recordings
from tests.prometheus_server import backfill, prometheus
from tests.recordings import Pair, exposition, pair
from tests.unit.cli.test_json_names import names

PAIRS = ("auto-auto-ladder", "auto-auto-saturated", "auto-fp8-even", "auto-int8-calm")
ROUTED = "auto-int8-light"
SOLO = ("auto", "fp8", "int8_per_token_head")
COMPRESSION = ("--time-scale", "12")


def pod(name: str) -> str:
    return f'namespace="gpu",pod="{name}",instance="{name}:8000"'


def history() -> Iterator[str]:
    for name in (*PAIRS, ROUTED):
        for role in ("baseline", "canary"):
            yield from exposition(f"{name}.{role}", pod(f"{name}-{role}"))
    yield from routed(pair(ROUTED))
    for dtype in SOLO:
        # Recorded one after the other, and replayed as if it had been at once. Nobody has named
        # these pods: they have addresses.
        later = solo_begin("auto") - solo_begin(dtype)
        yield from exposition(f"solo-{dtype}", f'instance="{dtype}:8000"', later)
    yield from tool_calls()
    # An engine that serves nobody.
    idle = pair(PAIRS[0]).baseline
    for scrape in idle:
        for metric in ("vllm:num_requests_running", "vllm:request_success_total"):
            for name in ("idle-a", "idle-b"):
                yield f"{metric}{{{pod(name)}}} 0 {scrape.at:.3f}"


def routed(recorded: Pair) -> Iterator[str]:
    """Yield what the router would have shown that split the requests of a pair."""
    for tick in recorded.ticks(routers=True):
        at = f"{tick.at:.3f}"
        own = 'namespace="gpu",pod="router-0"'
        yield f"envoy_server_uptime{{{own}}} 1 {at}"
        for slot, arm in (("blue", tick.baseline), ("green", tick.canary)):
            sample: RouterSample = arm.routers["router-0"]
            mine = f'{own},envoy_cluster_name="{slot}"'
            upstream = "envoy_cluster_upstream"
            yield f"{upstream}_rq_total{{{mine}}} {sample.started} {at}"
            yield f"{upstream}_rq_active{{{mine}}} {sample.active} {at}"
            yield f"{upstream}_cx_destroy_remote_with_active_rq{{{mine}}} {sample.unanswered} {at}"
            assert sample.latency is not None
            for bound, count in zip(sample.latency.bounds, sample.latency.counts, strict=True):
                le = "+Inf" if math.isinf(bound) else f"{1000 * bound:g}"
                yield f'{upstream}_rq_time_bucket{{{mine},le="{le}"}} {count} {at}'


def tool_calls() -> Iterator[str]:
    """Yield signals of a user's that tell arms apart of which all else is the same."""
    for role, spoilt, slow in (("baseline", 0.01, 0.0), ("canary", 0.30, 0.6)):
        recorded = pair(PAIRS[0])
        for count, scrape in enumerate(getattr(recorded, role), 1):
            own, at, calls = pod(f"{PAIRS[0]}-{role}"), f"{scrape.at:.3f}", 8 * count
            errors = int(calls * spoilt)
            if errors:
                yield f'tool_calls_total{{{own},outcome="error"}} {errors} {at}'
            yield f'tool_calls_total{{{own},outcome="ok"}} {calls - errors} {at}'
            for stage, late in (("final", slow), ("first", 0.0)):
                mine = f'{own},stage="{stage}"'
                quick = int(calls * (0.9 - late))
                for le, value in (("0.1", quick), ("0.5", int(calls * 0.98)), ("+Inf", calls)):
                    yield f'rerank_duration_seconds_bucket{{{mine},le="{le}"}} {value} {at}'
                yield f"rerank_duration_seconds_sum{{{mine}}} {calls * (0.1 + late)} {at}"
                yield f"rerank_duration_seconds_count{{{mine}}} {calls} {at}"


def solo_begin(dtype: str) -> float:
    return recordings.solo(dtype, dtype).baseline[0].at


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("prometheus")
    backfill(folder, history())
    with prometheus([], folder) as url:
        yield url


def run(url: str, *arguments: str) -> Result:
    result = CliRunner().invoke(kvquant, ["backtest", "--prometheus", url, *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def during(name: str) -> tuple[str, ...]:
    recorded = pair(name)
    return "--start", f"{recorded.steps[0][0]:.3f}", "--end", f"{recorded.end:.3f}"


def arms(name: str, *, swap: bool = False) -> tuple[str, ...]:
    roles = ("canary", "baseline") if swap else ("baseline", "canary")
    one, other = (f'namespace="gpu",pod="{name}-{role}"' for role in roles)
    return "--baseline", one, "--canary", other


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# What cannot be answered.


def test_a_selector_that_matches_nothing_is_named_with_the_pods_that_there_were(url: str) -> None:
    for option, other in (("--canary", "--baseline"), ("--baseline", "--canary")):
        wrong = 'namespace="gpu",pod=~"lama-.*"'
        right = 'pod="auto-int8-calm-baseline"'
        result = run(url, option, wrong, other, right, *during("auto-int8-calm"))
        assert result.exit_code == 1
        assert f"{option} {wrong}: no engine that was scraped between" in result.stderr
        assert "gpu/auto-int8-calm-baseline" in result.stderr


def test_a_time_without_data_is_named(url: str) -> None:
    then = ("--start", "2026-01-01T00:00:00Z", "--end", "2026-01-01T02:00:00Z")
    result = run(url, *arms("auto-int8-calm"), *then)
    assert result.exit_code == 1
    assert "--start, --end" in result.stderr
    assert "no vLLM engine's metrics between 2026-01-01 00:00:00 and 02:00:00 UTC" in result.stderr


def test_a_time_without_requests_is_named(url: str) -> None:
    result = run(url, "--baseline", 'pod="idle-a"', "--canary", 'pod="idle-b"', *during(PAIRS[0]))
    assert result.exit_code == 1
    assert "--start, --end: neither arm has finished a request" in result.stderr


def test_what_is_told_to_have_had_traffic_and_had_none_is_no_verdict(url: str) -> None:
    pods = ("--baseline", 'pod="idle-a"', "--canary", 'pod="idle-b"', "--steps", "50")
    answer = told(run(url, *pods, *during(PAIRS[0]), *COMPRESSION, "-o", "json"))
    assert (answer["verdict"], answer["decision"]) == ("Error", "Hold")
    assert "Nothing could be compared" in answer["message"]


def test_selectors_that_share_a_pod_are_refused(url: str) -> None:
    both = 'pod=~"auto-int8-calm-.*"'
    one = 'pod="auto-int8-calm-canary"'
    result = run(url, "--baseline", both, "--canary", one, *during("auto-int8-calm"))
    assert result.exit_code == 1
    assert "--baseline and --canary both select gpu/auto-int8-calm-canary" in result.stderr


def test_one_pod_cannot_be_split(url: str) -> None:
    one = 'pod="auto-int8-calm-canary"'
    result = run(url, "--baseline", one, *during("auto-int8-calm"))
    assert result.exit_code == 1
    assert "--baseline selects one pod only (gpu/auto-int8-calm-canary)" in result.stderr
    assert "name a --canary" in result.stderr


def test_steps_that_do_not_fit_into_the_time_are_refused(url: str) -> None:
    name = "auto-int8-calm"
    result = run(url, *arms(name), *during(name), "--steps", "10:10m,25:10m,50")
    assert result.exit_code == 1
    assert "--steps: the last step begins 0:20:00 after --start" in result.stderr
    pool = ("--baseline", 'pod=~"auto-auto-ladder-.*"')
    result = run(url, *pool, *during("auto-auto-ladder"), "--steps", "10:10m,25:10m")
    assert result.exit_code == 1
    assert "--steps: they last 0:20:00" in result.stderr


def test_engines_of_which_only_some_have_a_pods_name_are_refused(url: str) -> None:
    names = ("--baseline", 'instance=~"auto:8000|idle-a:8000"')
    at = solo_begin("auto")
    both = min(at, pair(PAIRS[0]).steps[0][0]) - 1, max(at, pair(PAIRS[0]).end) + 60
    result = run(url, *names, "--start", f"{both[0]:.0f}", "--end", f"{both[1]:.0f}")
    assert result.exit_code == 1
    assert "--pod-label instance" in result.stderr


def test_a_query_that_prometheus_refuses_is_a_sentence(url: str) -> None:
    result = run(url, "--baseline", 'pod=~"("', "--canary", 'pod="b"', *during(PAIRS[0]))
    assert result.exit_code == 1
    assert "refused a query" in result.stderr
    assert "Traceback" not in result.output


# What is answered.


def test_an_int8_canary_is_rolled_back_and_the_evidence_says_why(url: str) -> None:
    name = "auto-int8-calm"
    answer = told(run(url, *arms(name), *during(name), *COMPRESSION, "-o", "json"))
    assert (answer["verdict"], answer["decision"]) == ("Fail", "RollBack")
    decided = datetime.fromisoformat(answer["decidedAt"])
    begin, end = pair(name).steps[0][0], pair(name).end
    assert begin < decided.timestamp() < end
    failed = [signal for signal in answer["signals"] if signal["verdict"] == "Fail"]
    assert failed
    assert all(signal["effect"] > 0 for signal in failed)
    assert answer["message"].startswith(failed[0]["message"])
    assert answer["baselinePods"] == ["gpu/auto-int8-calm-baseline"]
    (step,) = answer["steps"]
    # As measured: the recording went from 25 to 50 per cent.
    assert 20 < step["weight"] < 50


@pytest.mark.parametrize("swap", [False, True], ids=["as recorded", "swapped"])
@pytest.mark.parametrize("name", ["auto-auto-ladder", "auto-auto-saturated", "auto-fp8-even"])
def test_a_canary_that_is_as_good_is_not(url: str, name: str, swap: bool) -> None:
    found = run(url, *arms(name, swap=swap), *during(name), *COMPRESSION, "-o", "json")
    assert told(found)["verdict"] in ("Pass", "Inconclusive")


def test_steps_are_told_apart(url: str) -> None:
    name = "auto-auto-ladder"
    recorded = pair(name)
    begun = [at for at, _ in recorded.steps]
    lengths = [f"{later - at:.0f}s" for at, later in pairwise(begun)]
    weights = [int(weight) for _, weight in recorded.steps]
    steps = ",".join(f"{w}:{n}" for w, n in zip(weights, lengths, strict=False))
    steps += f",{weights[-1]}"
    answer = told(
        run(url, *arms(name), *during(name), *COMPRESSION, "--steps", steps, "-o", "json")
    )
    assert [step["weight"] for step in answer["steps"]] == weights
    assert [step["step"] for step in answer["steps"]] == [1, 2, 3]
    assert all(step["canaryRequests"] is not None for step in answer["steps"])


@pytest.mark.parametrize(
    ("baseline", "canary", "verdicts"),
    [
        ("auto", "int8_per_token_head", {"Fail"}),
        ("fp8", "int8_per_token_head", {"Fail"}),
        ("auto", "fp8", {"Pass", "Inconclusive"}),
        ("int8_per_token_head", "auto", {"Pass", "Inconclusive"}),
    ],
)
def test_engines_without_a_pods_name_are_told_by_their_addresses(
    url: str, baseline: str, canary: str, verdicts: set[str]
) -> None:
    begin = solo_begin("auto")
    length = min(
        recordings.solo(dtype, dtype).baseline[-1].at - solo_begin(dtype)
        for dtype in (baseline, canary)
    )
    answer = told(
        run(
            url,
            *("--baseline", f'instance="{baseline}:8000"'),
            *("--canary", f'instance="{canary}:8000"'),
            *("--start", f"{begin:.3f}", "--end", f"{begin + length:.3f}"),
            *("--time-scale", "30", "--steps", "50", "-o", "json"),
        )
    )
    assert answer["verdict"] in verdicts
    assert answer["canaryPods"] == [f"{canary}:8000"]
    # Looking more often than scrapes come shows nothing new.
    assert answer["tickSeconds"] == 2.0


def test_what_clients_saw_at_the_router_is_used_where_it_is_named(url: str) -> None:
    common = (*arms(ROUTED), *during(ROUTED), *COMPRESSION, "-o", "json")
    blind = told(run(url, *common))
    seeing = told(run(url, *common, "--router", 'pod="router-0"'))
    # Through the engines alone it is a close thing, which must not be waved through.
    assert blind["verdict"] != "Pass"
    assert seeing["verdict"] == "Fail"
    assert {s["name"] for s in seeing["signals"] if s["verdict"] == "Fail"} & {
        "latencyP50",
        "latencyP90",
        "latencyP99",
    }


SIGNAL = {"name", "family", "verdict", "unit", "baseline", "canary", "effect", "lower", "upper"}
SIGNAL |= {"tolerance", "budgetSpent", "requests", "message"}
STEP = {"step", "weight", "verdict", "decidedAt", "baselineRequests", "canaryRequests", "message"}
RULE = {"rule", "limitSeconds", "decision", "decidedAt", "failedChecks", "checks"}
ANSWER: dict[str, set[str]] = {
    "": {
        *("verdict", "decision", "decidedAt", "message", "source", "start", "end", "timeScale"),
        *("tickSeconds", "baselinePods", "canaryPods", "budgetSpent", "loadRatio", "provisional"),
        *("etaSeconds", "signals", "steps", "thresholds"),
    },
    "signals[]": SIGNAL,
    "steps[]": STEP,
    "thresholds[]": RULE,
}
RATE = {"count", "rate", "lower", "upper"}
SPLITS: dict[str, set[str]] = {
    "": {
        *("splits", "seed", "source", "start", "end", "timeScale", "tickSeconds", "pods"),
        *("falseRollbacks", "promoted", "held", "thresholds", "examples"),
    },
    **dict.fromkeys(("falseRollbacks", "promoted", "held"), RATE),
    "thresholds[]": {"rule", "rolledBack"},
    "thresholds[].rolledBack": RATE,
    "examples[]": {"canaryPods", "startedAt", "decidedAt", "message"},
}


def test_the_names_that_scripts_rely_on(url: str) -> None:
    name = "auto-int8-calm"
    common = (*during(name), *COMPRESSION, "-o", "json")
    assert names(told(run(url, *arms(name), *common))) == ANSWER
    pool = ("--baseline", f'pod=~"{name}-.*"', "--splits", "4")
    assert names(told(run(url, *pool, *common))) == SPLITS


def test_static_thresholds_are_told_beside(url: str) -> None:
    name = "auto-int8-calm"
    rules = told(run(url, *arms(name), *during(name), *COMPRESSION, "-o", "json"))["thresholds"]
    assert len(rules) == 4
    assert {rule["decision"] for rule in rules} == {"RollBack"}
    assert all(rule["limitSeconds"] > 0 and rule["failedChecks"] > 0 for rule in rules)
    limits = [rule["limitSeconds"] for rule in rules]
    assert limits[2] == pytest.approx(limits[0] * 2 / 1.25)


def test_a_pool_is_split_in_two_and_its_false_rollbacks_are_counted(url: str) -> None:
    name = "auto-auto-ladder"
    pool = ("--baseline", f'pod=~"{name}-.*"')
    common = (*pool, *during(name), *COMPRESSION, "--splits", "6", "--seed", "7")
    answer = told(run(url, *common, "-o", "json"))
    assert (answer["splits"], answer["seed"]) == (2, 7), "there are but two"
    assert answer["pods"] == [f"gpu/{name}-baseline", f"gpu/{name}-canary"]
    counts = [answer[key]["count"] for key in ("falseRollbacks", "promoted", "held")]
    assert sum(counts) == 2
    assert counts[0] == 0
    rate = answer["falseRollbacks"]
    assert (rate["rate"], rate["lower"]) == (0.0, 0.0)
    assert rate["upper"] == pytest.approx(0.842, abs=0.001), "exact, of none in two"
    assert answer["examples"] == []
    assert answer == told(run(url, *common, "-o", "json")), "the same seed draws the same splits"


def test_a_pool_whose_pods_differ_cries_wolf_and_says_with_which(url: str) -> None:
    name = "auto-int8-calm"
    pool = ("--baseline", f'pod=~"{name}-.*"')
    answer = told(run(url, *pool, *during(name), *COMPRESSION, "--splits", "6", "-o", "json"))
    assert (answer["falseRollbacks"]["count"], answer["splits"]) == (1, 2)
    assert {pod for one in answer["examples"] for pod in one["canaryPods"]} == {
        f"gpu/{name}-canary"
    }
    said = run(url, *pool, *during(name), *COMPRESSION, "--splits", "6").stdout
    assert "An innocent canary would have been rolled back in" in said
    assert f"With 1 pod: gpu/{name}-canary as the canary from" in said


def test_in_words(url: str) -> None:
    name = "auto-int8-calm"
    said = run(url, *arms(name), *during(name), *COMPRESSION).stdout
    for part in (
        "✗ It would have been rolled back at 20",
        "1 pod: gpu/auto-int8-calm-canary",
        "100 % of the error budget spent",
        "Static thresholds would have",
        "Flagger: p99 of a minute above 1.25 times",
    ):
        assert part in said


def test_the_tolerances_of_a_manifest_are_used(url: str, tmp_path: Path) -> None:
    manifest = tmp_path / "rollout.yaml"
    manifest.write_text(
        """
apiVersion: kvquant.dev/v1alpha1
kind: KVQuantRollout
metadata: {name: lenient}
spec:
  targetRef: {name: llama}
  kvCache: {dtype: fp8}
  traffic: {router: {}}
  analysis: {p99: {tolerancePercent: 80}, minRequests: 7}
"""
    )
    name = "auto-auto-ladder"
    common = (*arms(name), *during(name), *COMPRESSION, "-o", "json")
    usual = told(run(url, *common))
    lenient = told(run(url, *common, "--filename", str(manifest)))

    def tolerance(answer: Any) -> float:
        (signal,) = [s for s in answer["signals"] if s["name"] == "latencyP99"]
        return float(signal["tolerance"].split()[0])

    assert tolerance(lenient) > tolerance(usual) + 40


def test_instants_may_be_written_as_people_do(url: str) -> None:
    name = "auto-int8-calm"
    begin, end = (
        datetime.fromtimestamp(at, UTC) for at in (pair(name).steps[0][0], pair(name).end)
    )
    then = ("--start", f"{begin:%Y-%m-%dT%H:%M:%SZ}", "--end", f"{end:%Y-%m-%dT%H:%M:%S+00:00}")
    answer = told(run(url, *arms(name), *then, *COMPRESSION, "-o", "json"))
    assert answer["verdict"] == "Fail"


# Signals of the user's own.

TOOLS = """
- name: toolErrors
  ratio: {events: 'tool_calls_total{outcome="error"}', total: tool_calls_total}
  tolerancePercent: 5
"""
RERANK = """
- name: rerank
  latency: {histogram: 'rerank_duration_seconds{stage="STAGE"}', percentile: 90}
  tolerancePercent: 20
"""


def own(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "signals.yaml"
    path.write_text(text)
    return "--custom", str(path)


@pytest.mark.parametrize("under", ["", "custom:"])
def test_harm_that_only_a_signal_of_the_users_sees_is_found(
    url: str, tmp_path: Path, under: str
) -> None:
    name = PAIRS[0]
    custom = own(tmp_path, under + TOOLS)
    answer = told(run(url, *arms(name), *during(name), *COMPRESSION, *custom, "-o", "json"))
    assert (answer["verdict"], answer["decision"]) == ("Fail", "RollBack")
    failed = [one for one in answer["signals"] if one["verdict"] == "Fail"]
    assert [(one["name"], one["family"]) for one in failed] == [("toolErrors", "custom")]
    assert "toolErrors" in answer["message"]
    swapped = arms(name, swap=True)
    answer = told(run(url, *swapped, *during(name), *COMPRESSION, *custom, "-o", "json"))
    assert answer["verdict"] in ("Pass", "Inconclusive"), "fewer errors are no harm"


def test_a_histogram_of_the_users_is_read_by_its_matchers(url: str, tmp_path: Path) -> None:
    name = PAIRS[0]
    verdicts = {}
    for stage in ("final", "first"):
        custom = own(tmp_path, RERANK.replace("STAGE", stage))
        answer = told(run(url, *arms(name), *during(name), *COMPRESSION, *custom, "-o", "json"))
        (signal,) = [one for one in answer["signals"] if one["name"] == "rerank"]
        verdicts[stage] = signal["verdict"]
        assert signal["baseline"] is not None
    assert verdicts["final"] == "Fail"
    assert verdicts["first"] in ("Pass", "Inconclusive")


def test_the_signals_of_a_manifest_are_judged_and_those_of_a_file_join_them(
    url: str, tmp_path: Path
) -> None:
    manifest = tmp_path / "rollout.yaml"
    manifest.write_text(
        "kind: KVQuantRollout\nmetadata: {name: x}\nspec:\n  targetRef: {name: llama}\n"
        "  kvCache: {dtype: fp8}\n  traffic: {router: {}}\n  analysis:\n    custom:\n"
        + "".join(f"    {line}\n" for line in TOOLS.strip().splitlines())
    )
    name = PAIRS[0]
    custom = own(tmp_path, RERANK.replace("STAGE", "first"))
    common = (*arms(name), *during(name), *COMPRESSION, "-f", str(manifest), "-o", "json")
    alone, both = told(run(url, *common)), told(run(url, *common, *custom))
    own_names = [
        {one["name"] for one in answer["signals"] if one["family"] == "custom"}
        for answer in (alone, both)
    ]
    assert own_names == [{"toolErrors"}, {"toolErrors", "rerank"}]
    assert alone["verdict"] == both["verdict"] == "Fail"


def test_a_pool_is_split_by_signals_of_the_users_too(url: str, tmp_path: Path) -> None:
    name = PAIRS[0]
    pool = ("--baseline", f'pod=~"{name}-.*"', *during(name), *COMPRESSION, "--splits", "6")
    answer = told(run(url, *pool, *own(tmp_path, TOOLS), "-o", "json"))
    assert answer["falseRollbacks"]["count"] == 1, "the pod with the errors as the canary"


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (TOOLS.replace("total: tool_calls_total", "total: tool_cals_total"), "tool_cals_total"),
        (RERANK.replace("STAGE", "none"), 'rerank_duration_seconds_bucket{stage="none"}'),
    ],
)
def test_a_metric_that_no_pod_shows_is_named_before_anything_waits_for_it(
    url: str, tmp_path: Path, text: str, missing: str
) -> None:
    name = PAIRS[0]
    result = run(url, *arms(name), *during(name), *COMPRESSION, *own(tmp_path, text))
    assert result.exit_code == 1
    assert f"has shown {missing} between --start and --end" in result.stderr
    assert "no pod of --baseline" in result.stderr
