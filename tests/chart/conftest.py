"""The chart, rendered by a real Helm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from kvlocal import chart

Documents = list[dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def _helm() -> None:
    chart.ensure()


@pytest.fixture(scope="session")
def rendered() -> Callable[..., Documents]:
    """Renders the chart with values and returns its documents."""

    def render(values: dict[str, Any] | None = None, release: str = chart.RELEASE) -> Documents:
        text = chart.render(values, release=release)
        return [document for document in yaml.safe_load_all(text) if document]

    return render
