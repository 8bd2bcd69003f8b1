"""The demo's client, its table, and its search for what was planted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, cast

import pytest
import pytest_asyncio
from aiohttp import web

from kvdemo import traces
from kvdemo.load import Load, Outcome, Recipe, percentile
from kvdemo.search import Finding, Search, compared
from kvdemo.table import render, rows
from kvdemo.watch import Stage, Watch
from kvlocal.problems import LocalError
from kvquant.adapters.connection import Connection
from kvquant.api.v1alpha1 import Phase, Status
from tests.waiting import wait_until


class Server:
    """Answers as an engine does, or as a test says."""

    def __init__(self) -> None:
        self.broken = False
        self.url = ""

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(text="kvquant_up 1\n")

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.broken:
            return web.Response(status=503, text="no healthy upstream")
        if not body["stream"]:
            return web.json_response({"system_fingerprint": "kvq-abc", "choices": []})
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f"data: {json.dumps({'system_fingerprint': 'vllm-0'})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    app = web.Application()
    app.add_routes(
        [web.post("/v1/completions", server.complete), web.get("/metrics", server.metrics)]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


async def _collect(load: Load, count: int) -> list[Outcome]:
    load.start()
    await asyncio.to_thread(
        wait_until, lambda: len(load.outcomes) >= count, 20, "requests should end"
    )
    await asyncio.to_thread(load.stop)
    return load.outcomes


async def test_answers_and_the_pool_they_came_from_are_counted(server: Server) -> None:
    outcomes = await _collect(Load(server.url, Recipe(rate=200)), 40)
    assert not [o for o in outcomes if o.problem]
    assert {o.fingerprint for o in outcomes} == {"kvq-abc", "vllm-0"}
    assert {o.from_canary for o in outcomes} == {True, False}


async def test_errors_are_outcomes_with_their_cause(server: Server) -> None:
    server.broken = True
    outcomes = await _collect(Load(server.url, Recipe(rate=200)), 5)
    assert all("HTTP 503: no healthy upstream" in o.problem for o in outcomes)


async def test_a_server_that_is_not_there_is_an_outcome_too() -> None:
    outcomes = await _collect(Load("http://127.0.0.1:9", Recipe(rate=200)), 5)
    assert all("Connect" in o.problem for o in outcomes)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.99, None), ([1.0], 0.99, 1.0), (range(100), 0.5, 50), (range(100), 0.99, 99)],
)
def test_percentiles(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected


def test_a_request_counts_in_the_stage_in_which_it_was_sent() -> None:
    stages = [Stage(0, "a", "step 1/2", 10, "kvq-1"), Stage(10, "a", "step 2/2", 100, "kvq-1")]
    outcomes = [
        Outcome(1, 30.0, "", "kvq-of-an-earlier-rollout"),
        Outcome(9.9, 0.1, "HTTP 500"),
        Outcome(10, 0.2, "", "kvq-1"),
        Outcome(11, 0.2, "", "kvq-1"),
    ]
    first, second = rows(stages, outcomes)
    assert first[2:] == ("10 %", "0 %", "2", "0 %", "1", "30.00 s", "30.00 s")
    assert second[2:7] == ("100 %", "0 %", "2", "100 %", "0")
    text = render([first, second])
    assert len({len(line) for line in text.splitlines()}) == 1


def test_shadowing_comes_first_in_the_table_with_the_share_that_is_copied() -> None:
    stages = [
        Stage(0, "a", "Shadowing", 0, "kvq-1", mirror=20),
        Stage(5, "a", "step 1/2", 10, "kvq-1"),
    ]
    first, second = rows(stages, [Outcome(1, 0.1), Outcome(6, 0.1)])
    assert first[1:5] == ("Shadowing", "0 %", "20 %", "1")
    assert second[1:5] == ("step 1/2", "10 %", "0 %", "1")


# The search for what was planted. It has to be able to fail.


@pytest.mark.parametrize(
    "written",
    [
        f"prompt: {traces.MAIL}!",
        traces.MAIL.upper(),
        traces.MAIL.replace("@", "%40"),
        traces.CARD,
        traces.CARD.replace(" ", ""),
        traces.CARD.replace(" ", "-"),
        json.dumps({"message": f"x {traces.CARD}"}),
    ],
)
def test_a_planted_value_is_found_however_it_is_written(written: str) -> None:
    assert set(traces.leaks({"log": f"a {written} b", "events": "{}"})) == {"log"}


def test_what_stands_in_the_place_of_a_value_is_no_leak() -> None:
    text = "please answer to <EMAIL_3f9a07bc> as before, my card is <CARD_3f9a07bc>"
    assert traces.leaks({traces.PAIRS: text}) == {}


def test_the_planted_sentences_hold_what_is_searched_for() -> None:
    assert set(traces.leaks({"prompts": " ".join(traces.SENTENCES)})) == {"prompts"}
    assert all(traces.leaks({"one": sentence}) for sentence in traces.SENTENCES)


STRIPPED = {traces.PAIRS: '{"prompt": "<EMAIL_3f9a07bc> <CARD_3f9a07bc>"}', "events": "{}"}


def shadowed(canary: str = "llama-fp8-pool", pairs: int = 412, mirror: int = 0) -> Status:
    return Status.model_validate(
        {
            "phase": "Progressing",
            "phaseStartedAt": "2026-11-26T11:50:00Z",
            "stepStartedAt": "2026-11-26T11:50:00Z",
            "step": 1,
            "router": "llama-router",
            "resolvedDtype": "fp8",
            "baseline": {"deployment": "llama", "slot": "blue", "dtype": "auto", "replicas": 1},
            "canary": {"deployment": canary, "slot": "green", "dtype": "fp8", "replicas": 1},
            "weights": {"baseline": 90, "canary": 10, "mirror": mirror},
            "shadow": {
                "at": "2026-11-26T12:00:00Z",
                "verdict": "Pass",
                "message": "As good.",
                "pairs": pairs,
                "replaced": 37,
            },
        }
    )


def searched(texts: Mapping[str, str], status: Status) -> Search:
    search = Search(lambda: texts)
    search.once_compared(status)
    return search


def test_nothing_planted_anywhere_is_good_and_says_how_much_was_searched() -> None:
    finding = searched(STRIPPED, shadowed()).verdict()
    assert finding.good, finding.text
    assert "the planted e-mail and card appear nowhere" in finding.text
    assert "(2 places" in finding.text


def test_a_planted_value_names_the_place_where_it_is() -> None:
    finding = searched({**STRIPPED, "events": traces.MAIL}, shadowed()).verdict()
    assert not finding.good
    assert finding.text.endswith("appear in events")


@pytest.mark.parametrize("lacking", ["<EMAIL_", "<CARD_"])
def test_a_log_without_placeholders_proves_nothing(lacking: str) -> None:
    texts = {place: text.replace(lacking, "<OTHER_") for place, text in STRIPPED.items()}
    finding = searched(texts, shadowed()).verdict()
    assert not finding.good
    assert lacking in finding.text


@pytest.mark.parametrize("status", [shadowed(pairs=0), shadowed(mirror=20), Status()])
def test_before_the_copies_are_compared_nothing_is_searched_and_nothing_claimed(
    status: Status,
) -> None:
    search = searched(STRIPPED, status)
    assert search.places == set()
    assert not search.verdict().good


def test_places_that_cannot_be_read_are_tried_again_and_no_proof_until_then() -> None:
    answers: list[Any] = [LocalError("no running pod"), STRIPPED, LocalError("gone")]

    def collect() -> Mapping[str, str]:
        answer = answers.pop(0)
        if isinstance(answer, LocalError):
            raise answer
        return dict(answer)

    search = Search(collect)
    search.once_compared(shadowed())
    assert "could not be searched for: no running pod" in search.verdict().text
    search.once_compared(shadowed())
    assert search.verdict().good
    search.once_compared(shadowed())
    assert len(answers) == 1, "each rollout is searched once"
    search.once_compared(shadowed("llama-int8-pool"))
    assert not search.verdict().good, "the second one was not searched"


def test_how_many_pairs_were_compared_is_told() -> None:
    assert compared("llama-fp8", shadowed()) == Finding(
        True,
        "llama-fp8: 412 pairs of answers compared before any user met the canary, "
        "37 personal values replaced",
    )
    assert not compared("llama-fp8", Status()).good
    assert not compared("llama-fp8", shadowed(pairs=0)).good


class Cluster:
    """Answers what kubectl is asked; each pod has metrics at the test's server."""

    def __init__(self, port: int, *names: str) -> None:
        self.asked: list[tuple[str, ...]] = []
        self._pods = [
            {
                "metadata": {
                    "name": f"{name}-0",
                    "namespace": "kvquant-system" if name == traces.OPERATOR else "inference",
                    "labels": {"app.kubernetes.io/name": name},
                    "annotations": {"prometheus.io/port": str(port)},
                },
                "status": {"phase": "Running", "podIP": "127.0.0.1"},
            }
            for name in names
        ]

    def kubectl(self, *arguments: str) -> str:
        self.asked.append(arguments)
        if arguments[:2] == ("get", "pods"):
            return json.dumps({"items": self._pods})
        if arguments[0] == "logs":
            return f"log of {arguments[1]}\n"
        if arguments[0] == "exec":
            return STRIPPED[traces.PAIRS]
        return "{}"


