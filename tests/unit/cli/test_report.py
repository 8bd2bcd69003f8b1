"""`report`: one file that needs nothing else, whatever Prometheus says or does not."""

from __future__ import annotations

import errno
import json
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kvquant.cli.report.measured import measure
from kvquant.cli.rollouts import read
from tests.unit.cli import made, story
from tests.unit.cli.page import Page
from tests.unit.cli.prometheus import Answer, matrix, serve, telling
from tests.unit.cli.stage import Stage


@pytest.fixture(scope="module")
def good() -> story.StoryHistory:
    return story.good()


@pytest.fixture(autouse=True)
def _somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def page(stage: Stage, name: str, *arguments: str) -> Page:
    result = stage.run("report", name, "-o", "-", *arguments)
    assert result.exit_code == 0, result.stderr
    return Page(result.stdout)


def staged(*raws: dict[str, Any]) -> Stage:
    stage = Stage()
    stage.put(*raws)
    return stage


# What goes wrong with Prometheus: the report is written all the same and says what is missing.


def closed_port() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda *_: (500, '{"error": "out of memory"}'),
            "refused a query (HTTP 500): out of memory",
        ),
        (lambda *_: (503, ""), "refused a query (HTTP 503): no explanation"),
        (lambda *_: (403, "no"), "is forbidden (no)"),
        (lambda *_: (200, "<html>log in</html>"), "does not speak like Prometheus"),
        (lambda *_: (200, '{"status": "success"}'), "does not speak like Prometheus"),
        (lambda *_: (200, "[]"), "does not speak like Prometheus"),
        (lambda *_: (200, matrix([{"metric": {}, "values": [["x", "1"]]}])), "does not speak like"),
        (lambda *_: (200, matrix([{"metric": {}, "values": [["NaN", "1"]]}])), "does not speak"),
        (lambda *_: (200, matrix([])), "Prometheus knows no requests of router llama-router"),
    ],
)
def test_a_prometheus_that_does_not_help_is_a_warning_and_a_note(answer: Answer, said: str) -> None:
    stage = staged(story.promoted())
    with serve(answer) as url:
        result = stage.run("report", "llama-fp8", "-o", "-", "--prometheus", url)
    assert result.exit_code == 0, result.stderr
    assert said in " ".join(result.stderr.split())
    words = Page(result.stdout).words
    assert said in words
    assert "Weight of the canary" in words
    assert "llama-fp8-pool is the serving pool now." in words


def test_one_outage_is_told_once() -> None:
    stage = staged(story.promoted())
    asked: list[tuple[str, dict[str, str]]] = []
    with serve(lambda *_: (500, "x"), asked) as url:
        result = stage.run("report", "llama-fp8", "-o", "-", "--prometheus", url)
    assert len(asked) == 1
    assert result.stderr.count("warning:") == 1


def test_a_prometheus_that_is_down_is_named_with_the_other_way_to_reach_it() -> None:
    stage = staged(story.promoted())
    for url in closed_port():
        result = stage.run("report", "llama-fp8", "-o", "-", "--prometheus", url)
    assert result.exit_code == 0
    assert "no answer from Prometheus at 127.0.0.1:" in result.stderr
    assert (
        "--prometheus-service NAMESPACE/SERVICE:PORT goes through the API server" in result.stderr
    )


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-5"])
def test_values_that_no_counter_can_have_are_drawn_as_nothing(
    good: story.StoryHistory, value: str
) -> None:
    stage = staged(story.promoted())
    with serve(telling(good, lambda _: value)) as url:
        result = stage.run("report", "llama-fp8", "-o", "json", "--prometheus", url)
        html = page(stage, "llama-fp8", "--prometheus", url)
    assert result.exit_code == 0, result.stderr
    arms = [
        step[arm] for step in json.loads(result.stdout)["steps"] for arm in ("baseline", "canary")
    ]
    assert arms
    assert {number for arm in arms for number in arm.values()} == {None}
    lines = [value for tag, name, value in html.attributes if (tag, name) == ("path", "class")]
    assert lines == ["area", "line canary"], "only the committed weight is known"
    assert not re.search(r"\b(nan|inf)\b", html.words, re.IGNORECASE)


