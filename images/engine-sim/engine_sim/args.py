"""The command line, as ``vllm serve`` and vLLM's ``api_server`` module take it."""

import argparse
import re
from collections.abc import Sequence as Many

from .kvdtype import DTYPES

# Flags of vLLM that change nothing the simulation models. They are listed one by one, because vLLM
# refuses a flag that it does not know and a rollout has to see that refusal here too.
_IGNORED_VALUES = (
    "--attention-backend", "--chat-template", "--compilation-config", "--config-format",
    "--data-parallel-size", "--distributed-executor-backend", "--download-dir", "--dtype",
    "--generation-config", "--hf-overrides", "--limit-mm-per-prompt", "--load-format",
    "--max-log-len", "--max-logprobs", "--override-generation-config", "--pipeline-parallel-size",
    "--prefix-caching-hash-algo", "--quantization", "--reasoning-parser", "--revision",
    "--root-path", "--scheduling-policy", "--seed", "--stream-interval", "--tokenizer",
    "--tokenizer-mode", "--tool-call-parser", "--uvicorn-log-level",
)  # fmt: skip
_IGNORED_SWITCHES = (
    "--async-scheduling", "--calculate-kv-scales", "--disable-custom-all-reduce",
    "--disable-log-requests", "--disable-log-stats", "--disable-uvicorn-access-log",
    "--enable-auto-tool-choice", "--enable-chunked-prefill", "--enable-log-requests",
    "--enable-prompt-tokens-details", "--enforce-eager", "--kv-cache-metrics",
    "--trust-remote-code",
)  # fmt: skip
_SUFFIXES = {
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
}  # fmt: skip


def _whole(text: str) -> int:
    """Read an integer as vLLM does: ``1k`` is 1000, ``1K`` is 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", text)
    if not match:
        msg = f"expected a whole number such as 4096, 4k or 6G, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return int(float(match.group(1)) * _SUFFIXES.get(match.group(2), 1))


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        msg = f"expected a number above 0, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        msg = f"expected a share above 0, at most 1, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return value


def _add_flags(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model and server")
    model.add_argument("--model", default="meta-llama/Llama-3.1-8B", help="name of the model")
    model.add_argument("--served-model-name", nargs="+", help="names that requests may use")
    model.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104
    model.add_argument("--port", type=int, default=8000, help="port to listen on")
    model.add_argument("--api-key", nargs="*", default=[], help="accepted bearer tokens")
    model.add_argument(
        "--shutdown-timeout",
        type=float,
        default=0.0,
        help="seconds that requests in flight get after SIGTERM; 0 aborts them, as vLLM does",
    )
    cache = parser.add_argument_group("KV cache")
    cache.add_argument("--kv-cache-dtype", choices=tuple(DTYPES), default="auto")
    cache.add_argument("--kv-cache-dtype-skip-layers", nargs="+", default=[])
    cache.add_argument("--kv-cache-memory-bytes", type=_positive, help="size of the KV cache")
    cache.add_argument("--gpu-memory-utilization", type=_share, default=0.92)
    cache.add_argument("--num-gpu-blocks-override", type=_positive)
    cache.add_argument("--block-size", type=_positive, help="tokens of one KV block (16)")
    cache.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True
    )
    limits = parser.add_argument_group("scheduler")
    limits.add_argument("--max-model-len", type=_positive, help="longest context, in tokens")
    limits.add_argument("--max-num-seqs", type=_positive, default=1024)
    limits.add_argument("--max-num-batched-tokens", type=_positive, default=8192)
    limits.add_argument("--watermark", type=float, default=0.0)
    limits.add_argument(
        "--scheduler-reserve-full-isl", action=argparse.BooleanOptionalAction, default=True
    )
    limits.add_argument("--tensor-parallel-size", "-tp", type=_positive, default=1)
    shown = parser.add_argument_group("provenance")
    shown.add_argument(
        "--fingerprint-mode", choices=("full", "hash", "custom", "none"), default="full"
    )
    shown.add_argument("--fingerprint-value", help="system_fingerprint of the mode custom")
    ignored = parser.add_argument_group("accepted without effect")
    for flag in _IGNORED_VALUES:
        ignored.add_argument(flag, help=argparse.SUPPRESS)
    for flag in _IGNORED_SWITCHES:
        ignored.add_argument(flag, action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)


def _dashed(argument: str) -> str:
    """Spell a flag with dashes; vLLM takes underscores too."""
    name, equals, value = argument.partition("=")
    if name.startswith("--"):
        name = name.replace("_", "-")
    return name + equals + value


def parse(arguments: Many[str], *, command: bool = True) -> argparse.Namespace:
    """Read the command line; as argparse does, a wrong one ends the process with exit code 2.

    Args:
        arguments: what follows the program's name.
        command: whether they are those of ``vllm``, ``serve MODEL --flag``, and not those of the
            ``api_server`` module, ``--model MODEL --flag``.
    """
    given = [_dashed(argument) for argument in arguments]
    parser = argparse.ArgumentParser(
        prog="vllm" if command else "api_server.py",
        allow_abbrev=False,
        description="vLLM, with a simulated GPU",
        epilog=(
            "Environment: KVSIM_TIME_SCALE, KVSIM_STARTUP_SECONDS, KVSIM_FAULTS, KVSIM_SEED, "
            "KVSIM_OOM_BYTES, KVSIM_LONG_TOKENS."
        ),
    )
    flags = parser
    if command:
        commands = parser.add_subparsers(dest="command", required=True)
        flags = commands.add_parser(
            "serve",
            allow_abbrev=False,
            help="serve a model over an OpenAI-compatible API",
            epilog=parser.epilog,
        )
        flags.add_argument("model_tag", nargs="?", help="name of the model")
    _add_flags(flags)
    chosen = parser.parse_args(given)
    if command and chosen.model_tag:
        chosen.model = chosen.model_tag
    if chosen.fingerprint_mode == "custom" and not chosen.fingerprint_value:
        flags.error("--fingerprint-mode custom needs --fingerprint-value")
    if not 0 <= chosen.watermark < 1:
        flags.error("argument --watermark: expected a share from 0 to below 1")
    skipped = chosen.kv_cache_dtype_skip_layers
    if not all(layer.isdigit() or layer == "sliding_window" for layer in skipped):
        flags.error("argument --kv-cache-dtype-skip-layers: layer numbers or sliding_window")
    return chosen
