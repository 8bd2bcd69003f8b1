"""What the operator wrote for this process."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from kvquant.core.shadow_settings import ENGINE_KEY_FILE, ShadowSettings
from kvquant.errors import KVQuantError

KEY_FILE = "KVQUANT_SHADOW_KEY_FILE"
"""Environment variable that names a file with the key of the placeholders. Without it the key is
random and dies with the process: nobody can try values against the placeholders of a log."""
SHORTEST_KEY = 16


class SettingsError(KVQuantError):
    """Settings that cannot be used; the message names the remedy."""


def read(path: Path) -> ShadowSettings:
    """Return the settings in a file.

    Raises:
        SettingsError: There are none that this version understands.
    """
    try:
        return ShadowSettings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        wrong = ", ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the document'}: {problem['type']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(f"{path} is not what this version reads: {wrong}") from None


def placeholder_key(environment: Mapping[str, str] = os.environ) -> bytes:
    """Return the key of the placeholders.

    Raises:
        SettingsError: The named file cannot be read, or holds too short a key.
    """
    named = environment.get(KEY_FILE)
    if not named:
        return secrets.token_bytes(32)
    key = _contents(KEY_FILE, named)
    if len(key) < SHORTEST_KEY:
        raise SettingsError(f"{KEY_FILE}: the key must have at least {SHORTEST_KEY} bytes")
    return key


def engine_key(environment: Mapping[str, str] = os.environ) -> str:
    """Return the engines' API key; empty: they ask for none.

    Raises:
        SettingsError: The named file cannot be read, or holds no key.
    """
    named = environment.get(ENGINE_KEY_FILE)
    if not named:
        return ""
    key = _contents(ENGINE_KEY_FILE, named).decode("ascii", "replace")
    if not key.isprintable() or not key.isascii() or not key:
        raise SettingsError(f"{ENGINE_KEY_FILE}: it does not hold one line of ASCII")
    return key


def _contents(variable: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"{variable}: {path} cannot be read: {error.strerror}") from None
