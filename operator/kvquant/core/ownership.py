"""To whom an object of the API server's belongs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def owners_of(obj: Mapping[str, Any]) -> set[str]:
    """Return the uids of an object's owners, with whom it is removed."""
    references = (obj.get("metadata") or {}).get("ownerReferences") or ()
    return {str(one["uid"]) for one in references if one.get("uid")}
