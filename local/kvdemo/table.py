"""The demo's last word: what the client saw in each stage of each rollout."""

from __future__ import annotations

from collections.abc import Sequence

from kvdemo.load import Outcome, percentile
from kvdemo.watch import Stage

HEADINGS = ("rollout", "stage", "canary", "copied", "requests", "by canary", "errors", "p50", "p99")


def rows(stages: Sequence[Stage], outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Return a row a stage; a request belongs to the stage in which it was sent."""
    table: list[tuple[str, ...]] = []
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        until = following.since if following is not None else float("inf")
        mine = [o for o in outcomes if stage.since <= o.began < until]
        if not mine:
            continue
        table.append(
            (
                stage.rollout,
                stage.label,
                f"{stage.weight} %",
                f"{stage.mirror} %",
                str(len(mine)),
                f"{100 * sum(o.fingerprint == stage.mark for o in mine) / len(mine):.0f} %",
                str(sum(1 for o in mine if o.problem)),
                _seconds(percentile((o.seconds for o in mine), 0.5)),
                _seconds(percentile((o.seconds for o in mine), 0.99)),
            )
        )
    return table


def render(table: Sequence[tuple[str, ...]]) -> str:
    """Return the table as text with aligned columns."""
    lines = [HEADINGS, *table]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    return "\n".join(
        "  "
        + "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
