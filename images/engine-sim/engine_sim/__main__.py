"""``python -m engine_sim MODEL ...`` is ``vllm serve MODEL ...``."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence as Many

from . import ENGINE_VERSION, args, settings
from .serving import serve

LOG = logging.getLogger("vllm")


def vllm() -> int:
    """Run as the command ``vllm`` does and return the exit code."""
    return run(args.parse(sys.argv[1:]))


def api_server() -> int:
    """Run as ``python -m vllm.entrypoints.openai.api_server`` does and return the exit code."""
    return run(args.parse(sys.argv[1:], command=False))


def main(arguments: Many[str]) -> int:
    """Run as ``vllm serve`` does, the word ``serve`` may be left out; return the exit code."""
    spoken = arguments[:1] in (["serve"], ["-h"], ["--help"])
    return run(args.parse(arguments if spoken else ["serve", *arguments]))


def run(options: argparse.Namespace) -> int:
    """Run the server and return the exit code: 0 at its end, 1 when it cannot start."""
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stdout,
        format="%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s",
        datefmt="%m-%d %H:%M:%S",
    )
    try:
        chosen = settings.resolve(options, os.environ)
    except settings.StartError as error:
        LOG.error("EngineCore failed to start: %s", error)
        return 1
    LOG.info("vLLM API server version %s, simulated GPU", ENGINE_VERSION)
    LOG.info("Using %s attention backend", chosen.effective.backend)
    if chosen.dtype.name.startswith("fp8"):
        LOG.warning("Using KV cache scaling factor 1.0 for %s", chosen.dtype.name)
    if not chosen.cost.measured:
        LOG.warning("speed of %s is an estimate, it was not recorded", chosen.effective.name)
    if chosen.faults != type(chosen.faults)():
        LOG.warning("KVSIM_FAULTS applies: %s", chosen.faults)
    if chosen.faults.fail_start:
        LOG.error("EngineCore failed to start: No available memory for the cache blocks.")
        return 1
    LOG.info("GPU KV cache size: %s tokens", f"{chosen.capacity:,}")
    LOG.info(
        "Maximum concurrency for %s tokens per request: %.2fx",
        f"{chosen.max_model_len:,}",
        chosen.concurrency,
    )
    asyncio.run(serve(chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
