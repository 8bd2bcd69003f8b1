"""The two arms: where they are, which models they serve, and how they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp

from kvquant.core.shadow_settings import ArmSettings
from kvquant.shadow.pods import Pods
from kvquant.shadow.replaying import RESET, Replayer, Reply

TRIES = 3
"""Times that a request is sent whose connection breaks. What an engine answers stands."""
PAUSE = 0.5
"""Seconds before the second try; twice that before the third."""
REFRESH_SECONDS = 2.0
LOOK_SECONDS = 5.0


class ArmError(Exception):
    """An arm that cannot be asked, in a sentence with its remedy."""


@dataclass(slots=True)
class Fixed:
    """Base URLs that stay, asked in turn."""

    urls: tuple[str, ...]
    _turn: int = 0

    def pick(self, avoid: Collection[str] = ()) -> str | None:
        """Return the one whose turn it is, one to avoid only without others."""
        self._turn += 1
        turns = [self.urls[(self._turn + n) % len(self.urls)] for n in range(len(self.urls))]
        return next((url for url in turns if url not in avoid), turns[0])


@dataclass(slots=True)
class Arm:
    """An arm.

    Attributes:
        name: `baseline` or `canary`.
        place: Its base URL, or host and port as the user wrote them.
        model: Name of the model there; None: as it stands in each example.
        choice: The addresses to ask.
        served: Models that it says it serves; empty: it does not say.
    """

    name: str
    place: str
    model: str | None
    choice: Fixed | Pods
    served: tuple[str, ...] = field(default=())

    async def refresh(self) -> None:
        """Look up the addresses of a name that stands for several pods."""
        if isinstance(self.choice, Pods):
            await self.choice.refresh()

    def model_of(self, body_model: object) -> str | None:
        """Return what to ask for in place of an example's model; None: leave it."""
        if self.model is not None:
            return self.model
        return self.served[0] if body_model is None and self.served else None


def arm(name: str, place: str, model: str | None = None) -> Arm:
    """Return an arm.

    Args:
        name: `baseline` or `canary`.
        place: A base URL, which is asked as it stands, or HOST:PORT, all of whose addresses are
            asked in turn: the headless Service of a pool.
        model: Name of the model there.

    Raises:
        ArmError: The place is neither.
    """
    try:
        parts = urlsplit(place if "://" in place else f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if "://" not in place and host and port and not parts.path:
        settings = ArmSettings(host=host, port=port, deployment=name, dtype="")
        return Arm(name, place, model, Pods(settings))
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.username:
        raise ArmError(
            f"{place!r}: write a base URL such as http://localhost:8000, or HOST:PORT, without "
            "credentials"
        )
    return Arm(name, place, model, Fixed((place.rstrip("/").removesuffix("/v1"),)))


async def reach(arm: Arm, replayer: Replayer, patience: float) -> None:
    """Wait until an arm answers, and note which models it serves.

    Args:
        arm: The arm.
        replayer: Asks it.
        patience: Seconds to wait at most.

    Raises:
        ArmError: It does not answer, or not to us.
    """
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + patience, PAUSE
    while True:
        await arm.refresh()
        try:
            arm.served = await _served(arm, replayer)
        except (OSError, aiohttp.ClientError, ValueError) as error:
            # A TimeoutError is an OSError, and says nothing.
            why = str(error) or f"no answer within {LOOK_SECONDS:g} s"
        else:
            return
        if loop.time() + pause >= until:
            raise ArmError(f"the {arm.name} at {arm.place} does not answer: {why}")
        await asyncio.sleep(pause)
        pause = min(5.0, 2 * pause)


async def _served(arm: Arm, replayer: Replayer) -> tuple[str, ...]:
    url = arm.choice.pick()
    if url is None:
        raise OSError("its name has no address")
    async with asyncio.timeout(LOOK_SECONDS):
        reply = await replayer.get(url, "/v1/models")
    if reply.status in (401, 403):
        raise ArmError(
            f"the {arm.name} at {arm.place} asks for an API key (HTTP {reply.status}): put it "
            "into a file that KVQUANT_SHADOW_ENGINE_KEY_FILE names"
        )
    if reply.status >= 500:
        raise ValueError(f"HTTP {reply.status}")
    try:
        names = [model["id"] for model in reply.document["data"]]
    except (KeyError, TypeError):
        return ()
    return tuple(name for name in names if isinstance(name, str))


async def ask(
    replayer: Replayer,
    arm: Arm,
    path: str,
    sent: bytes,
    deadline: float,
    *,
    avoid: str = "",
    pod: str = "",
    tries: int = TRIES,
) -> Reply:
    """Ask an arm; again where the connection breaks, and nowhere else.

    Args:
        replayer: Sends the request.
        arm: The arm.
        path: Endpoint.
        sent: The request.
        deadline: When to stop waiting, on the loop's clock.
        avoid: A pod that should not be asked if there is another.
        pod: The pod to ask; empty: the one whose turn it is.
        tries: Times that it is asked at most.
    """
    loop, pause = asyncio.get_running_loop(), PAUSE
    reply = await replayer.ask(arm.choice, path, sent, deadline, avoid=avoid, pod=pod)
    for _ in range(tries - 1):
        if reply.failure != RESET or loop.time() + pause >= deadline:
            break
        await asyncio.sleep(pause)
        pause *= 2
        # The pod may be gone for good: whoever has its place is asked.
        reply = await replayer.ask(arm.choice, path, sent, deadline, avoid=avoid)
    return reply
