"""The shadow service's process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import uuid
from pathlib import Path

from kvquant import __version__
from kvquant.core.shadow_settings import METRICS_PORT, PORT, SETTINGS_FILE, ShadowSettings
from kvquant.shadow import discreet
from kvquant.shadow import settings as reading
from kvquant.shadow.log import open_log
from kvquant.shadow.pii import Sanitizer
from kvquant.shadow.service import Service
from kvquant.shadow.settings import SettingsError

logger = logging.getLogger("kvquant.shadow")


def main() -> int:
    """Serve until SIGTERM; return the exit status."""
    arguments = _arguments()
    discreet.configure(arguments.log_level)
    try:
        settings = reading.read(arguments.settings)
        key, engine_key = reading.placeholder_key(), reading.engine_key()
    except SettingsError as error:
        sys.stderr.write(f"kvquant shadow: {error}\n")
        return 2
    return asyncio.run(_serve(arguments, settings, key, engine_key))


async def _serve(
    arguments: argparse.Namespace, settings: ShadowSettings, key: bytes, engine_key: str
) -> int:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.set_exception_handler(discreet.loop_said)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    run = uuid.uuid4().hex
    try:
        sanitizer = Sanitizer(
            key,
            settings.patterns,
            seconds=settings.scan_seconds,
            most_characters=settings.max_body_bytes,
        )
        log = open_log(
            settings.log,
            namespace=settings.namespace,
            rollout=settings.rollout,
            attempt=settings.attempt,
            run=run,
        )
    except ValueError as error:
        sys.stderr.write(f"kvquant shadow: {error}\n")
        return 2
    service = Service(settings, run, sanitizer, log, engine_key=engine_key)
    logger.info(
        "kvquant shadow %s starts for rollout %s/%s, attempt %d, run %s",
        __version__,
        settings.namespace,
        settings.rollout,
        settings.attempt,
        run,
    )
    await service.run(
        arguments.host,
        arguments.port,
        arguments.metrics_port,
        ended,
        lambda: logger.info("listening on %d and %d", service.port, service.metrics_port),
    )
    logger.info("ended")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kvquant.shadow", description=__doc__)
    parser.add_argument("--settings", type=Path, default=Path(SETTINGS_FILE))
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - a pod's address is not known
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT)
    parser.add_argument(
        "--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )
    return parser.parse_args()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # A search for personal data that does not end must not keep the process from ending.
    os._exit(code)
