"""One line of the log: a compared pair. docs/shadow-log.md tells each field. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kvquant.core.shadow_settings import ArmSettings, ShadowSettings
from kvquant.shadow.answers import Answer
from kvquant.shadow.comparing import Comparison
from kvquant.shadow.replaying import Reply

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Told:
    """What an arm made of a prompt.

    Attributes:
        reply: What came of asking.
        answer: Its answer; None: it gave none.
    """

    reply: Reply
    answer: Answer | None


def texts(told: Told) -> Mapping[str, Any]:
    """Return what an arm said, which has to be sanitized before it is kept."""
    if told.answer is None:
        return {}
    answer = told.answer
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "toolCalls": [{"name": call.name, "arguments": call.arguments} for call in answer.calls],
        "finishReason": answer.finish,
        "systemFingerprint": answer.fingerprint,
    }


def arm(settings: ArmSettings, told: Told, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm's part of a record.

    Args:
        settings: What its pods run.
        told: What it made of the prompt.
        said: What `texts` returned, sanitized.
    """
    answer = told.answer
    return {
        "status": told.reply.status,
        "failure": told.reply.failure or None,
        "seconds": round(told.reply.seconds, 4),
        "answer": dict(said) or None,
        "usage": {
            "promptTokens": answer.prompt_tokens if answer else 0,
            "answerTokens": answer.answer_tokens if answer else 0,
        },
        "regime": {
            "dtype": settings.dtype,
            "deployment": settings.deployment,
            "image": settings.image,
            "fingerprint": settings.fingerprint,
        },
    }


def scores(comparison: Comparison | None, signals: Mapping[str, float]) -> dict[str, Any]:
    """Return a pair's scores: the signals as counted, and what they rest on."""
    details: dict[str, Any] = {}
    if comparison is not None:
        details = {
            "firstCharacter": comparison.first_character,
            "firstToken": comparison.first_token,
            "lengthRatio": _rounded(comparison.length_ratio),
            "jsonValid": _listed(comparison.json_valid),
            "toolCallsValid": _listed(comparison.calls_valid),
            "markersKept": _listed(comparison.markers_kept),
            "refuses": _listed(comparison.refuses),
            "cut": _listed(comparison.cut),
        }
    return {"signals": {name: _rounded(value) for name, value in signals.items()}, **details}


def build(
    settings: ShadowSettings,
    *,
    run: str,
    at: datetime,
    endpoint: str,
    bucket: str,
    request: Any,
    found: Mapping[str, int],
    arms: Mapping[str, Any],
    pairs: Mapping[str, Any],
    markers: int,
    waited: float,
) -> dict[str, Any]:
    """Return the record of a pair.

    Args:
        settings: Whose rollout it is.
        run: Name of this process's life.
        at: When the answers were compared.
        endpoint: The endpoint that was asked.
        bucket: Bucket of the length of the mirrored body.
        request: The sanitized request, as it was replayed.
        found: Personal data that were replaced in it and in the answers, by kind.
        arms: What `arm` returned, by arm.
        pairs: What `scores` returned, by pair.
        markers: How many citation markers the prompt has.
        waited: Seconds from the arrival to the replay.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "at": at.isoformat(timespec="milliseconds"),
        "rollout": {
            "namespace": settings.namespace,
            "name": settings.rollout,
            "uid": settings.uid,
            "attempt": settings.attempt,
            "run": run,
        },
        "endpoint": endpoint,
        "bucket": bucket,
        "waitedSeconds": round(waited, 4),
        "request": request,
        "personalData": dict(found),
        "promptMarkers": markers,
        "arms": dict(arms),
        "pairs": dict(pairs),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _listed(pair: tuple[Any, Any] | None) -> list[Any] | None:
    return None if pair is None else list(pair)
