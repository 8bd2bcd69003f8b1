"""One serving pod: paged continuous batching as vLLM does it, in four events a request.

An engine step reads the weights once and every cached token once, and yields one token for each
running sequence. Waiting prompts go first and are computed in a step of their own, in which the
running sequences still get their one token. Between two such steps, and until the next sequence
ends or the KV cache is full, nothing changes but the number of tokens, so that stretch is one
event: the pod keeps a clock that counts tokens per sequence, and a sequence is done when that
clock has advanced by its output.

The shape is fitted to recordings of vLLM 0.25.1 on an H200 (`profiles.py`).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from bench.decisions.histogram import BETWEEN_TOKENS, FIRST_TOKEN, REQUEST, Histogram
from kvquant.core.analysis.samples import EngineSample

_IDLE, _PREFILL, _DECODE = range(3)
_SPARE = 0.99
"""Share of the cache that admission may fill: what is running must be able to grow."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How fast an engine is; seconds, and tokens.

    Attributes:
        capacity: Tokens that the KV cache holds.
        floor: Seconds of a decode step however little there is to do: the weights are read.
        sequence: Seconds that one more running sequence adds to a step.
        context: Seconds that one more cached token adds to a step.
        prompt: Seconds to compute one prompt token.
        attention: Seconds for each pair of prompt tokens: prefill is quadratic.
        sequences: Most sequences that run at once.
        budget: Most prompt tokens of one step.
        long_from: Prompt tokens from which `long_times` applies.
        long_times: By how much the prefill of a long prompt takes longer.
        crowd_from: Running sequences from which `crowd_times` applies.
        crowd_times: By how much a decode step takes longer in a crowd.
    """

    capacity: int
    floor: float
    sequence: float
    context: float
    prompt: float
    attention: float
    sequences: int = 256
    budget: int = 32_768
    long_from: float = math.inf
    long_times: float = 1.0
    crowd_from: float = math.inf
    crowd_times: float = 1.0

    def prefill(self, tokens: int) -> float:
        """Return the seconds of a prompt's prefill."""
        seconds = tokens * (self.prompt + self.attention * tokens)
        return seconds * self.long_times if tokens >= self.long_from else seconds

    def step(self, running: int, cached: float) -> float:
        """Return the seconds of a decode step."""
        seconds = self.floor + self.sequence * running + self.context * cached
        return seconds * self.crowd_times if running >= self.crowd_from else seconds


class Request:
    """A request on its way.

    Attributes:
        sent: When the router sent it.
        prompt: Prompt tokens.
        output: Tokens it will ask for.
        router: Index of the router pod that sent it.
        pod: The pod that has it.
        over: Whether it has ended, in whatever way.
        done: Tokens generated before it was (last) put into the running batch.
        ends: The pod's token clock at its end, while it runs.
        ticket: Number of its present turn in the running batch; 0 while it does not run.
    """

    __slots__ = (
        *("sent", "prompt", "output", "router", "pod", "over", "done", "ends", "ticket"),
        *("admitted", "first"),
    )

    def __init__(self, sent: float, prompt: int, output: int, router: int) -> None:
        self.sent = sent
        self.prompt = prompt
        self.output = output
        self.router = router
        self.pod: Pod | None = None
        self.over = False
        self.done = 0
        self.ends = 0.0
        self.ticket = 0
        self.admitted = self.first = -1.0


