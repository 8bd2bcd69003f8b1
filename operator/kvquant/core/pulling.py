"""How the pods that the operator makes pull their images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def pull_secrets(secrets: Iterable[str]) -> dict[str, Any]:
    """Return the fields of a pod that name the Secrets for its registry; none without Secrets."""
    named = [{"name": secret} for secret in secrets]
    return {"imagePullSecrets": named} if named else {}
