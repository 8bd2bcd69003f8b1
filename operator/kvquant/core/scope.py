"""Where among all series of a Prometheus those of this cluster's pods are found."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*"
_MATCHER = rf'{_LABEL}\s*(?:=~|!~|!=|=)\s*"(?:[^"\\\n]|\\.)*"'
MATCHERS = re.compile(rf"\s*{_MATCHER}(?:\s*,\s*{_MATCHER})*\s*,?\s*")
"""Matchers as PromQL has them between the braces of a selector; at least one."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How Prometheus labels what it scrapes here.

    Attributes:
        namespace: Label that holds a pod's namespace.
        pod: Label that holds a pod's name.
        matchers: More matchers for every selector, as in `cluster="prod-1",job=~"vllm.*"`.
    """

    namespace: str = "namespace"
    pod: str = "pod"
    matchers: str = ""

    def __post_init__(self) -> None:
        """Refuse what would make every query an error.

        Raises:
            ValueError: A label's name or the matchers are not PromQL.
        """
        for label in (self.namespace, self.pod):
            if not re.fullmatch(_LABEL, label):
                raise ValueError(f"{label!r} is no name of a label")
        if self.matchers.strip() and not MATCHERS.fullmatch(self.matchers):
            raise ValueError(
                f'{self.matchers!r} are no matchers: write them as in cluster="prod-1",job="vllm"'
            )

    def select(self, *matchers: str) -> str:
        """Return the selector of the given matchers, within this scope."""
        own = self.matchers.strip().rstrip(",").rstrip()
        return "{" + ",".join([*matchers, *([own] if own else [])]) + "}"


EVERYWHERE = Scope()
"""The labels that Prometheus' usual configurations give to pods, and no further matchers."""
