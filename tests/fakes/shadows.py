"""What a shadow service has counted, as a test makes it up."""

from __future__ import annotations

from kvquant.core.quality import JUDGED
from kvquant.core.shadow_reading import ShadowEvidence, Sums
from kvquant.core.shadow_settings import CANARY_PAIR, EXACT, NOISE_PAIR


def pairs(count: int, **spoilt: float) -> ShadowEvidence:
    """Return that many pairs, of which the named shares are worse for the canary."""
    found = ShadowEvidence(received={"0-4KiB": count}, runs=1)
    for signal in (*JUDGED, EXACT):
        harm = count * spoilt.get(signal, 0.0)
        found.sums[CANARY_PAIR, signal, "0-4KiB"] = Sums(count, harm, 0.0, harm)
        found.sums[NOISE_PAIR, signal, "0-4KiB"] = Sums(count / 2, 0.0, 0.0, 0.0)
    return found
