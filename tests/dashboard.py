"""The Grafana dashboard's queries, as Grafana would send them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kvlocal import chart

DASHBOARD: dict[str, Any] = json.loads((chart.CHART / "files" / "dashboard.json").read_text())
VARIABLES = {"$namespace": ".*", "$rollout": ".*"}


def panels() -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Yield each panel's title with each of its queries, with all of everything chosen."""
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            yield panel["title"], text