async def test_every_place_is_read(server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    cluster = Cluster(port, traces.OPERATOR, traces.ROUTER, traces.SHADOW)
    texts = await asyncio.to_thread(traces.collect, cluster, "inference")
    assert set(texts) == {
        *(f"log of {name}" for name in (traces.OPERATOR, traces.ROUTER, traces.SHADOW)),
        *(f"metrics of {name}" for name in (traces.OPERATOR, traces.ROUTER, traces.SHADOW)),
        *(traces.PAIRS, "events", "configmaps", "kvqr", "events of the operator"),
    }
    assert texts[f"metrics of {traces.SHADOW}"] == "kvquant_up 1\n"
    assert texts[f"log of {traces.SHADOW}"] == "log of kvquant-shadow-0\n"


async def test_a_shadow_service_that_is_gone_is_told_and_not_taken_for_silence(
    server: Server,
) -> None:
    cluster = Cluster(int(server.url.rsplit(":", 1)[1]), traces.OPERATOR, traces.ROUTER)
    with pytest.raises(LocalError, match="no running pod of kvquant-shadow"):
        await asyncio.to_thread(traces.collect, cluster, "inference")
    texts = await asyncio.to_thread(traces.collect, cluster, "inference", copied=False)
    assert traces.PAIRS not in texts


def test_metrics_that_do_not_answer_are_told() -> None:
    cluster = Cluster(9, traces.OPERATOR, traces.ROUTER, traces.SHADOW)
    with pytest.raises(LocalError, match="cannot be read"):
        traces.collect(cluster, "inference")


class Statuses:
    """A connection that tells one status after the other, and then the last one again."""

    def __init__(self, *statuses: Status) -> None:
        self._left = [*statuses]

    def expect(self, *_: Any, **__: Any) -> dict[str, Any]:
        status = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return {
            "metadata": {"name": "llama-fp8", "namespace": "inference", "uid": "u-1"},
            "spec": {
                "targetRef": {"name": "llama"},
                "kvCache": {"dtype": "fp8"},
                "traffic": {"router": {}},
            },
            "status": status.model_dump(mode="json", by_alias=True),
        }


def test_what_is_compared_is_told_as_it_happens_and_each_hook_sees_every_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    copied = shadowed(pairs=40, mirror=20).model_copy(update={"phase": Phase.SHADOWING})
    over = shadowed().model_copy(update={"settled": True})
    watch = Watch(cast("Connection", Statuses(copied, copied, over)))
    seen: list[list[int]] = [[], []]

    def hook(number: int) -> Callable[[Status], None]:
        return lambda status: seen[number].append(status.weights.mirror)

    status = watch.until("llama-fp8", lambda s: s.settled, 20, hook(0), hook(1))
    assert status.settled
    assert seen[0] == seen[1] == [20, 20, 0]
    told = capsys.readouterr().out
    assert told.count("copies: ") == 2, "the same is told once"
    assert "copies: 40 pairs compared, 37 values replaced: Pass" in told
    assert "copies: 412 pairs compared" in told
    first = watch.stages[0]
    assert (first.label, first.mirror) == ("Shadowing", 20)
    assert watch.stages[-1].mirror == 0
