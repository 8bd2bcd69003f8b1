"""The pods of an arm: every address of its headless Service, one after the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from kvquant.core.shadow_settings import ArmSettings

REFRESH_SECONDS = 1.0
RESOLVE_WITHIN = 5.0

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Returns the addresses of a host. It raises OSError when it cannot tell."""


async def resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a host, sorted; none: the name has none.

    Raises:
        OSError: The name service does not answer.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return []
        raise
    return sorted({str(address[4][0]) for address in found})


class Choice(Protocol):
    """Where an arm can be asked."""

    def pick(self, avoid: Collection[str] = ()) -> str | None:
        """Return the base URL to ask next, one to avoid only without others; None: none."""


class Pods:
    """The addresses of an arm's pods, kept fresh."""

    def __init__(self, arm: ArmSettings, resolve: Resolve = resolve) -> None:
        """Make an arm of which no pod is known yet."""
        self._arm, self._resolve = arm, resolve
        self._addresses: tuple[str, ...] = ()
        self._turn = 0

    async def refresh(self) -> None:
        """Ask for the addresses. While the name service does not answer, those of before stay."""
        try:
            async with asyncio.timeout(RESOLVE_WITHIN):
                self._addresses = tuple(await self._resolve(self._arm.host, self._arm.port))
        except OSError:  # a TimeoutError is one, too
            return

    @property
    def urls(self) -> tuple[str, ...]:
        """The base URL of each pod."""
        return tuple(map(self._url, self._addresses))

    def only(self, url: str) -> Pods:
        """Return the arm as if it had no other pod than this one."""
        alone = Pods(self._arm, self._resolve)
        alone._addresses = tuple(one for one in self._addresses if self._url(one) == url)
        return alone

    def pick(self, avoid: Collection[str] = ()) -> str | None:
        """Return the base URL of the pod whose turn it is; None: there is no pod.

        Args:
            avoid: Pods that are not taken unless there are no others.
        """
        urls = self.urls
        if not urls:
            return None
        self._turn += 1
        turns = [urls[(self._turn + offset) % len(urls)] for offset in range(len(urls))]
        return next((url for url in turns if url not in avoid), turns[0])

    def _url(self, address: str) -> str:
        host = f"[{address}]" if ":" in address else address
        return f"http://{host}:{self._arm.port}"