def test_credentials_of_the_url_are_sent_and_never_shown(good: story.StoryHistory) -> None:
    stage = staged(story.promoted())
    asked: list[tuple[str, dict[str, str]]] = []
    with serve(telling(good), asked) as url:
        secret = url.replace("http://", "http://me:p%40ss@") + "/prom/"
        result = stage.run("report", "llama-fp8", "-o", "-", "--prometheus", secret)
    assert {path for path, _ in asked} == {"/prom/api/v1/query_range"}
    assert {headers["Authorization"] for _, headers in asked} == {"Basic bWU6cEBzcw=="}
    assert "p%40ss" not in result.output
    assert "p@ss" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prometheus", "prometheus:9090"), "is no URL such as"),
        (("--prometheus", "file:///etc/passwd"), "is no URL such as"),
        (("--prometheus", "ftp://prometheus.example:9090"), "is no URL such as"),
        (("--prometheus-service", "prometheus"), "is no service such as"),
        (("--prometheus-service", "a/b/../c:1"), "is no service such as"),
        (("--prometheus", "http://x", "--prometheus-service", "a/b"), "name one Prometheus"),
    ],
)
def test_an_address_that_cannot_be_one_is_wrong_usage(
    arguments: tuple[str, ...], said: str
) -> None:
    result = staged(story.promoted()).run("report", "llama-fp8", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(Path().iterdir())


def test_the_service_proxy_that_is_forbidden_names_the_right() -> None:
    denial = {"message": 'services "prometheus:9090" is forbidden: User "alice" cannot get'}
    stage = staged(story.promoted())
    stage.answers = lambda *_: (403, json.dumps(denial))
    result = stage.run("report", "llama-fp8", "--prometheus-service", "monitoring/prometheus:9090")
    assert result.exit_code == 0
    assert 'services "prometheus:9090" is forbidden' in result.stderr
    assert "get services/proxy" in result.stderr
    assert "--prometheus URL needs none" in result.stderr


def test_evidence_that_cannot_be_read_is_a_note_and_the_rest_is_drawn() -> None:
    stage = staged(story.split(story.promoted()))
    history = telling(story.good())

    def answer(path: str, query: Mapping[str, str]) -> tuple[int, str]:
        return (500, "too much") if "timestamp(" in query["query"] else history(path, query)

    with serve(answer) as url:
        result = stage.run("report", "llama-fp8", "-o", "-", "--prometheus", url)
    assert "warning: The evidence over time is missing: " in result.stderr
    html = Page(result.stdout)
    assert "Missing: The evidence over time is missing:" in html.words
    assert html.tags.count("svg") == 7


def test_a_tick_that_does_not_last_is_wrong_usage() -> None:
    result = staged(story.promoted()).run("report", "llama-fp8", "--tick", "0s")
    assert result.exit_code == 2
    assert "--tick" in result.stderr


# What goes wrong with the rollout and the file.


def test_a_wrong_name_is_answered_with_the_names_that_exist() -> None:
    result = staged(made.progressing()).run("report", "llama")
    assert result.exit_code == 1
    assert "Did you mean llama-fp8?" in result.stderr
    assert not list(Path().iterdir())


@pytest.mark.parametrize("target", ["no-such-folder/r.html", "a-folder"])
def test_a_file_that_cannot_be_written_is_named(target: str) -> None:
    Path("a-folder").mkdir()
    result = staged(made.progressing()).run("report", "llama-fp8", "-o", target)
    assert result.exit_code == 1
    assert f"cannot write {target}: " in result.stderr
    assert [entry.name for entry in Path().iterdir()] == ["a-folder"]


def test_a_folder_without_the_right_to_write_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Root, as whom tests may run, is refused nowhere.
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    result = staged(made.progressing()).run("report", "llama-fp8")
    assert result.exit_code == 1
    assert "cannot write llama-fp8-report.html: Permission denied" in result.stderr


def test_a_report_replaces_the_one_before_and_leaves_nothing_else() -> None:
    Path("llama-fp8-report.html").write_text("old")
    result = staged(made.progressing()).run("report", "llama-fp8")
    assert result.exit_code == 0
    assert [entry.name for entry in Path().iterdir()] == ["llama-fp8-report.html"]
    assert Path("llama-fp8-report.html").read_text().startswith("<!doctype html>")
    assert str(Path("llama-fp8-report.html").resolve()) in result.stdout


HOSTILE = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&\x1b[31m\x00"


def test_text_of_the_cluster_never_becomes_markup(good: story.StoryHistory) -> None:
    raw = story.promoted()
    raw["metadata"]["annotations"] = {"kvquant.dev/paused": HOSTILE}
    status = raw["status"]
    status.update(verdict=HOSTILE, router="llama-router")
    status["analysis"]["message"] = HOSTILE
    status["analysis"]["signals"][0].update(name=HOSTILE, baseline=HOSTILE, tolerance=HOSTILE)
    status["baseline"]["dtype"] = status["canary"]["dtype"] = HOSTILE
    status["regimeProof"][0].update(pod=HOSTILE, message=HOSTILE, factor=HOSTILE)
    for decision in status["decisions"]:
        decision.update(reason=HOSTILE, message=HOSTILE)
    stage = staged(raw)
    with serve(telling(good)) as url:
        html = page(stage, "llama-fp8", "--prometheus", url)
    assert not {"script", "img"} & set(html.tags)
    assert not [name for _, name, _ in html.attributes if name.startswith("on")]
    assert html.text.count("<script>alert(1)</script>") > 10


# What goes well.


def test_the_file_loads_nothing_and_forbids_loading(good: story.StoryHistory) -> None:
    stage = staged(story.promoted())
    with serve(telling(good)) as url:
        result = stage.run("report", "llama-fp8", "-o", "-", "--prometheus", url)
    html = Page(result.stdout)
    assert not {"script", "link", "img", "iframe", "object", "embed", "use"} & set(html.tags)
    loads = {"src", "srcset", "data", "action", "poster", "xlink:href", "background"}
    assert not [name for _, name, _ in html.attributes if name in loads]
    targets = [value for _, name, value in html.attributes if name == "href"]
    assert targets
    assert all(target.startswith("#") and target[1:] in html.ids for target in targets)
    assert "url(" not in result.stdout
    assert "@import" not in result.stdout
    policies = [value for _, name, value in html.attributes if name == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in policies


def test_every_plot_of_the_good_story_has_both_arms(good: story.StoryHistory) -> None:
    stage = staged(story.promoted())
    with serve(telling(good)) as url:
        html = page(stage, "llama-fp8", "--prometheus", url)
    assert html.tags.count("svg") == 7
    classes = [value for tag, name, value in html.attributes if (tag, name) == ("path", "class")]
    # p99, p90, p50, page faults and requests; the weight has the canary's line alone.
    assert classes.count("line baseline") == 5
    assert classes.count("line canary") == 6
    for title in ("p99 latency", "p50 latency", "KV page faults", "Failed requests", "Requests"):
        assert title in html.words
    assert "prefers-color-scheme: dark" in _style(stage, "llama-fp8")
    assert "@media print" in _style(stage, "llama-fp8")


def _style(stage: Stage, name: str) -> str:
    text: str = stage.run("report", name, "-o", "-").stdout
    return text.partition("<style>")[2].partition("</style>")[0]


def test_steps_and_points_agree_with_what_was_counted(good: story.StoryHistory) -> None:
    stage = staged(story.promoted())
    with serve(telling(good)) as url:
        result = stage.run("report", "llama-fp8", "-o", "json", "--prometheus", url)
    document = json.loads(result.stdout)
    assert document["problems"] == []
    assert document["source"] == url
    steps = document["steps"]
    assert [(step["step"], step["weight"]) for step in steps] == [
        (1, 10),
        (2, 25),
        (3, 50),
        (4, 100),
    ]
    for step in steps:
        arms = step["baseline"], step["canary"]
        total = sum(arm["requests"] for arm in arms)
        assert 100 * arms[1]["requests"] / total == pytest.approx(step["weight"], abs=5)
        # 14 requests a second came; up to two scrapes are lost at the edges of a step.
        seconds = _seconds(step["endedAt"]) - _seconds(step["startedAt"])
        assert 14 * (seconds - 15) * 0.9 <= total <= 14 * seconds * 1.1
    assert steps[0]["baseline"]["p50Seconds"] == pytest.approx(0.62, rel=0.1)
    assert steps[3]["canary"]["p50Seconds"] == pytest.approx(0.55, rel=0.1)
    assert steps[3]["baseline"]["p99Seconds"] is None
    assert len(document["points"]) > 20


def _seconds(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def test_the_bad_story_tells_failures_latency_and_the_cause() -> None:
    stage = staged(story.rolled_back())
    with serve(telling(story.bad())) as url:
        html = page(stage, "llama-int8", "--prometheus", url)
        result = stage.run("report", "llama-int8", "-o", "json", "--prometheus", url)
    (step,) = json.loads(result.stdout)["steps"]
    assert step["canary"]["p99Seconds"] > 3 * step["baseline"]["p99Seconds"]
    assert step["canary"]["failed"] > 0
    assert step["baseline"]["failed"] == 0
    assert "Rolled back" in html.words
    assert "was taken back in step 1 (10 % of the traffic), 1m 12s after its start" in html.words
    assert "p99: canary 38.46 %, baseline 0.84 %" in html.words
    assert "bar canary" in [value for _, name, value in html.attributes if name == "class"]


def test_the_evidence_of_a_bad_canary_is_drawn_until_its_lower_bound_is_above_zero() -> None:
    stage = staged(story.split(story.rolled_back()))
    common = ("report", "llama-int8", "--tick", "5s")
    with serve(telling(story.bad())) as url:
        result = stage.run(*common, "-o", "json", "--prometheus", url)
        html = page(stage, "llama-int8", "--tick", "5s", "--prometheus", url)
    assert result.stderr == ""
    evidence = json.loads(result.stdout)["evidence"]
    slow = [one for one in evidence if one["signal"] == "latencyP90"]
    assert slow[-1]["verdict"] == "Fail"
    assert slow[-1]["lower"] > 0
    assert slow[0]["lower"] < 0, "and it was not from the first look on"
    assert {one["step"] for one in evidence} == {1}
    assert "Evidence: beyond p90" in html.words
    classes = [value for _, name, value in html.attributes if name == "class"]
    assert "area interval" in classes
    assert "dot bad" in classes
    assert "Evidence: TTFT" not in html.words, "of which nothing was measured"


def test_the_evidence_of_a_good_canary_never_fails(good: story.StoryHistory) -> None:
    stage = staged(story.split(story.promoted()))
    with serve(telling(good)) as url:
        result = stage.run("report", "llama-fp8", "-o", "json", "--tick", "5s", "--prometheus", url)
    evidence = json.loads(result.stdout)["evidence"]
    assert {one["step"] for one in evidence} >= {1, 2, 3}
    assert "Fail" not in {one["verdict"] for one in evidence}
    instants = [one["at"] for one in evidence]
    assert instants == sorted(instants)


def test_a_signal_of_the_users_is_asked_for_and_drawn_like_any_other(
    good: story.StoryHistory,
) -> None:
    raw = story.split(story.promoted())
    errors = {"events": f'{story.TOOL_CALLS}{{outcome="error"}}', "total": story.TOOL_CALLS}
    raw["spec"]["analysis"] = {
        "custom": [{"name": "toolErrors", "ratio": errors, "tolerancePercent": 2}]
    }
    stage = staged(raw)
    common = ("report", "llama-fp8", "--tick", "5s")
    with serve(telling(good)) as url:
        result = stage.run(*common, "-o", "json", "--prometheus", url)
        html = page(stage, "llama-fp8", "--tick", "5s", "--prometheus", url)
    assert result.stderr == ""
    own = [one for one in json.loads(result.stdout)["evidence"] if one["signal"] == "toolErrors"]
    assert own[-1]["verdict"] == "Fail"
    assert own[-1]["lower"] > 0
    assert "Evidence: toolErrors" in html.words


def test_a_status_without_splits_has_no_evidence_over_time(good: story.StoryHistory) -> None:
    with serve(telling(good)) as url:
        result = staged(story.promoted()).run(
            "report", "llama-fp8", "-o", "json", "--prometheus", url
        )
    assert json.loads(result.stdout)["evidence"] == []
    assert result.stderr == ""


def test_the_api_server_carries_the_queries_to_a_service(good: story.StoryHistory) -> None:
    stage = staged(story.promoted())
    stage.answers = telling(good)
    result = stage.run(
        "report", "llama-fp8", "-o", "json", "--prometheus-service", "monitoring/prometheus:web"
    )
    document = json.loads(result.stdout)
    assert document["source"] == "service monitoring/prometheus:web"
    assert document["steps"][0]["canary"]["requests"] > 0
    root = "/api/v1/namespaces/monitoring/services/prometheus:web/proxy/api/v1/query_range"
    assert {path for path, _ in stage.fetched} == {root}


def test_without_prometheus_it_says_so_and_keeps_decisions_and_proof() -> None:
    html = page(staged(made.progressing()), "llama-fp8")
    assert "No Prometheus was named, so there are no plots over time" in html.words
    assert "without Prometheus" in html.words
    assert html.tags.count("svg") == 1
    assert "Step 2/4: canary 25 %." in html.words
    assert "Capacity per byte is 2.00 times the baseline's" in html.words
    assert "3.41 per 100 of 1,203 requests" in html.words
    assert "minRequests: 300" in html.words


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (made.fresh(), "Pending; all of the traffic is on llama."),
        (made.provisioning(), "Provisioning; all of the traffic is on llama."),
        (made.killed(), "Kill switch 2026-11-24T13:59:30Z by alice: garbled"),
        (made.paused(), "Paused 2026-11-24T13:59:30Z by alice: freeze"),
        (made.promoted(), "llama-fp8-pool with its fp8 KV cache took over from llama"),
    ],
)
def test_every_state_has_a_report(raw: dict[str, Any], said: str) -> None:
    assert said in page(staged(raw), "llama-fp8").words


def test_a_beginning_that_the_status_forgot_is_told_and_not_invented() -> None:
    raw = made.progressing()
    raw["status"]["decisions"] = raw["status"]["decisions"][-1:]
    stage = staged(raw)
    html = page(stage, "llama-fp8")
    assert "the attempt began before the first of them" in html.words
    document = json.loads(stage.run("report", "llama-fp8", "-o", "json").stdout)
    # The step in effect is still known, from its own time, and the weight before it is not made up.
    assert document["startedAt"] == raw["status"]["stepStartedAt"]
    (line,) = [path["d"] for path in html.all("path") if path["class"] == "line canary"]
    assert len(set(re.findall(r"[ML][\d.]+ ([\d.]+)", line))) == 1, "a weight that never changed"


def test_what_others_did_in_the_canarys_slot_before_the_attempt_is_not_the_canarys() -> None:
    moments = (story.Moment(-100, "Advance", "StepStarted", 1, 50, "An earlier attempt."),)
    history = story.StoryHistory(
        (*moments, *story.GOOD), story.Behaviour(0.6), story.Behaviour(0.5), "llama-fp8-pool"
    )
    measured = measure(read(staged(story.promoted()).rollout()), history, story.end())
    assert measured.shown.start < story.BEGIN
    assert min(one.span.start for one in measured.canary) >= story.BEGIN - timedelta(seconds=5)
    assert min(one.span.start for one in measured.baseline) < story.BEGIN - timedelta(seconds=5)


def test_a_handful_of_requests_has_no_percentile() -> None:
    sparse = story.StoryHistory(
        story.GOOD, story.Behaviour(0.6), story.Behaviour(0.5), "llama-fp8-pool", rate=0.2
    )
    stage = staged(story.promoted())
    with serve(telling(sparse)) as url:
        result = stage.run("report", "llama-fp8", "-o", "json", "--prometheus", url)
    arms = [s[arm] for s in json.loads(result.stdout)["steps"] for arm in ("baseline", "canary")]
    few = [arm for arm in arms if 0 < arm["requests"] < 10]
    assert few
    assert {arm["p99Seconds"] for arm in few} == {None}
    assert {arm["pageFaultsPer100"] for arm in few} == {None}


def test_only_the_latest_attempt_is_reported() -> None:
    raw = story.promoted()
    old = story.rolled_back()["status"]["decisions"]
    for decision in old:
        decision["at"] = made.before(hours=2)
    raw["status"]["decisions"] = old + raw["status"]["decisions"]
    html = page(staged(raw), "llama-fp8")
    assert "AnalysisFailed" not in html.words
    assert "after 4 steps in 4m" in html.words


def test_decisions_of_several_days_carry_their_dates() -> None:
    raw = made.progressing()
    raw["status"]["decisions"][0]["at"] = made.before(days=2)
    assert "2026-11-22 14:00:00" in page(staged(raw), "llama-fp8").words


# Copied requests.


def test_a_rollout_that_copied_nothing_has_no_section_about_it() -> None:
    assert "copied requests" not in page(staged(made.progressing()), "llama-fp8").words
    assert "copied requests" not in page(staged(made.shadowing()), "llama-fp8").words


def test_copied_requests_have_a_table_an_interval_for_each_signal_and_their_coverage() -> None:
    html = page(staged(made.condemned_by_answers()), "llama-fp8")
    for part in (
        "Fail citations: +10.5 per 100 more answers that lost citations",
        "380 pairs (200 asked for), 60 more of the baseline alone",
        "37 personal values replaced",
        "Copies not compared: queue 5, size 2.",
        "Not covered: not evaluated for want of pairs: 1MiB+ (0 pairs, 31 requests).",
        "citations Fail 380 +0.0 per 100 +10.5 per 100 +2.0 per 100 +1.7 per 100 +10.6 per 100",
        "300 of 6,000 compared",
        "not evaluated (0 of 31)",
    ):
        assert part in html.words
    # Weight, intervals, coverage.
    assert html.tags.count("svg") == 3
    limit = next(a for a in html.all("line") if a.get("class") == "limit")
    spans = [a for a in html.all("line") if a.get("class", "").startswith("span") and _lies(a)]
    assert len(spans) == 9
    bad = [a for a in spans if "bad" in a["class"]]
    assert len(bad) == 1
    assert float(bad[0]["x1"]) > float(limit["x1"]), "it failed: all of it lies beyond"
    assert all(float(a["x2"]) < float(limit["x1"]) for a in spans if "good" in a["class"])
    assert len(html.all("polygon")) == 1, "the canary's harm goes on beyond the plot"


def _lies(line: dict[str, str]) -> bool:
    return line["y1"] == line["y2"]


def test_an_interval_is_drawn_where_its_numbers_say() -> None:
    html = page(staged(made.shadowing(made.answers(300, 80))), "llama-fp8")
    zero, limit = (
        float(next(a for a in html.all("line") if a.get("class") == name)["x1"])
        for name in ("zero", "limit")
    )
    circles = [a for a in html.all("circle") if a.get("class", "").startswith("middle")]
    assert len(circles) == 9
    for circle in circles:
        # Nothing differs: in logarithms, too, which is how perplexities are subtracted.
        assert abs(float(circle["cx"]) - zero) < 0.03 * (limit - zero)


@pytest.mark.parametrize("odd", ["", "much", "nan %", "inf per 100", "+1e999 %", "-100 %"])
def test_numbers_that_are_none_are_not_drawn(odd: str) -> None:
    report = made.answers(300)
    for signal in report["signals"]:
        signal["lower"] = odd
    html = page(staged(made.shadowing(report)), "llama-fp8")
    drawn = [a for a in html.all("line") if a.get("class", "").startswith("span") and _lies(a)]
    assert len(drawn) == (8 if odd == "-100 %" else 0), "a share may be -100, a logarithm not"


def test_requests_that_the_routers_do_not_count_are_left_out_and_not_drawn_as_none() -> None:
    report = made.answers(300)
    for bucket in report["buckets"]:
        del bucket["live"]
    html = page(staged(made.shadowing(report)), "llama-fp8")
    bars = [a["class"] for a in html.all("rect") if a.get("class", "").startswith("bar")]
    assert bars == ["bar canary"] * 2
    assert "300 compared" in html.words


def test_words_of_the_shadow_service_never_become_markup() -> None:
    report = made.answers(300)
    report["buckets"][0]["bucket"] = report["dropped"][0]["reason"] = "<script>alert(1)</script>"
    report["signals"][0]["message"] = "<script>alert(2)</script>"
    html = page(staged(made.shadowing(report)), "llama-fp8")
    assert "script" not in html.tags
