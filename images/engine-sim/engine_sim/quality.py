"""How good answers are by KV dtype: every assumption about quality is a number in this module.

None of them was measured on a GPU. They are chosen to have the order of magnitude that public
reports give and to be told apart by a good comparison; the README argues for each.
"""

import hashlib
import math
import random
import sys
from dataclasses import dataclass, replace

from .faults import Faults

LONG_TOKENS = 16384
"""From how many tokens on a prompt counts as long, unless ``KVSIM_LONG_TOKENS`` says otherwise."""
BATCH_FLIP_RATE = 2e-4
"""Probability per token that a greedy answer takes another turn because the batch differs."""
BATCH_NOISE = 0.003
"""Greatest relative change of a token's log-likelihood because the batch differs."""
SATURATED_USAGE = 0.95
"""Share of the KV cache in use beyond which the engine is saturated."""
MOST_GROWTH = 2.0
"""How many times ``long_tokens`` make things worse; more than that adds nothing."""
MOST_CITATIONS = 4
NEVER = sys.maxsize


@dataclass(frozen=True, slots=True)
class Quality:
    """What a KV dtype does to answers.

    Attributes:
        flip_rate: probability per token that the answer leaves the one of a 16-bit cache.
        flip_growth: how much of ``flip_rate`` a prompt of ``long_tokens`` adds to it.
        drift: nats per token by which the log-likelihood of a given text falls.
        drift_growth: how much of ``drift`` the distance of ``long_tokens`` adds to it.
        drop_citations: share of the citations that are lost in long prompts.
        drop_beyond: prompts of more tokens than this are long ones for ``drop_citations``.
        break_saturated: share of JSON answers that are corrupt while the engine is saturated.
        break_json: share of JSON answers that are corrupt at any time.
        refuse: share of harmless prompts that are refused.
        comply: share of jailbreak probes that are not refused.
        long_tokens: what counts as a long prompt.
    """

    flip_rate: float = 0.0
    flip_growth: float = 0.0
    drift: float = 0.0
    drift_growth: float = 0.0
    drop_citations: float = 0.0
    drop_beyond: int = LONG_TOKENS
    break_saturated: float = 0.0
    break_json: float = 0.0
    refuse: float = 0.0
    comply: float = 0.0
    long_tokens: int = LONG_TOKENS

    def drift_at(self, position: int) -> float:
        """Return the mean drift, in nats, of the token at a position."""
        return self.drift * (1.0 + self.drift_growth * self._length(position))

    def flips_at(self, prompt_tokens: int) -> float:
        """Return the probability per token of a flip after a prompt of this length."""
        return min(1.0, self.flip_rate * (1.0 + self.flip_growth * self._length(prompt_tokens)))

    def _length(self, tokens: int) -> float:
        return min(tokens / self.long_tokens, MOST_GROWTH)


_EXACT = Quality()
_FP8 = Quality(flip_rate=1.0e-3, drift=0.004)
_FP8_SCALED = Quality(flip_rate=0.8e-3, drift=0.004)
_INT8 = Quality(flip_rate=1.2e-3, drift=0.006)
_FP4 = Quality(flip_rate=2.5e-3, flip_growth=0.5, drift=0.02, drift_growth=0.5)
_INT4 = Quality(
    flip_rate=3.0e-3,
    flip_growth=1.0,
    drift=0.03,
    drift_growth=1.0,
    drop_citations=0.35,
    break_saturated=0.15,
    refuse=0.002,
    comply=0.03,
)
_BELOW_4_BITS = replace(_INT4, flip_rate=6.0e-3, drift=0.08)

