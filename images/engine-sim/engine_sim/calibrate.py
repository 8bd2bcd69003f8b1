"""Shows how close the simulation comes to the recordings: ``python -m engine_sim.calibrate``."""

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path

from .cost import cost_of
from .fit import BLOCK_SIZE, fit, recorded_blocks, serve
from .recording import Outcome, Recording, load
from .replay import outcome

RECORDED = ("auto", "fp8", "int8_per_token_head")
_HEAD = (
    "| KV dtype | p50 e2e (s) | p99 e2e (s) | mean TTFT (s) | output tok/s | capacity (tokens) "
    "| preemptions | finished |"
)


def simulate(recording: Recording) -> Outcome:
    """Replay a recording with the engine's own parameters for its dtype."""
    cut = recording.outcome.finished < len(recording.arrivals)
    sequences = serve(recording, cost_of(recording.dtype))
    capacity = recorded_blocks(recording.dtype) * BLOCK_SIZE
    return outcome(sequences, capacity, recording.duration if cut else math.inf)


def table(folder: Path) -> str:
    """Return the comparison as Markdown, each cell ``recorded / simulated (difference)``."""
    rows = [_HEAD, "|---" * 8 + "|"]
    for dtype in RECORDED:
        recording = load(folder, dtype)
        rows.append(_row(recording.dtype, recording.outcome, simulate(recording)))
    return "\n".join(rows)


def _row(dtype: str, recorded: Outcome, simulated: Outcome) -> str:
    def measured(theirs: float, ours: float) -> str:
        return f"{theirs:.1f} / {ours:.1f} ({100 * (ours / theirs - 1):+.0f} %)"

    cells = (
        dtype,
        measured(recorded.p50, simulated.p50),
        measured(recorded.p99, simulated.p99),
        measured(recorded.first_token, simulated.first_token),
        measured(recorded.tokens_per_second, simulated.tokens_per_second),
        f"{recorded.capacity:,} / {simulated.capacity:,}",
        f"{recorded.preemptions} / {simulated.preemptions}",
        f"{recorded.finished} / {simulated.finished}",
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table, or fit the parameters anew."""
    parser = argparse.ArgumentParser(
        prog="python -m engine_sim.calibrate",
        description=(
            "Replay the recorded arrivals through the simulated scheduler on a virtual clock and "
            "print each figure as recorded / simulated. Takes under a second."
        ),
        epilog="example: python -m engine_sim.calibrate --recordings tests/data/recordings/h200",
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        default=Path("tests/data/recordings/h200"),
        help="folder of <dtype>.metrics.gz and <dtype>.requests.json.gz (default: %(default)s)",
    )
    parser.add_argument(
        "--fit",
        type=int,
        metavar="ROUNDS",
        help="first search for better parameters for this many rounds (60 take two minutes)",
    )
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    if not chosen.recordings.is_dir():
        parser.error(f"--recordings: no folder {chosen.recordings}; run from the repository's root")
    if chosen.fit:
        fitted = fit(chosen.recordings, {dtype: cost_of(dtype) for dtype in RECORDED}, chosen.fit)
        for dtype, cost in fitted.items():
            sys.stdout.write(f"{dtype}: {cost}\n")
    sys.stdout.write(table(chosen.recordings) + "\n")


if __name__ == "__main__":
    main()