class Pod:
    """One engine pod and its exporter.

    Attributes:
        name: The pod's name.
        active: Requests in flight, as each router counts them for LEAST_REQUEST.
        ready: Whether routers send it requests.
        slow: By how much everything takes longer just now; infinite when it hangs.
        due_at: When something happens next, in simulated seconds.
        version: Changes with `due_at`, so that an outdated entry in the agenda is known.
    """

    def __init__(self, name: str, profile: Profile, routers: int, started: float) -> None:
        self.name = name
        self.profile = profile
        self.active = [0] * routers
        self.ready = True
        self.slow = 1.0
        self.version = 0
        self._reset(started)

    def _reset(self, started: float) -> None:
        self.process_started = started
        self.due_at = math.inf
        self.waiting: deque[Request] = deque()
        self._batch: list[Request] = []
        self._running: list[tuple[float, int, Request]] = []
        self._newest: list[Request] = []
        self._count = 0
        self._tickets = 0
        self._clock = 0.0
        self._cached = 0.0
        self._phase = _IDLE
        self._since = started
        self._step = 0.0
        self.finished = self.preemptions = 0
        self.prompt_tokens = 0
        self.generated = 0.0
        self.e2e, self.queue, self.prefill = (Histogram(REQUEST) for _ in range(3))
        self.ttft, self.itl = Histogram(FIRST_TOKEN), Histogram(BETWEEN_TOKENS)

    def arrive(self, now: float, request: Request) -> bool:
        """Take a request in; tell whether `due_at` has changed."""
        request.pod = self
        self.waiting.append(request)
        if self._phase == _IDLE:
            self._begin(now)
            return True
        if self._phase == _DECODE and len(self.waiting) == 1:
            self.settle(now)
            self._begin(now)
            return True
        return False

    def settle(self, now: float) -> None:
        """Count the tokens that were decoded until now."""
        if self._phase == _DECODE and now > self._since:
            turns = (now - self._since) / self._step
            tokens = turns * self._count
            self._clock += turns
            self._cached += tokens
            self.generated += tokens
            self.itl.add(self._step, tokens)
            self._since = now

    def due(self, now: float) -> list[Request]:
        """Do what was due, begin what comes next, and return the requests that have finished."""
        ended: list[Request] = []
        if self._phase == _PREFILL:
            if self._count:
                self._clock += 1
                self._cached += self._count
                self.generated += self._count
                self.itl.add(self._step, self._count)
            for request in self._batch:
                if not request.over:
                    self._first_token(now, request, ended)
            self._batch = []
        else:
            self.settle(now)
        running, reached = self._running, self._clock + 1e-6
        while running and running[0][0] <= reached:
            _, ticket, request = heappop(running)
            if request.ticket == ticket:
                request.ticket = 0
                self._count -= 1
                self._end(now, request, ended)
        while self._count and self._cached + self._count > self.profile.capacity:
            self._preempt()
        self._begin(now)
        return ended

    def _first_token(self, now: float, request: Request, ended: list[Request]) -> None:
        if request.first < 0:
            request.first = now
            self.prompt_tokens += request.prompt
            self.ttft.add(now - request.sent)
        request.done += 1
        self.generated += 1
        self._cached += 1
        if request.done >= request.output:
            self._end(now, request, ended)
            return
        self._tickets += 1
        request.ticket = self._tickets
        request.ends = self._clock + request.output - request.done
        heappush(self._running, (request.ends, request.ticket, request))
        self._newest.append(request)
        self._count += 1

    def _end(self, now: float, request: Request, ended: list[Request]) -> None:
        request.over = True
        self._cached -= request.prompt + request.output
        self.finished += 1
        self.e2e.add(now - request.sent)
        self.queue.add(request.admitted - request.sent)
        self.prefill.add(request.first - request.admitted)
        ended.append(request)

    def _leave(self, request: Request) -> float:
        """Take a request out of the running batch; return how many tokens it has generated."""
        request.ticket = 0
        self._count -= 1
        generated = request.output - (request.ends - self._clock)
        self._cached -= request.prompt + generated
        return generated

    def _preempt(self) -> None:
        """Send the youngest sequence back: its cache is dropped and will be computed anew."""
        request = self._newest.pop()
        if request.ticket:
            request.done = int(self._leave(request))
            self.preemptions += 1
            self.waiting.appendleft(request)

    def _begin(self, now: float) -> None:
        self.version += 1
        self._since = now
        profile, waiting = self.profile, self.waiting
        if not self.ready or math.isinf(self.slow):
            self._phase, self.due_at = _IDLE, math.inf
            return
        cached, prompts, seconds = self._cached, 0, 0.0
        most = profile.capacity * _SPARE
        while waiting and self._count + len(self._batch) < profile.sequences:
            need = waiting[0].prompt + waiting[0].done
            if self._cached + need > most or (prompts and prompts + need > profile.budget):
                break
            request = waiting.popleft()
            if request.admitted < 0:
                request.admitted = now
            self._batch.append(request)
            self._cached += need
            prompts += need
            seconds += profile.prefill(need)
        if self._batch:
            self._phase = _PREFILL
            self._step = (seconds + profile.step(self._count, cached)) * self.slow
            self.due_at = now + self._step
            return
        running = self._running
        while running and running[0][2].ticket != running[0][1]:
            heappop(running)
        if not running:
            self._newest.clear()
            self._phase, self.due_at = _IDLE, math.inf
            return
        newest = self._newest
        while not newest[-1].ticket:
            newest.pop()
        self._phase = _DECODE
        self._step = profile.step(self._count, cached) * self.slow
        turns = min(running[0][0] - self._clock, (profile.capacity - cached) / self._count)
        self.due_at = now + max(turns, 0.0) * self._step

    def abort(self, now: float, request: Request) -> None:
        """Give a request up: its client has gone. vLLM counts it in no histogram."""
        self.settle(now)
        request.over = True
        if request.ticket:
            self._leave(request)
        elif request in self._batch:
            self._cached -= request.prompt + request.done
            self._batch.remove(request)
        else:
            self.waiting.remove(request)
        if self._phase != _PREFILL:
            self._begin(now)

    def pace(self, now: float, slow: float) -> None:
        """Be that much slower than the profile from now on."""
        self.settle(now)
        self.slow = slow
        if self._phase != _PREFILL or math.isinf(slow):
            self.waiting.extendleft(reversed(self._batch))
            self._cached -= sum(r.prompt + r.done for r in self._batch)
            self._batch = []
            self._begin(now)

    def die(self, now: float) -> list[Request]:
        """Lose everything; return the requests that were in flight."""
        lost = [*self.waiting, *self._batch, *(r for _, t, r in self._running if r.ticket == t)]
        for request in lost:
            request.over = True
        self.ready = False
        self.version += 1
        self.active = [0] * len(self.active)
        self._reset(now)
        return lost

    def restart(self, now: float) -> None:
        """Serve again, as a new process whose counters begin at nought."""
        self.ready = True
        self._reset(now)

    def scrape(self, now: float, epoch: float) -> EngineSample:
        """Return what the exporter shows."""
        self.settle(now)
        return EngineSample(
            process_started=epoch + self.process_started,
            finished=self.finished,
            preemptions=self.preemptions,
            prompt_tokens=self.prompt_tokens,
            generated_tokens=self.generated,
            running=self._count + len(self._batch),
            waiting=len(self.waiting),
            e2e=self.e2e.bins(),
            queue=self.queue.bins(),
            prefill=self.prefill.bins(),
            ttft=self.ttft.bins(),
            itl=self.itl.bins(),
        )
