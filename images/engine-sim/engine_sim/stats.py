"""What the engine counts, kept apart from how it is shown."""

from .engine import StepResult
from .histogram import (
    CHOICES,
    FIRST_TOKEN_SECONDS,
    ITERATION_TOKENS,
    REQUEST_SECONDS,
    TOKEN_SECONDS,
    Histogram,
    lengths,
)
from .scheduler import Progress
from .sequence import Sequence

FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class Stats:
    """Counters and histograms of finished work, times in wall seconds.

    As in vLLM, an aborted request shows in no per-request figure.
    """

    def __init__(self, max_model_len: int, time_scale: float, *, prefix_caching: bool) -> None:
        self._scale = time_scale
        self._prefix_caching = prefix_caching
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.preemptions = 0
        self.prefix_queries = 0
        self.success = dict.fromkeys(FINISH_REASONS, 0)
        tokens = lengths(max_model_len)
        self.histograms = {
            "request_prompt_tokens": Histogram(tokens),
            "request_generation_tokens": Histogram(tokens),
            "iteration_tokens_total": Histogram(ITERATION_TOKENS),
            "request_max_num_generation_tokens": Histogram(tokens),
            "request_params_n": Histogram(CHOICES),
            "request_params_max_tokens": Histogram(tokens),
            "time_to_first_token_seconds": Histogram(FIRST_TOKEN_SECONDS),
            "inter_token_latency_seconds": Histogram(TOKEN_SECONDS),
            "request_time_per_output_token_seconds": Histogram(TOKEN_SECONDS),
            "e2e_request_latency_seconds": Histogram(REQUEST_SECONDS),
            "request_queue_time_seconds": Histogram(REQUEST_SECONDS),
            "request_inference_time_seconds": Histogram(REQUEST_SECONDS),
            "request_prefill_time_seconds": Histogram(REQUEST_SECONDS),
            "request_decode_time_seconds": Histogram(REQUEST_SECONDS),
            "request_prefill_kv_computed_tokens": Histogram(tokens),
        }

    def record(self, step: StepResult) -> None:
        """Count one step of the engine."""
        self.preemptions += len(step.batch.preempted)
        produced = 0
        for progress in step.progress:
            produced += self._record_tokens(progress, step.ended)
            if progress.finished:
                self._record_finish(progress.sequence, step.ended)
        if step.progress:
            repeats = step.batch.repeats
            # A prompt counts as a whole in the step that ends it, however it was chunked.
            self.histograms["iteration_tokens_total"].observe(produced / repeats, repeats)

    def _record_tokens(self, progress: Progress, ended: float) -> int:
        sequence = progress.sequence
        produced = progress.tokens
        if progress.first:
            self.prompt_tokens += sequence.prompt_tokens
            produced += sequence.prompt_tokens
            if self._prefix_caching:
                self.prefix_queries += sequence.prompt_tokens
            self._observe("time_to_first_token_seconds", ended - sequence.arrival)
        elif sequence.last_token_at is not None:
            gap = (ended - sequence.last_token_at) / progress.tokens
            self._observe("inter_token_latency_seconds", gap, progress.tokens)
        self.generation_tokens += progress.tokens
        sequence.last_token_at = ended
        return produced

    def _record_finish(self, sequence: Sequence, ended: float) -> None:
        self.success["stop" if sequence.stops else "length"] += 1
        scheduled = sequence.scheduled_at if sequence.scheduled_at is not None else ended
        first = sequence.first_token_at if sequence.first_token_at is not None else ended
        self._observe("e2e_request_latency_seconds", ended - sequence.arrival)
        self._observe("request_queue_time_seconds", scheduled - sequence.arrival)
        self._observe("request_inference_time_seconds", ended - scheduled)
        self._observe("request_prefill_time_seconds", first - scheduled)
        self._observe("request_decode_time_seconds", ended - first)
        if sequence.generated > 1:
            per_token = (ended - first) / (sequence.generated - 1)
            self._observe("request_time_per_output_token_seconds", per_token)
        counts = self.histograms
        counts["request_prompt_tokens"].observe(sequence.prompt_tokens)
        counts["request_prefill_kv_computed_tokens"].observe(sequence.prompt_tokens)
        counts["request_generation_tokens"].observe(sequence.generated)
        counts["request_max_num_generation_tokens"].observe(sequence.generated)
        counts["request_params_max_tokens"].observe(sequence.max_tokens)
        counts["request_params_n"].observe(1)

    def _observe(self, name: str, virtual_seconds: float, times: int = 1) -> None:
        self.histograms[name].observe(virtual_seconds / self._scale, times)
