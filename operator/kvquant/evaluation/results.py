"""What became of each example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvquant.evaluation.kinds import Kind
from kvquant.evaluation.measures import Harm

BASELINE, CANARY, AGAIN = "baseline", "canary", "baselineAgain"
UNASKED = "deadline"
"""Why an example has no answers that the run's deadline left no time for."""

LONGEST_TEXT = 4000
"""Characters of a prompt's end and of an answer that are kept to be shown."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an arm answered, for people.

    Attributes:
        text: The answer, cut.
        failure: Why there is none, in a word; empty: there is one.
        seconds: How long it took.
        tokens: Length of the answer.
        fingerprint: `system_fingerprint`.
    """

    text: str = ""
    failure: str = ""
    seconds: float = 0.0
    tokens: int = 0
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One example, asked.

    Attributes:
        id: Of the example.
        endpoint: That was asked.
        bucket: Bucket of its length.
        kind: What can go wrong with it.
        harms: Of the baseline's and the canary's answer, by measure.
        noise: Of two answers of the baseline, by measure; empty: it was asked once.
        said: What each arm answered.
        refused: The engines found fault with the request itself.
        unscored: Why the drift is not known, in a word; empty: it is known.
        first_token: At which token the answers part; None: nowhere, or not known.
        first_character: The same in characters.
        length_ratio: Tokens of the canary's answer by those of the baseline's.
        prompt: End of the prompt, for people.
    """

    id: str
    endpoint: str
    bucket: str
    kind: Kind
    harms: Mapping[str, Harm] = field(default_factory=dict)
    noise: Mapping[str, Harm] = field(default_factory=dict)
    said: Mapping[str, Said] = field(default_factory=dict)
    refused: bool = False
    unscored: str = ""
    first_token: int | None = None
    first_character: int | None = None
    length_ratio: float | None = None
    prompt: str = ""

    @property
    def answered(self) -> bool:
        """Whether there is something to compare: the baseline answered."""
        return BASELINE in self.said and not self.said[BASELINE].failure
