"""What the operator tells the shadow service of a rollout, and what the service counts.

The operator writes `ShadowSettings` as JSON into a ConfigMap, which the service reads at its start.
The names of the metrics are here too: the service writes them, and the operator asks for them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

SETTINGS_FILE = "/etc/kvquant/shadow.json"
"""Where the service finds its settings."""

ENGINE_KEY_DIRECTORY = "/etc/kvquant-engine"
"""Where the engines' API key is mounted, if they ask for one."""
ENGINE_KEY_FILE = "KVQUANT_SHADOW_ENGINE_KEY_FILE"
"""Environment variable that names a file with an API key of the engines, where they ask for one.
The keys of users are never read."""

PORT = 8080
"""Port at which the service takes mirrored requests."""
METRICS_PORT = 9100
"""Port of its metrics and of /healthz."""

MARK_HEADER = "x-kvquant-shadow"
"""Header, with value 1, of every request that the service sends: no user waits for it, and nobody
must be billed for it."""

GENERATION_PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
"""Endpoints whose requests are mirrored."""

KIB = 1024
BUCKETS: tuple[tuple[str, float], ...] = (
    ("0-4KiB", 4 * KIB),
    ("4-16KiB", 16 * KIB),
    ("16-64KiB", 64 * KIB),
    ("64-256KiB", 256 * KIB),
    ("256KiB-1MiB", 1024 * KIB),
    ("1MiB+", float("inf")),
)
"""Buckets of the length of a request's body: name, and upper bound in bytes (inclusive). Bytes,
because that is what the router can measure; English prose has about four to a token."""


def bucket_of(size: int) -> str:
    """Return the name of the bucket of a body of so many bytes."""
    return next(name for name, bound in BUCKETS if size <= bound)


# Every series bears the labels `rollout` (uid), `attempt` and `run`; the latter is new with each
# process, so that nothing is ever reset within a run.
RECEIVED = "kvquant_shadow_received_total"
"""Mirrored requests that arrived whole, by `bucket`."""
DROPPED = "kvquant_shadow_dropped_total"
"""Mirrored requests that were not compared, by `reason`."""
FOUND = "kvquant_shadow_personal_data_total"
"""Values of personal data that were replaced, by `kind`."""
SCORED = "kvquant_shadow_scored_total"
"""Pairs that were judged, by `pair`, `signal` and `bucket`."""
HARM = "kvquant_shadow_harm_total"
"""Sum of the positive paired differences (second answer worse), by the same labels."""
RELIEF = "kvquant_shadow_relief_total"
"""Sum of the absolute values of the negative ones (second answer better), by the same labels."""
SQUARES = "kvquant_shadow_squares_total"
"""Sum of the squares of all of them, by the same labels."""

CANARY_PAIR, NOISE_PAIR = "canary", "noise"
"""Values of `pair`: canary against baseline, and baseline against baseline (A/A)."""

DRIFT, ANSWERED, JSON, TOOLS, CITATIONS, REFUSALS, ENDINGS, EXACT = (
    "drift",
    "answered",
    "json",
    "toolCalls",
    "citations",
    "refusals",
    "endings",
    "exact",
)
SATURATED, SATURATED_ANSWERED = "saturated", "saturatedAnswered"
"""Values of `signal`. A pair's difference is in nats per token for `drift`, else in {-1, 0, 1}:

- drift: negative log-likelihood per token of the baseline's answer under the second arm, less that
  under the first.
- answered: 1 when only the second arm failed to answer, -1 when only the first did.
- json: the request asked for JSON; 1 when only the second answer is not valid JSON.
- toolCalls: tools were offered; 1 when the second answer calls others, or with other arguments.
- citations: the prompt has citation markers, and one of the answers has some of them; 1 when the
  second answer has lost more than it has won against the first, -1 the other way round.
- refusals: 1 when only the second answer refuses, -1 when only the first does.
- endings: 1 when only the second answer ran into the cap of tokens, -1 when only the first did.
- exact: 1 when the texts differ. Told, and no evidence: batching alone changes greedy text.
- saturated: of the saturation probe, in which both answers are the canary's: one while it is calm,
  one while its cache is full. 1 when only the latter is wrong (JSON broken, a needle lost).
- saturatedAnswered: 1 when the canary answered while calm and failed to while full.
"""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArmSettings(_Frozen):
    """Where an arm's pods are, and what they run."""

    host: str
    """DNS name with an address for each pod that serves (a headless Service)."""
    port: int
    deployment: str
    dtype: str
    image: str = ""
    fingerprint: str = ""
    """What the arm's answers carry in `system_fingerprint`; empty: unknown."""


class UserPattern(_Frozen):
    """A kind of personal data that the user knows of."""

    name: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,31}$")]
    """Becomes part of the placeholder: `<NAME_3f9a>`."""
    pattern: Annotated[str, Field(min_length=1, max_length=512)]
    """Regular expression in the syntax of RE2."""


class LogSettings(_Frozen):
    """Where the compared pairs are written."""

    url: str
    """fsspec URL of a folder: file:///var/log/kvquant, s3://bucket/prefix, gs://bucket/prefix."""
    rotate_bytes: int = 64 * KIB * KIB
    """A file that has grown beyond this is closed and a new one begun."""
    max_bytes: int = 4 * KIB * KIB * KIB
    """Most that the folder may hold of this rollout; beyond it the oldest files are removed."""
    retention_hours: int = 24 * 30
    """Files older than this are removed."""


class ShadowSettings(_Frozen):
    """Everything that the service must know."""

    namespace: str
    rollout: str
    uid: str
    attempt: int
    baseline: ArmSettings
    canary: ArmSettings
    percent: float = 0.0
    """Share of the clients' requests of which there may be pairs; 0: no such limit."""
    max_answer_tokens: int = 256
    """Longest answer that is asked for."""
    max_body_bytes: int = 32 * KIB * KIB
    """Longer bodies are dropped."""
    queue_requests: int = 64
    """Requests that wait at most; when it is full, the newest is dropped."""
    queue_bytes: int = 256 * KIB * KIB
    """Bytes that wait at most."""
    deadline_seconds: float = 120.0
    """Time from the arrival of a copy until both arms must have answered."""
    concurrency: int = 4
    """Pairs that are replayed at a time."""
    tokens_per_second: int = 0
    """Most prompt and answer tokens per second that are asked of each arm; 0: no such limit."""
    noise_percent: int = 20
    """Share of the pairs for which the baseline is asked a second time (A/A)."""
    baseline_kv_usage: float = 0.8
    """Share of the baseline's KV cache in use above which nothing is replayed."""
    baseline_waiting: int = 0
    """Requests waiting in a baseline pod above which nothing is replayed."""
    score_prompt_tokens: int = 32768
    """Longest prompt, in tokens, whose answer is scored by log-likelihood; 0 turns it off."""
    scan_seconds: float = 2.0
    """Longest time that the search for personal data in one text may take."""
    load_only: bool = False
    """Whether copies are there to give the canary load: it alone is asked, at the length that the
    client asked for, and nothing is compared or logged."""
    canary_waiting: int = 8
    """Requests waiting in a canary pod above which it gets no more load."""
    saturation_probe: bool = False
    """Whether the canary is filled, to see whether it still answers right."""
    patterns: tuple[UserPattern, ...] = ()
    log: LogSettings | None = None
