"""Faults by KV dtype, read from ``KVSIM_FAULTS``.

The syntax is ``dtype:fault[,fault...][;dtype:fault...]``; a fault is a name or ``name=value``. The
dtype ``*`` means every dtype. Faults of all matching parts add up.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .kvdtype import DTYPES


class FaultSyntaxError(ValueError):
    """``KVSIM_FAULTS`` cannot be read; the message names the piece and the remedy."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong in this process.

    Attributes:
        decode_slowdown: factor on the time of decoding.
        prefill_slowdown: factor on the time of computing prompts.
        crowd_slowdown: factor on what each request in a batch adds to the time of decoding.
        ignore_dtype: the flag is accepted and reported, but the cache stays 16-bit.
        error_rate: share of requests answered with HTTP 500.
        exit_after: the engine dies while serving the request of this number.
        exit_at_kv_usage: the engine dies when this share of the KV cache is in use.
        exit_at_prompt_tokens: the engine dies at a prompt of at least this many tokens.
        hang_after: requests beyond this number are accepted and nothing is answered any more.
        oom_after: the request of this number makes the process take memory until it is killed.
        fail_start: the server exits 1 before it listens, as when no memory is left for the cache.
        flip_rate: probability per token that an answer leaves the base answer.
        drop_citations: share of the citations that are lost in long prompts.
        drop_citations_beyond: prompts of more tokens than this count as long for that.
        break_json: share of JSON answers that are corrupt.
        refuse: share of harmless prompts that are refused.
        drift: nats per token by which the log-likelihood of a given text falls.
    """

    decode_slowdown: float = 1.0
    prefill_slowdown: float = 1.0
    crowd_slowdown: float = 1.0
    ignore_dtype: bool = False
    error_rate: float = 0.0
    exit_after: int | None = None
    exit_at_kv_usage: float | None = None
    exit_at_prompt_tokens: int | None = None
    hang_after: int | None = None
    oom_after: int | None = None
    fail_start: bool = False
    flip_rate: float | None = None
    drop_citations: float | None = None
    drop_citations_beyond: int | None = None
    break_json: float | None = None
    refuse: float | None = None
    drift: float | None = None


def _factor(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1000:
        msg = "a factor above 0, at most 1000"
        raise ValueError(msg)
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        msg = "a share from 0 to 1"
        raise ValueError(msg)
    return value


def _nats(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 10:
        msg = "nats per token from 0 to 10"
        raise ValueError(msg)
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        msg = "a whole number, 0 or more"
        raise ValueError(msg)
    return value


_VALUED: dict[str, tuple[Callable[[str], float | int], str]] = {
    "decode_slowdown": (_factor, "a factor above 0, at most 1000, e.g. decode_slowdown=3"),
    "prefill_slowdown": (_factor, "a factor above 0, at most 1000, e.g. prefill_slowdown=3"),
    "crowd_slowdown": (_factor, "a factor above 0, at most 1000, e.g. crowd_slowdown=4"),
    "error_rate": (_share, "a share from 0 to 1, e.g. error_rate=0.2"),
    "exit_after": (_count, "a number of requests, e.g. exit_after=100"),
    "exit_at_kv_usage": (_share, "a share from 0 to 1, e.g. exit_at_kv_usage=0.9"),
    "exit_at_prompt_tokens": (_count, "a number of tokens, e.g. exit_at_prompt_tokens=4096"),
    "hang_after": (_count, "a number of requests, e.g. hang_after=50"),
    "oom_after": (_count, "a number of requests, e.g. oom_after=50"),
    "flip_rate": (_share, "a share from 0 to 1, e.g. flip_rate=0.02"),
    "drop_citations": (_share, "a share from 0 to 1, e.g. drop_citations=0.5"),
    "drop_citations_beyond": (_count, "a number of tokens, e.g. drop_citations_beyond=512"),
    "break_json": (_share, "a share from 0 to 1, e.g. break_json=0.3"),
    "refuse": (_share, "a share from 0 to 1, e.g. refuse=0.2"),
    "drift": (_nats, "nats per token from 0 to 10, e.g. drift=0.1"),
}
_PLAIN = ("ignore_dtype", "fail_start")
NAMES = (*_VALUED, *_PLAIN)


def parse(text: str, dtype: str) -> Faults:
    """Return the faults that apply to a dtype.

    Raises:
        FaultSyntaxError: any part is wrong, also one for another dtype.
    """
    faults = Faults()
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        target, colon, listed = part.partition(":")
        target = target.strip()
        if not colon:
            msg = f"KVSIM_FAULTS: {part!r} names no dtype; write dtype:fault, or *:{part}"
            raise FaultSyntaxError(msg)
        if target != "*" and target not in DTYPES:
            known = ", ".join(DTYPES)
            msg = f"KVSIM_FAULTS: unknown dtype {target!r} in {part!r}; choose * or one of {known}"
            raise FaultSyntaxError(msg)
        for fault in listed.split(","):
            changed = _apply(faults, fault.strip(), part)
            if target in ("*", dtype):
                faults = changed
    return faults


def _apply(faults: Faults, fault: str, part: str) -> Faults:
    name, equals, value = (piece.strip() for piece in fault.partition("="))
    if name in _PLAIN:
        if equals:
            msg = f"KVSIM_FAULTS: {name} takes no value, got {fault!r} in {part!r}"
            raise FaultSyntaxError(msg)
        return replace(faults, **{name: True})
    if name not in _VALUED:
        msg = f"KVSIM_FAULTS: unknown fault {fault!r} in {part!r}; choose from {', '.join(NAMES)}"
        raise FaultSyntaxError(msg)
    read, wanted = _VALUED[name]
    try:
        return replace(faults, **{name: read(value)})  # type: ignore[arg-type]
    except ValueError:
        msg = f"KVSIM_FAULTS: {fault!r} in {part!r} is wrong; {name} takes {wanted}"
        raise FaultSyntaxError(msg) from None
