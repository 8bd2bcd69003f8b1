"""The arms of a rollout: their pods, asked through the API server's proxy."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast

from kvquant import errors
from kvquant.api import names
from kvquant.cli.errors import Failure
from kvquant.cli.rollouts import Seen
from kvquant.cli.session import Proxied, Session
from kvquant.core.manifests import engine_container, target_selector
from kvquant.core.shadow_settings import MARK_HEADER
from kvquant.engines import vllm
from kvquant.evaluation.arms import LOOK_SECONDS, Arm, ArmError, Fixed
from kvquant.ports import Object
from kvquant.shadow import throttle
from kvquant.shadow.replaying import Replayer, Reply, failed, read
from kvquant.shadow.throttle import SCRAPE_WITHIN, Load

T = TypeVar("T")


def arms(session: Session, seen: Seen, models: tuple[str | None, str | None]) -> tuple[Arm, Arm]:
    """Return baseline and canary of a rollout: their ready pods, behind the proxy.

    Args:
        session: The call.
        seen: The rollout.
        models: Names of the model at either.

    Raises:
        Failure: An arm has no pods that could be asked.
        errors.ClusterError: The API server does not tell.
    """
    baseline, canary = seen.status.baseline, seen.status.canary
    if baseline is None or canary is None:
        raise Failure(
            f"{seen.namespace}/{seen.name} is {seen.status.phase.value} and has no two pools yet: "
            "name the arms by --baseline and --canary"
        )
    made = {names.LABEL_POOL: canary.deployment}
    return (
        _arm(session, seen, "baseline", baseline.deployment, None, models[0]),
        _arm(session, seen, "canary", canary.deployment, made, models[1]),
    )


def _arm(
    session: Session,
    seen: Seen,
    name: str,
    pool: str,
    selector: Mapping[str, str] | None,
    model: str | None,
) -> Arm:
    deployment = session.cluster.get("Deployment", seen.namespace, pool)
    if deployment is None:
        raise Failure(f"the {name}'s Deployment {seen.namespace}/{pool} is gone")
    spec = deployment["spec"]["template"]["spec"]
    engine = seen.spec.engine.container
    port = vllm.port_of(spec["containers"][engine_container(deployment, engine)])
    pods = session.cluster.list("Pod", seen.namespace, selector or target_selector(deployment))
    urls = tuple(
        f"/api/v1/namespaces/{seen.namespace}/pods/{pod}:{port}/proxy" for pod in _ready(pods)
    )
    if not urls:
        raise Failure(
            f"the {name} has no ready pod now (Deployment {seen.namespace}/{pool}). See what it "
            f"waits for: {session.command('status', seen.name, seen.namespace)}"
        )
    return Arm(name, f"{pool} in {seen.namespace}", model, Fixed(urls))


def _ready(pods: list[Object]) -> Iterator[str]:
    for pod in pods:
        conditions = pod.get("status", {}).get("conditions") or ()
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        if ready and not pod["metadata"].get("deletionTimestamp"):
            yield pod["metadata"]["name"]


class ProxiedReplayer(Replayer):
    """Asks pods through the API server, whose client blocks: in threads."""

    def __init__(self, proxied: Proxied, patience: float) -> None:
        """Make one.

        Args:
            proxied: Sends a request through the API server.
            patience: Seconds to wait for an answer at most.
        """
        self._proxied, self._patience = proxied, patience
        self._clock = time.monotonic

    async def get(self, pod: str, path: str) -> Reply:
        """Read something from a pod."""
        return await self._reply("GET", pod + path, None, LOOK_SECONDS)

    async def post(self, pod: str, path: str, data: bytes) -> Reply:
        """Send a request to a pod."""
        return await self._reply("POST", pod + path, json.loads(data), self._patience)

    async def load(self, pod: str) -> Load | None:
        """Return how busy a pod is; None: it does not tell."""
        try:
            status, text = await self._through("GET", f"{pod}/metrics", None, SCRAPE_WITHIN)
        except ConnectionError:
            return None
        return throttle.read(text) if status == 200 else None

    async def _through(
        self, method: str, path: str, body: Mapping[str, Any] | None, patience: float
    ) -> tuple[int, str]:
        def send() -> tuple[int, str]:
            return self._proxied(method, path, body, {MARK_HEADER: "1"}, patience)

        try:
            return await _in_thread(send)
        except errors.Unavailable as error:
            raise ConnectionError(str(error)) from None

    async def _reply(
        self, method: str, path: str, body: Mapping[str, Any] | None, patience: float
    ) -> Reply:
        status, text = await self._through(method, path, body, patience)
        if status == 200:
            return read(text)
        if (said := _of_the_server(text)) is not None:
            if status in (401, 403):
                raise ArmError(
                    f"{said}. Ask for the right to get and create pods/proxy there (docs/cli.md), "
                    "or forward the ports and name the arms by --baseline and --canary"
                )
            raise ConnectionError(said)
        return failed(status)


async def _in_thread(work: Callable[[], T]) -> T:
    """Return what a blocking call returns.

    In a thread that nobody waits for at the end of the program, as an executor's are: an engine
    that hangs would hold the user's prompt for minutes after the verdict.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(cast("T", result))
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        # The loop may be closed by now: then nobody waits for it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="proxied", daemon=True).start()
    return await future


def _of_the_server(text: str) -> str | None:
    """Return what the API server itself has to say; None: the pod has answered."""
    try:
        document = json.loads(text)
        if document["kind"] == "Status" and document["apiVersion"] == "v1":
            return str(document.get("message") or "the API server does not say why")
    except (ValueError, KeyError, TypeError):
        pass
    return None
