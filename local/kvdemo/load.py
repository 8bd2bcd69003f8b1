"""A client that sends requests at a steady rate and remembers what became of each."""

from __future__ import annotations

import asyncio
import io
import json
import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import aiohttp

PASSAGE = 40
"""Words of a passage that bears a number."""
PLANTED = 0.2
"""Share of the prompts in which a planted sentence stands."""
CANARY_MARK = "kvq-"
"""What the fingerprint in a canary's answers begins with."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request as the client saw it.

    Attributes:
        began: When it was sent, in seconds of `time.time`.
        seconds: Until the last byte of the answer, or until it failed.
        problem: What went wrong, empty when nothing did.
        fingerprint: `system_fingerprint` of the answer: which pool it came from.
    """

    began: float
    seconds: float
    problem: str = ""
    fingerprint: str = ""

    @property
    def from_canary(self) -> bool:
        """Whether a canary pool answered."""
        return self.fingerprint.startswith(CANARY_MARK)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is asked for.

    Attributes:
        rate: Requests per second; they arrive at random times (a Poisson process), as from many
            users who do not wait for each other.
        prompt_words: Shortest and longest prompt in words.
        max_tokens: Fewest and most tokens of an answer.
        streamed: Share of the requests that are streamed.
        cited: Share of the prompts that are passages with numbers, as of a search, to be cited.
        planted: Sentences of which one stands in every fifth prompt.
        timeout: Seconds after which the client gives up.
        most_in_flight: Requests in flight beyond which the client sends no more.
        seed: Of the random choices.
    """

    rate: float = 20.0
    prompt_words: tuple[int, int] = (50, 400)
    max_tokens: tuple[int, int] = (16, 96)
    streamed: float = 0.3
    cited: float = 0.0
    planted: tuple[str, ...] = ()
    timeout: float = 60.0
    most_in_flight: int = 512
    seed: int = 1


@dataclass(slots=True)
class Load:
    """Sends requests from a thread of its own between `start` and `stop`.

    Attributes:
        url: Base URL of an OpenAI-compatible server.
        recipe: What is asked for.
        outcomes: Every request that has ended, in the order in which they did.
        skipped: Requests not sent because too many were in flight.
    """

    url: str
    recipe: Recipe = field(default_factory=Recipe)
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: int = 0
    _thread: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self._thread.start()

    def stop(self) -> None:
        """Send no more, and wait for the answers to what was sent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    async def _run(self) -> None:
        chance = random.Random(self.recipe.seed)
        tasks: set[asyncio.Task[None]] = set()
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self.recipe.timeout)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            due = time.monotonic()
            while not self._stop.is_set():
                due += chance.expovariate(self.recipe.rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if len(tasks) >= self.recipe.most_in_flight:
                    self.skipped += 1
                    continue
                task = asyncio.create_task(self._send(session, self._body(chance)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    def _body(self, chance: random.Random) -> dict[str, object]:
        words = [chance.choice(_WORDS) for _ in range(chance.randint(*self.recipe.prompt_words))]
        if chance.random() < self.recipe.cited:
            for number, at in enumerate(range(0, len(words), PASSAGE), 1):
                words[at] = f"[{number}] {words[at]}"
        if self.recipe.planted and chance.random() < PLANTED:
            words.append(chance.choice(self.recipe.planted))
        return {
            "model": "llama-3-8b",
            "prompt": " ".join(words),
            "max_tokens": chance.randint(*self.recipe.max_tokens),
            "stream": chance.random() < self.recipe.streamed,
        }

    async def _send(self, session: aiohttp.ClientSession, body: dict[str, object]) -> None:
        began, clock = time.time(), time.monotonic()
        problem = text = ""
        # As a file, since a body of megabytes would be sent in one go otherwise.
        data, headers = io.BytesIO(json.dumps(body).encode()), {"Content-Type": "application/json"}
        try:
            async with session.post(
                f"{self.url}/v1/completions", data=data, headers=headers
            ) as response:
                text = await response.text()
                if response.status != 200:
                    problem = f"HTTP {response.status}: {text[:120]}"
                elif body["stream"] and "data: [DONE]" not in text:
                    problem = "the stream ended without [DONE]"
                elif body["stream"] and '"error"' in text:
                    problem = "the stream ended with an error"
        except Exception as error:  # whatever it is, this request was not answered
            problem = f"{type(error).__name__}: {error}"
        self.outcomes.append(Outcome(began, time.monotonic() - clock, problem, _fingerprint(text)))


def percentile(values: Iterable[float], share: float) -> float | None:
    """Return the smallest value that at least that share of the values does not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else None


def _fingerprint(text: str) -> str:
    _, found, rest = text.partition('"system_fingerprint":')
    return rest.lstrip().split('"', 2)[1] if found and '"' in rest else ""


_TEXT = (
    "the quick model answers a long question about serving many users at once with one cache "
    "that holds keys and values of every token it has read so far and must not run out"
)
_WORDS = _TEXT.split()
