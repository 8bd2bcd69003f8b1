"""Lines of a shadow log, as the service writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHAT = "/v1/chat/completions"


def record(body: dict[str, Any], *, endpoint: str = CHAT, answered: bool = True) -> dict[str, Any]:
    answer = {"text": "An answer.", "toolCalls": [], "finishReason": "stop"}
    arm = {"status": 200, "failure": None, "seconds": 0.5, "answer": answer}
    nothing = {"status": 0, "failure": "timeout", "seconds": 9.0, "answer": None}
    return {
        "schema_version": 1,
        "at": "2026-11-26T06:00:00.000+00:00",
        "rollout": {"namespace": "inference", "name": "llama", "attempt": 1, "run": "r"},
        "endpoint": endpoint,
        "bucket": "0-4KiB",
        "request": {
            **body,
            "temperature": 0,
            "top_p": 1,
            "seed": 20260101,
            "stream": False,
            "n": 1,
        },
        "arms": {"baseline": arm if answered else nothing, "canary": arm},
        "pairs": {"canary": {"signals": {"exact": 0}}},
    }


def asking(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def write(folder: Path, records: Iterable[dict[str, Any]], per_segment: int = 40) -> None:
    home = folder / "inference/llama/attempt-1"
    home.mkdir(parents=True)
    lines = [json.dumps(one) + "\n" for one in records]
    for number, begin in enumerate(range(0, len(lines), per_segment), 1):
        text = "".join(lines[begin : begin + per_segment])
        (home / f"run-{number:06d}.jsonl").write_text(text)
