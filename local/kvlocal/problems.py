"""The one exception of this package."""

from __future__ import annotations


class LocalError(Exception):
    """Something cannot be set up here; the message says what, and the remedy."""
