"""The user's own signals for a backtest: the list of `spec.analysis.custom`, from a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kvquant.api.custom_signals import BUILT_IN, CustomSignal
from kvquant.api.v1alpha1 import AnalysisSettings
from kvquant.cli.errors import Failure

OPTION = "--custom"


def added(analysis: AnalysisSettings, filename: str | None) -> AnalysisSettings:
    """Return the settings with the signals of a file besides those that they have.

    Args:
        analysis: Of a manifest, or the usual ones.
        filename: YAML with a list of signals, at its top or under `custom`; None for no file.

    Raises:
        Failure: The file holds no such list, or a signal is one that a cluster would refuse.
    """
    where = "--filename" if filename is None else f"{OPTION} {filename}"
    try:
        custom = [one.model_dump(by_alias=True) for one in analysis.custom]
        custom += [] if filename is None else _listed(filename)
        fields = {**analysis.model_dump(by_alias=True), "custom": custom}
        found = AnalysisSettings.model_validate(fields)
        _check(found.custom)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Failure(f"{where}: {place}: {first['msg']}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise Failure(f"{where}: {' '.join(str(error).split())}") from error
    return found


def _listed(filename: str) -> list[Any]:
    found = yaml.safe_load(Path(filename).read_text())
    if isinstance(found, dict) and set(found) == {"custom"}:
        found = found["custom"]
    if not isinstance(found, list) or not found:
        raise ValueError(
            "write a list of signals as spec.analysis.custom has them, each with name, ratio or "
            "latency, and tolerancePercent (a whole manifest goes to --filename)"
        )
    return found


def _check(custom: tuple[CustomSignal, ...]) -> None:
    """Refuse what else a cluster's API server would.

    Raises:
        ValueError: There is such a thing; the message names the signal.
    """
    for name, count in Counter(one.name for one in custom).items():
        if count > 1:
            raise ValueError(f"{name}: names must differ from each other, with --filename's too")
        if name in BUILT_IN:
            raise ValueError(f"{name}: that is a signal which the operator has itself")
    for one in custom:
        if one.latency is not None and one.direction != "increase":
            raise ValueError(f"{one.name}: direction is for a ratio; of a latency, longer is worse")
