"""What becomes of one request: streams, slow answers, retries, large bodies, nothing leaked."""

from __future__ import annotations

import asyncio
import io
from datetime import timedelta
from functools import partial

import pytest

from kvquant.core.envoy_upstreams import Upstream
from tests.router.conftest import Stage
from tests.router.harness import Envoy, eventually, free_port

pytestmark = pytest.mark.usefixtures("driven")


async def test_the_first_event_of_a_stream_passes_before_the_engine_has_ended(
    stage: Stage,
) -> None:
    envoy = await stage.start()
    async with envoy.session.post(envoy.url + "/stream") as answer:
        # The engine sends the second event only once the first has arrived here.
        assert await answer.content.readline() == b"data: first\n"
        stage.engines["blue-0"].release.set()
        assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")


async def test_a_silent_answer_is_cut_by_the_request_timeout_only(stage: Stage) -> None:
    envoy = await stage.start(request_timeout=timedelta(seconds=4))
    engine = stage.engines["blue-0"]
    silent = asyncio.create_task(envoy.ask("/hold"))
    streaming = await envoy.session.post(envoy.url + "/stream")
    await streaming.content.readline()
    # Longer than any idle time-out of ours (3 s for upstream connections), within the request's.
    await asyncio.wait([silent], timeout=3.5)
    assert not silent.done()
    engine.release.set()
    assert await silent == (200, "blue-0")
    assert b"[DONE]" in await streaming.read()


async def test_a_refused_connection_is_tried_on_another_pod(stage: Stage) -> None:
    other = await stage.add_engine("blue", 1)
    envoy = await stage.start()
    await eventually(lambda: _all_answer(envoy, {"blue-0", "blue-1"}), 5, "both should serve")
    await stage.engines["blue-0"].stop()
    # At once, before health checks can have noticed.
    answers = await envoy.split(60)
    assert answers == {"blue-1": 60}
    assert other.served["/v1/completions"] >= 60
    retried = (await envoy.metrics())['envoy_cluster_upstream_rq_retry{envoy_cluster_name="blue"}']
    assert retried > 0


async def _all_answer(envoy: Envoy, names: set[str]) -> bool:
    return set(await envoy.split(20)) == names


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
async def test_an_error_of_the_engine_is_passed_on_and_not_retried(
    stage: Stage, status: int
) -> None:
    envoy = await stage.start()
    assert await envoy.ask(f"/status/{status}") == (status, "blue-0")
    assert stage.engines["blue-0"].served[f"/status/{status}"] == 1


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_request_that_an_engine_has_seen_is_not_sent_again(
    stage: Stage, method: str
) -> None:
    await stage.add_engine("blue", 1)
    envoy = await stage.start()
    status, _ = await envoy.ask("/die", method=method, data=b"a prompt")
    assert status == 503
    assert sum(engine.served["/die"] for engine in stage.engines.values()) == 1


async def test_clients_cannot_steer_the_router_by_headers(stage: Stage) -> None:
    envoy = await stage.start()
    steering = {
        "x-envoy-retry-on": "5xx",
        "x-envoy-max-retries": "9",
        "x-envoy-upstream-rq-timeout-ms": "1",
    }
    assert (await envoy.ask("/status/500", headers=steering))[0] == 500
    assert stage.engines["blue-0"].served["/status/500"] == 1
    held = asyncio.create_task(envoy.ask("/hold", headers=steering))
    await eventually(lambda: stage.engines["blue-0"].served["/hold"], 5, "the engine should see it")
    await asyncio.wait([held], timeout=0.2)
    stage.engines["blue-0"].release.set()
    assert (await held)[0] == 200


async def test_a_prompt_of_20_mib_passes(stage: Stage) -> None:
    envoy = await stage.start()
    size = 20 * 1024 * 1024
    assert (await envoy.ask(data=io.BytesIO(b"a" * size)))[0] == 200
    assert stage.engines["blue-0"].bodies == [size]


async def test_an_answer_does_not_tell_which_arm_gave_it(stage: Stage) -> None:
    envoy = await stage.start()
    async with envoy.session.post(envoy.url + "/status/200") as answer:
        through = {name.lower() for name in answer.headers}
    engine = stage.engines["blue-0"]
    async with envoy.session.post(f"http://{engine.host}:{engine.port}/status/200") as answer:
        direct = {name.lower() for name in answer.headers}
        server = answer.headers["server"]
    assert through == direct
    async with envoy.session.post(envoy.url + "/status/200") as answer:
        assert answer.headers["server"] == server


async def test_a_request_id_is_kept_and_nothing_else_is_added(stage: Stage) -> None:
    envoy = await stage.start()
    await envoy.ask(headers={"x-request-id": "my-own-id", "x-other": "kept"})
    (seen,) = stage.engines["blue-0"].headers
    lower = {name.lower(): value for name, value in seen.items()}
    assert lower["x-request-id"] == "my-own-id"
    assert lower["x-other"] == "kept"
    assert lower["host"] == f"127.0.0.1:{envoy.bootstrap.port}"
    assert "x-forwarded-for" not in lower
    assert {name for name in lower if name.startswith("x-envoy")} == set()


