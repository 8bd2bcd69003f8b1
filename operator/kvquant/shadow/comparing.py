"""Two answers to one prompt, compared. Pure.

Every difference is that of the second answer from the first: the baseline's answer is the first,
and 1 is harm done by the second. The same is done for two answers of the baseline, which tells how
much of the difference is the engine's own noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvquant.core.shadow_settings import CITATIONS, ENDINGS, EXACT, JSON, REFUSALS, TOOLS
from kvquant.shadow import citations, schemas
from kvquant.shadow.answers import Answer, ToolCall
from kvquant.shadow.asking import Asked
from kvquant.shadow.refusals import refuses


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two answers differ in.

    Attributes:
        signals: Differences by signal, each in {-1, 0, 1}; a signal that the prompt gives no
            occasion for is missing.
        first_character: Where the texts begin to differ; None: they are the same.
        first_token: The same in tokens; None: the same, or the engines did not tell their ids.
        length_ratio: Tokens of the second answer by those of the first; None: the first has none.
        json_valid: Whether each is the JSON that was asked for; None: none was.
        calls_valid: Whether the calls of each are of offered tools, with arguments that fit.
        markers_kept: How many of the prompt's citation markers each has.
        refuses: Whether each declines.
        cut: Whether each ran into the cap of tokens.
    """

    signals: Mapping[str, float]
    first_character: int | None = None
    first_token: int | None = None
    length_ratio: float | None = None
    json_valid: tuple[bool, bool] | None = None
    calls_valid: tuple[bool, bool] | None = None
    markers_kept: tuple[int, int] | None = None
    refuses: tuple[bool, bool] = (False, False)
    cut: tuple[bool, bool] = field(default=(False, False))


def compare(asked: Asked, first: Answer, second: Answer) -> Comparison:
    """Return what a second answer differs in from a first one.

    Args:
        asked: What the prompt asked for.
        first: The baseline's answer.
        second: The canary's, or the baseline's once more.
    """
    declined = (refuses(first), refuses(second))
    cut = (first.cut, second.cut)
    signals = {
        EXACT: float(_differs(first, second)),
        REFUSALS: float(declined[1]) - declined[0],
        ENDINGS: float(cut[1]) - cut[0],
    }
    valid = None
    if asked.wants_json:
        valid = (_is_json(asked, first), _is_json(asked, second))
        # Two answers that were both cut by the cap of the shadow were both cut by us.
        if not all(cut):
            signals[JSON] = float(valid[0]) - valid[1]
    fitting = None
    if asked.tools:
        fitting = (_calls_fit(asked, first), _calls_fit(asked, second))
        signals[TOOLS] = float(calls(asked, first) != calls(asked, second))
    kept = None
    if asked.markers:
        ours, theirs = (citations.kept(asked.markers, a.text) for a in (first, second))
        kept = (len(ours), len(theirs))
        if ours or theirs:
            lost, won = len(ours - theirs), len(theirs - ours)
            signals[CITATIONS] = float((lost > won) - (lost < won))
    return Comparison(
        signals=signals,
        first_character=_first_difference(first.whole, second.whole),
        first_token=_first_token(first, second),
        length_ratio=_ratio(first, second),
        json_valid=valid,
        calls_valid=fitting,
        markers_kept=kept,
        refuses=declined,
        cut=cut,
    )


def _differs(first: Answer, second: Answer) -> bool:
    return first.whole != second.whole or first.calls != second.calls


def _is_json(asked: Asked, answer: Answer) -> bool:
    """Return whether an answer is what was asked for; a tool call in its stead is no answer yet."""
    if answer.calls and not answer.text.strip():
        return True
    valid, value = schemas.document(answer.text)
    return valid and schemas.fits(value, asked.schema)


def calls(asked: Asked, answer: Answer) -> Counter[tuple[str, str]]:
    """Return names and arguments of the calls in one spelling; their order does not matter."""
    return Counter((call.name, _arguments(asked, call)) for call in answer.calls)


def _arguments(asked: Asked, call: ToolCall) -> str:
    valid, value = schemas.document(call.arguments or "{}")
    return spelt(asked, call.name, value) if valid else call.arguments


def spelt(asked: Asked, tool: str, arguments: object) -> str:
    """Return the one spelling of a tool's arguments."""
    return schemas.canonical(schemas.with_defaults(arguments, asked.tools.get(tool)))


def _calls_fit(asked: Asked, answer: Answer) -> bool:
    for call in answer.calls:
        valid, value = schemas.document(call.arguments or "{}")
        if call.name not in asked.tools or not valid:
            return False
        if not schemas.fits(value, asked.tools[call.name]):
            return False
    return True


def _first_token(first: Answer, second: Answer) -> int | None:
    if not first.answer_ids or not second.answer_ids:
        return None
    return _first_difference(first.answer_ids, second.answer_ids)


def _first_difference(first: Any, second: Any) -> int | None:
    """Return the index from which on two sequences differ."""
    if first == second:
        return None
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _ratio(first: Answer, second: Answer) -> float | None:
    if first.answer_tokens and second.answer_tokens:
        return second.answer_tokens / first.answer_tokens
    return len(second.whole) / len(first.whole) if first.whole else None
