"""Replay the recorded requests through the simulated engine, and print both beside each other."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import click

from bench.decisions.engine import Pod, Profile, Request
from bench.decisions.profiles import AUTO, FP8, INT8

_RECORDINGS = Path(__file__).parents[2] / "tests" / "data" / "recordings" / "h200"
RECORDED = {"auto": (AUTO, 461.0, 20.8), "fp8": (FP8, 548.0, 13.2), "int8": (INT8, 168.0, 98.1)}
"""Engine, and the output tokens/s and p99 in seconds that were recorded of it."""


def replay(profile: Profile) -> tuple[float, float]:
    """Return output tokens a second and the p99 in seconds.

    The requests are those that the bf16 server was sent; all three were sent the same.
    """
    with gzip.open(_RECORDINGS / "auto.requests.json.gz") as file:
        recorded = sorted(json.load(file)["requests"], key=lambda request: request["t"])
    pod, now, took, tokens = Pod("pod", profile, 1, 0.0), 0.0, [], 0
    while recorded or pod.due_at < math.inf:
        if recorded and recorded[0]["t"] <= pod.due_at:
            now = recorded[0]["t"]
            one = recorded.pop(0)
            pod.arrive(now, Request(now, one["prompt"], one["got"], 0))
            continue
        now = pod.due_at
        for request in pod.due(now):
            took.append(now - request.sent)
            tokens += request.output
    took.sort()
    # As the recording's own summary has it: the value at that rank, without interpolation.
    return tokens / now, took[round(0.99 * (len(took) - 1))]


@click.command(help=__doc__)
def main() -> None:
    """Print the table."""
    click.echo("engine  recorded tok/s  simulated     recorded p99 s  simulated")
    for name, (profile, rate, slowest) in RECORDED.items():
        simulated_rate, simulated_slowest = replay(profile)
        click.echo(
            f"{name:6s}  {rate:14.0f}  {simulated_rate:5.0f} ({simulated_rate / rate - 1:+.0%})"
            f"  {slowest:14.1f}  {simulated_slowest:6.1f} ({simulated_slowest / slowest - 1:+.0%})"
        )


if __name__ == "__main__":
    main()