async def test_failures_are_logged_without_query_or_prompt(stage: Stage) -> None:
    envoy = await stage.start()
    await envoy.ask("/fine?key=secret")
    await envoy.ask("/status/500?key=secret", data=b"a prompt")
    await eventually(lambda: '"path":"/status/500"' in envoy.log, 15, "the failure in the log")
    assert "/fine" not in envoy.log
    assert "secret" not in envoy.log
    assert "a prompt" not in envoy.log


async def test_idle_connections_are_closed_before_the_engine_would(stage: Stage) -> None:
    envoy = await stage.start()
    await envoy.ask()
    series = 'envoy_cluster_upstream_cx_active{envoy_cluster_name="blue"}'

    async def none_open() -> bool:
        return (await envoy.metrics())[series] == 0

    # vLLM's server closes idle connections after 5 s.
    await eventually(none_open, 4.5, "idle connections should be closed")


async def test_only_metrics_and_readiness_are_shown_outside(stage: Stage) -> None:
    envoy = await stage.start()
    for path in ("/stats/prometheus", "/ready"):
        async with envoy.session.get(envoy.stats_url + path) as answer:
            assert answer.status == 200
    refused = [
        *("/", "/stats", "/config_dump", "/clusters", "/runtime", "/server_info", "/help"),
        *("/stats/prometheus/..", "/ready/../config_dump", "//config_dump", "/stats/prometheus;x"),
    ]
    for path in refused:
        async with envoy.session.get(envoy.stats_url + path) as answer:
            assert answer.status == 404, path
    for path in ("/quitquitquit", "/healthcheck/fail", "/drain_listeners", "/ready"):
        async with envoy.session.post(envoy.stats_url + path) as answer:
            assert answer.status == 404, path


async def test_a_pool_without_a_healthy_pod_gets_no_request(stage: Stage) -> None:
    engine = stage.engines["blue-0"]
    engine.healthy = False
    envoy = await stage.start()
    assert (await envoy.ask())[0] == 503
    assert engine.served["/v1/completions"] == 0
    engine.healthy = True
    await eventually(lambda: _all_answer(envoy, {"blue-0"}), 10, "the healthy pod should serve")


async def test_a_pod_that_leaves_its_service_gets_no_new_request(stage: Stage) -> None:
    await stage.add_engine("blue", 1)
    envoy = await stage.start()
    await eventually(lambda: _all_answer(envoy, {"blue-0", "blue-1"}), 5, "both should serve")
    held = [asyncio.create_task(envoy.ask("/hold")) for _ in range(2)]
    await eventually(lambda: stage.engines["blue-0"].served["/hold"], 5, "one request in flight")
    stage.dns.records["blue.test"] = ["127.0.0.2"]
    await eventually(lambda: _all_answer(envoy, {"blue-1"}), 5, "blue-0 should be left alone")
    # It is healthy, and what it had begun may end.
    for name in ("blue-0", "blue-1"):
        stage.engines[name].release.set()
    assert [status for status, _ in await asyncio.gather(*held)] == [200, 200]


async def test_pods_are_kept_while_dns_is_broken(stage: Stage) -> None:
    envoy = await stage.start()
    series = 'envoy_cluster_update_failure{envoy_cluster_name="blue"}'
    stage.dns.broken = True

    async def failed() -> bool:
        return (await envoy.metrics()).get(series, 0) > 0

    await eventually(failed, 12, "a look-up should fail")
    assert set(await envoy.split(40)) == {"blue-0"}


async def test_requests_go_to_the_pod_with_the_fewest_in_flight(stage: Stage) -> None:
    await stage.add_engine("blue", 1)
    envoy = await stage.start()
    await eventually(lambda: _all_answer(envoy, {"blue-0", "blue-1"}), 5, "both should serve")
    held = []
    for count in range(1, 21):
        held.append(asyncio.create_task(envoy.ask("/hold")))
        await eventually(partial(_holds, stage, count), 5, "the request should arrive")
    # 1 draw in 32 sees one pod only; by chance alone, 20 requests would often split 13 to 7.
    assert abs(stage.engines["blue-0"].served["/hold"] - 10) <= 2
    for engine in stage.engines.values():
        engine.release.set()
    await asyncio.gather(*held)


def _holds(stage: Stage, count: int) -> bool:
    return sum(engine.served["/hold"] for engine in stage.engines.values()) == count


async def test_a_slot_may_be_empty(stage: Stage) -> None:
    slots = dict(stage.bootstrap.slots)
    slots["green"] = Upstream("nobody.test", free_port())
    envoy = await stage.start(slots=slots)
    assert set(await envoy.split(40)) == {"blue-0"}