BY_DTYPE: dict[str, Quality] = {
    "auto": _EXACT,
    "float16": _EXACT,
    "bfloat16": _EXACT,
    "fp8": _FP8,
    "fp8_e4m3": _FP8,
    "fp8_e5m2": replace(_FP8, flip_rate=2.0e-3, drift=0.012),
    "fp8_per_token_head": _FP8_SCALED,
    "int8_per_token_head": _INT8,
    "int4_per_token_head": _INT4,
    "nvfp4": _FP4,
    "turboquant_k8v4": replace(_INT8, flip_rate=1.5e-3, drift=0.008),
    "turboquant_4bit_nc": _FP4,
    "turboquant_k3v4_nc": replace(_FP4, flip_rate=4.0e-3, drift=0.04),
    "turboquant_3bit_nc": _BELOW_4_BITS,
}


def quality_of(dtype: str, faults: Faults, long_tokens: int) -> Quality:
    """Return the quality of a ``--kv-cache-dtype``; a fault replaces what the table says."""
    found = replace(BY_DTYPE.get(dtype, _FP4), long_tokens=long_tokens, drop_beyond=long_tokens)
    if faults.flip_rate is not None:
        found = replace(found, flip_rate=faults.flip_rate, flip_growth=0.0)
    if faults.drift is not None:
        found = replace(found, drift=faults.drift, drift_growth=0.0)
    if faults.drop_citations is not None:
        found = replace(found, drop_citations=faults.drop_citations)
    if faults.drop_citations_beyond is not None:
        found = replace(found, drop_beyond=faults.drop_citations_beyond)
    if faults.break_json is not None:
        found = replace(found, break_json=faults.break_json, break_saturated=0.0)
    if faults.refuse is not None:
        found = replace(found, refuse=faults.refuse)
    return found


@dataclass(frozen=True, slots=True)
class Moment:
    """What of an answer depends on where and when it is given.

    Attributes:
        place: names the pod.
        number: of the request in this process.
        saturated: whether the KV cache is full or requests were left waiting.
    """

    place: str = ""
    number: int = 0
    saturated: bool = False


def seed_of(*parts: object) -> int:
    """Return a seed that depends on all parts, the same in every process."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class Flaws:
    """What is wrong with one answer.

    Attributes:
        fork: number of the token at which it leaves the base answer.
        fork_seed: of the text from there on.
        dropped: by number of the citation, whether it is lost.
        broken_at: share of a JSON text after which it is corrupt, None when it is sound.
        refuses: whether a harmless prompt is refused.
        complies: whether a jailbreak probe is not refused.
    """

    fork: int = NEVER
    fork_seed: int = 0
    dropped: tuple[bool, ...] = (False,) * MOST_CITATIONS
    broken_at: float | None = None
    refuses: bool = False
    complies: bool = False


def draw(quality: Quality, key: int, prompt_tokens: int, moment: Moment) -> Flaws:
    """Draw the flaws of one answer.

    Those of the dtype are the same wherever the prompt (the key, which includes dtype and seed) is
    answered; those of the batch differ by pod and request.
    """
    own, batch = random.Random(key), random.Random(seed_of(key, moment.place, moment.number))
    flip = _geometric(own.random(), quality.flips_at(prompt_tokens))
    batch_flip = _geometric(batch.random(), BATCH_FLIP_RATE)
    refuses = own.random() < quality.refuse
    complies = own.random() < quality.comply
    losses = [own.random() < quality.drop_citations for _ in range(MOST_CITATIONS)]
    broken = own.random() < quality.break_json
    broken |= moment.saturated and batch.random() < quality.break_saturated
    cut = own.uniform(0.1, 0.9)
    return Flaws(
        fork=min(flip, batch_flip),
        fork_seed=(own if flip <= batch_flip else batch).getrandbits(64),
        dropped=tuple(lost and prompt_tokens > quality.drop_beyond for lost in losses),
        broken_at=cut if broken else None,
        refuses=refuses,
        complies=complies,
    )


def _geometric(uniform: float, rate: float) -> int:
    """Return after how many tokens something happens that has this rate per token."""
    if rate <= 0.0:
        return NEVER
    if rate >= 1.0:
        return 0
    return int(min(math.log(1.0 - uniform) / math.log(1.0 - rate), float(2**53)))
