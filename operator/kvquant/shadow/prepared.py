"""From a job to what is replayed: decode, strip, sanitize, understand. Runs in a thread."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvquant.core.shadow_settings import ShadowSettings
from kvquant.shadow import asking, decoding, preparing
from kvquant.shadow.asking import Asked
from kvquant.shadow.ports import Dropped, Sanitizer
from kvquant.shadow.queue import Job

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request as it is replayed.

    Attributes:
        path: Its endpoint.
        body: What both arms are asked, without personal data.
        sent: The same as bytes.
        asked: What an answer has to be like.
        found: Personal data that were replaced, by kind.
        twice: The baseline is asked a second time.
    """

    path: str
    body: Mapping[str, Any]
    sent: bytes
    asked: Asked
    found: Mapping[str, int]
    twice: bool


def prepare(job: Job, settings: ShadowSettings, sanitizer: Sanitizer) -> Prepared:
    """Return what is replayed of a job.

    Raises:
        Dropped: Nothing is.
    """
    text = decoding.decoded(job.body, job.encoding, settings.max_body_bytes)
    body = preparing.stripped(job.path, decoding.parsed(text))
    clean, found = sanitized(sanitizer, body)
    if not isinstance(clean, dict):
        raise Dropped("unreadable")
    replay = preparing.replayed(job.path, clean, settings.max_answer_tokens)
    sent = json.dumps(replay, sort_keys=True).encode()
    return Prepared(
        path=job.path,
        body=replay,
        sent=sent,
        asked=asking.read(job.path, clean),
        found=found,
        twice=is_chosen(sent, settings.noise_percent),
    )


def is_chosen(sent: bytes, percent: int) -> bool:
    """Return whether a request belongs to a share of all requests: always the same for the same."""
    return int.from_bytes(hashlib.sha256(sent).digest()[:8]) % 100 < percent


def sanitized(sanitizer: Sanitizer, body: Any) -> tuple[Any, Mapping[str, int]]:
    """Return a document without personal data, and what was found by kind.

    Raises:
        Dropped: The sanitizer could not promise that, for whatever reason: fail closed.
    """
    try:
        cleaned = sanitizer.body(body)
    except Exception as error:
        reason = getattr(error, "reason", None)
        word = isinstance(reason, str) and _WORD.fullmatch(reason)
        # Without the cause: it may quote what it could not read.
        raise Dropped(f"withheld:{reason if word else 'error'}") from None
    return cleaned.body, cleaned.found
