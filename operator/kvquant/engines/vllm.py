"""vLLM: how to recognise it in a pod template, and its arguments for a KV-cache dtype."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvquant.errors import TemplateError

NAME = "vllm"

DTYPES = {
    "int8": "int8_per_token_head",
    "int4": "int4_per_token_head",
}
"""Short names that vLLM does not know; every other dtype of the API is vLLM's own name."""

DEFAULT_DTYPE = "auto"
DEFAULT_PORT = 8000

_MODULE = "vllm.entrypoints.openai.api_server"
_SHELLS = {"sh", "bash", "dash", "ash", "zsh"}
# The repository's last path component decides, as in vllm/vllm-openai or ml/vllm-openai-cpu.
IMAGE = re.compile(r"(^|/)vllm(-[a-z0-9-]+)?(:[^/]*)?(@sha256:[0-9a-f]+)?$")
"""What the images of vLLM are called, and of nothing else."""


def resolve_dtype(dtype: str) -> str:
    """Return what vLLM calls a dtype of the API."""
    return DTYPES.get(dtype, dtype)


def recognises(container: dict[str, Any]) -> bool:
    """Tell whether a container starts vLLM's OpenAI server, by command, arguments or image.

    Raises:
        TemplateError: vLLM is started from a shell line, whose arguments cannot be changed safely.
    """
    words = [*container.get("command", ()), *container.get("args", ())]
    if _in_shell_line(words):
        raise TemplateError(
            "EngineInShellLine",
            f"container {container.get('name')!r} starts vLLM from a shell line; write the command "
            'as a list, e.g. command: ["vllm", "serve"], args: ["MODEL", "--port", "8000"]',
        )
    if _MODULE in words:
        return True
    if any(word.rsplit("/", 1)[-1] == "vllm" for word in words[:1]) and "serve" in words[1:2]:
        return True
    # Without a command the image's own entry point runs: vllm/vllm-openai starts the server.
    return not container.get("command") and bool(IMAGE.search(container.get("image", "")))


def _in_shell_line(words: Sequence[str]) -> bool:
    if not words or words[0].rsplit("/", 1)[-1] not in _SHELLS:
        return False
    return any("vllm" in word for word in words)


def dtype_of(container: dict[str, Any]) -> str:
    """Return the KV-cache dtype that a container asks for; vLLM's default is `auto`."""
    return option_of(container, "--kv-cache-dtype") or DEFAULT_DTYPE


def option_of(container: Mapping[str, Any], *flags: str) -> str | None:
    """Return the value of a flag by any of its names; None when a container does not give it."""
    for words in (container.get("args", ()), container.get("command", ())):
        for flag in flags:
            value = _option(words, flag)
            if value is not None:
                return value
    return None


def port_of(container: dict[str, Any]) -> int:
    """Return the port on which a container serves, vLLM's default being 8000.

    Raises:
        TemplateError: The port is not a number.
    """
    port = option_of(container, "--port")
    if port is None:
        return DEFAULT_PORT
    if not port.isdigit():
        raise TemplateError(
            "EnginePortUnknown",
            f"container {container.get('name')!r} has --port {port}: write a number",
        )
    return int(port)


def with_dtype(container: dict[str, Any], dtype: str, fingerprint: str | None) -> dict[str, Any]:
    """Return the container with the KV-cache dtype asked for and nothing else changed.

    Args:
        container: The baseline's container, as raw JSON.
        dtype: What vLLM calls the dtype.
        fingerprint: Opaque value for `system_fingerprint` in every answer, or None to leave the
            engine's own. vLLM has the flag since 0.25.
    """
    changes = {"--kv-cache-dtype": dtype}
    if fingerprint is not None:
        changes |= {"--fingerprint-mode": "custom", "--fingerprint-value": fingerprint}
    out = dict(container)
    for field in ("command", "args"):
        if field in container:
            out[field] = _without(container[field], changes)
    # With a command but no arguments the flags still belong behind the command's own words.
    out["args"] = [*out.get("args", ()), *(w for pair in changes.items() for w in pair)]
    return out


def _option(words: Sequence[str], flag: str) -> str | None:
    """Return the value of `--flag value` or `--flag=value`; the last one wins, as in argparse."""
    value = None
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            value = words[i + 1]
        elif word.startswith(f"{flag}="):
            value = word.split("=", 1)[1]
    return value


def _without(words: Sequence[str], flags: dict[str, str]) -> list[str]:
    out: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in flags:
            skip = True
        elif word.split("=", 1)[0] not in flags:
            out.append(word)
    return out
