"""The plots of a report. All of them share one time axis, so that the eye can go down a line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kvquant.api.v1alpha1 import DecisionKind, DecisionRecord, Verdict
from kvquant.cli.report.measured import Measured, Slice, StepSpan, looks
from kvquant.cli.report.svg import (
    Node,
    Scale,
    TimeScale,
    drawing,
    nice_ceiling,
    seconds,
    value_ticks,
)
from kvquant.core.analysis import Evidence, Report

WIDTH = 960.0
LEFT = 62.0
RIGHT = 132.0
FLAGS = 40.0
"""Height of the strip above the first plot, in which the decisions' numbers stand."""
BOTTOM = 24.0
TOP = 20.0
"""Height of the strip above a plot, in which the steps' weights stand."""

NARROWEST_LABEL = 34.0
FLAG_GAP = 19.0
LABEL_GAP = 15.0

MARK = {
    DecisionKind.PROMOTE: "good",
    DecisionKind.ADOPT: "good",
    DecisionKind.ROLL_BACK: "bad",
    DecisionKind.KILL: "bad",
}

FARTHEST = 150.0
"""Per cent beyond which bounds of evidence are cut off: in the beginning they are wide."""

Value = Callable[[Slice], float | None]


@dataclass(frozen=True, slots=True)
class Flag:
    """A decision that is marked on the plots: its number in the table, and what it did."""

    number: int
    decision: DecisionRecord

    @property
    def style(self) -> str:
        """CSS class of the mark."""
        return MARK.get(self.decision.kind, "plain")


@dataclass(frozen=True, slots=True)
class Chart:
    """A finished plot with its caption."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class _Line:
    """One arm of a plot."""

    arm: str
    points: Sequence[tuple[datetime, float | None, str]]


def flags(decisions: Sequence[DecisionRecord]) -> list[Flag]:
    """Number the decisions that the plots mark: holds change nothing and would hide the rest."""
    marked = [d for d in decisions if d.kind is not DecisionKind.HOLD]
    return [Flag(number, decision) for number, decision in enumerate(marked, 1)]


@dataclass(frozen=True, slots=True)
class Plotter:
    """Draws the plots of one report.

    Attributes:
        measured: What was measured.
        steps: Steps as they were in effect.
        marks: Decisions to mark.
    """

    measured: Measured
    steps: Sequence[StepSpan]
    marks: Sequence[Flag]

    @property
    def _time(self) -> TimeScale:
        shown = self.measured.shown
        return TimeScale(shown.start, shown.end, LEFT, WIDTH - RIGHT)

    @property
    def _look(self) -> str:
        return seconds(timedelta(seconds=self.measured.look_seconds))

    @property
    def _slice(self) -> str:
        return seconds(timedelta(seconds=self.measured.slice_seconds))

    def weights(self, decisions: Sequence[DecisionRecord]) -> Chart:
        """Draw the committed weight and the share of the requests that really arrived."""
        height = 190.0
        svg, y = self._frame(height, 100.0, " %", "canary's share of the traffic", top=FLAGS + TOP)
        time, floor = self._time, height - BOTTOM
        # Before the decision that begins an attempt, the canary has no weight; before one that
        # stands first because the ones before it are forgotten, it had the weight of that one.
        begins = not decisions or decisions[0].kind is DecisionKind.START
        corners = [(time.first, 0 if begins else decisions[0].weight)]
        for decision in sorted(decisions, key=lambda d: d.at):
            corners += [(decision.at, corners[-1][1]), (decision.at, decision.weight)]
        corners.append((time.last, corners[-1][1]))
        outline = " ".join(f"L{time(at):.1f} {y(weight):.1f}" for at, weight in corners)
        svg.add("path", d=f"M{time(time.first):.1f} {floor} {outline} V{floor} Z", class_="area")
        svg.add("path", d="M" + outline[1:], class_="line canary")
        labels = [(y(corners[-1][1]), "canary", f"committed {corners[-1][1]} %")]
        shares = self._shares()
        for at, share, told in shares:
            dot = svg.add("circle", cx=time(at), cy=y(share), r=3, class_="share")
            dot.add("title", told)
        if shares:
            labels.append((y(shares[-1][1]), "muted", f"measured {shares[-1][1]:.0f} %"))
        _direct_labels(svg, labels, TOP + FLAGS, floor)
        self._flags(svg)
        caption = (
            "Line: the weight that the operator committed. Dots: the share of requests that "
            f"reached the canary, in {self._slice} each. Numbers: decisions, explained below."
        )
        if not shares:
            caption = "The weight that the operator committed. Numbers: decisions, explained below."
        return Chart("Weight of the canary", caption, svg.markup())

    def latency(self, quantile: float) -> Chart:
        """Draw a quantile of the latency at the router."""
        name = f"p{quantile * 100:g}"

        def told(one: Slice, value: float) -> str:
            return f"{name} {_seconds(value)}, {one.attempted or 0:,.0f} requests"

        lines = self._lines(lambda one: one.quantile(quantile), told)
        chart = self._plot(
            lines,
            height=210.0 if quantile == 0.99 else 150.0,
            unit=" s",
            axis=f"{name}, seconds",
            least=0.1,
            say=_seconds,
            nothing=f"fewer than 10 requests in every {self._look}",
        )
        caption = (
            f"Time from the router's request to the last byte that half of the requests did not "
            f"exceed, over {self._look} each."
            if quantile == 0.5
            else f"Time that {100 - quantile * 100:.0f} % of the requests exceeded, over "
            f"{self._look} each."
        )
        if quantile == 0.99:
            caption += " Of few requests, this is close to the slowest one."
        return Chart(f"{name} latency at the router", caption, chart)

    def page_faults(self) -> Chart:
        """Draw preemptions per 100 requests."""

        def told(one: Slice, value: float) -> str:
            return (
                f"{value:.2f} per 100: {one.page_faults:,.0f} preemptions, "
                f"{one.sample.finished or 0:,.0f} finished requests"
            )

        svg = self._plot(
            self._lines(lambda one: one.page_faults_per_100, told),
            height=150.0,
            unit="",
            axis="preemptions per 100 requests",
            least=1.0,
            say=lambda value: f"{value:.1f}",
            nothing="no finished requests were counted",
        )
        return Chart(
            "KV page faults",
            "Sequences that an engine threw out of its full KV cache and computed again, per 100 "
            f"requests that it finished, over {self._look} each.",
            svg,
        )

    def requests(self) -> Chart:
        """Draw requests per second."""

        def rate(one: Slice) -> float | None:
            length = one.span.length.total_seconds()
            return None if one.attempted is None or not length else one.attempted / length

        svg = self._plot(
            self._lines(rate, lambda _, value: f"{value:.2f} per second"),
            height=130.0,
            unit="",
            axis="requests per second",
            least=0.5,
            say=lambda value: f"{value:.1f} /s",
            nothing="no requests were counted",
        )
        return Chart("Requests", f"Requests that ended, per second, over {self._look} each.", svg)

    def failures(self) -> Chart:
        """Draw failed requests as bars: they are few, and each of them counts."""
        pairs = [
            ("baseline", self.measured.baseline, -1.0),
            ("canary", self.measured.canary, 0.0),
        ]
        most = max((s.failed or 0.0 for _, slices, _ in pairs for s in slices), default=0.0)
        height = 130.0
        svg, y = self._frame(height, nice_ceiling(most, 4.0), "", "failed requests")
        time, floor, labels = self._time, height - BOTTOM, []
        width = (time.end - time.start) * self.measured.slice_seconds
        width /= self.measured.shown.length.total_seconds() or 1.0
        bar = max(1.5, width * 0.4)
        for arm, slices, shift in pairs:
            known = [one for one in slices if one.failed is not None]
            for one in known:
                if not one.failed:
                    continue
                middle = (time(one.span.start) + time(one.span.end)) / 2
                drawn = svg.add(
                    "rect",
                    x=middle + shift * bar,
                    y=y(one.failed),
                    width=bar,
                    height=max(1.0, floor - y(one.failed)),
                    class_=f"bar {arm}",
                )
                drawn.add("title", f"{arm}: {one.failed:,.0f} failed of {one.attempted:,.0f}")
            failed = sum(one.failed or 0 for one in known)
            text = f"{arm} {failed:,.0f}" if known else f"{arm} no data"
            labels.append((floor - (30 if arm == "baseline" else 12), arm, text))
        _direct_labels(svg, labels, TOP, floor)
        if most == 0:
            told = "none" if any(slices for _, slices, _ in pairs) else "no requests were counted"
            svg.add("text", told, x=(time.start + time.end) / 2, y=floor - 30, class_="nothing")
        return Chart(
            "Failed requests",
            "Answers with a 5xx status, time-outs and broken connections, counted at the router "
            f"in {self._slice} each.",
            svg.markup(),
        )

    def _lines(self, value: Value, told: Callable[[Slice, float], str]) -> list[_Line]:
        lines = []
        for arm, slices in (("baseline", self.measured.baseline), ("canary", self.measured.canary)):
            points = []
            for one in looks(slices):
                found = value(one)
                said = "" if found is None else f"{arm} {one.span.end:%H:%M:%S}: {told(one, found)}"
                points.append((one.span.middle, found, said))
            lines.append(_Line(arm, points))
        return lines

    def _shares(self) -> list[tuple[datetime, float, str]]:
        """Return the measured share of the canary, where enough requests came to tell."""
        begin = self.measured.canary[0].span.start if self.measured.canary else None
        baseline = [s for s in self.measured.baseline if begin and s.span.start >= begin]
        found = []
        for ours, theirs in zip(self.measured.canary, baseline, strict=False):
            if ours.attempted is None or theirs.attempted is None:
                continue
            total = ours.attempted + theirs.attempted
            if total >= 10:
                share = 100 * ours.attempted / total
                told = f"{ours.attempted:,.0f} of {total:,.0f} requests ({share:.1f} %)"
                found.append((ours.span.middle, share, f"{ours.span.end:%H:%M:%S}: {told}"))
        return found

    def _plot(
        self,
        lines: Sequence[_Line],
        *,
        height: float,
        unit: str,
        axis: str,
        least: float,
        say: Callable[[float], str],
        nothing: str,
    ) -> str:
        values = [value for line in lines for _, value, _ in line.points if value is not None]
        svg, y = self._frame(height, nice_ceiling(max(values, default=0.0), least), unit, axis)
        floor, labels = height - BOTTOM, []
        for line in lines:
            last = self._path(svg, y, line)
            if last is not None:
                labels.append((y(last), line.arm, f"{line.arm} {say(last)}"))
        _direct_labels(svg, labels, TOP, floor)
        if not values:
            middle = (LEFT + WIDTH - RIGHT) / 2
            svg.add("text", nothing, x=middle, y=floor - 30, class_="nothing")
        return svg.markup()

    def _path(self, svg: Node, y: Scale, line: _Line) -> float | None:
        """Draw a line with gaps where nothing is known; return its last value."""
        time, last = self._time, None
        commands, open_ = [], False
        for at, value, _ in line.points:
            if value is None:
                open_ = False
                continue
            commands.append(f"{'L' if open_ else 'M'}{time(at):.1f} {y(value):.1f}")
            open_, last = True, value
        if not commands:
            return None
        svg.add("path", d=" ".join(commands), class_=f"line {line.arm}")
        for at, value, told in line.points:
            if value is not None:
                dot = svg.add("circle", cx=time(at), cy=y(value), r=2, class_=f"dot {line.arm}")
                dot.add("title", told)
        return last

    def evidence(self, looks: Sequence[Report], name: str, called: str) -> Chart:
        """Draw a signal's effect and its bounds: what the verdicts rested on.

        Args:
            looks: What the analysis saw, oldest first.
            name: Name of the signal.
            called: Its name for people.
        """
        points = [(look, one) for look in looks for one in look.signals if one.name == name]
        known = [(_at(look), one) for look, one in points if one.effect is not None]
        bounds = [(at, *_bounds(one)) for at, one in known]
        values = [value for _, low, middle, high in bounds for value in (low, middle, high)]
        high = nice_ceiling(min(FARTHEST, max([*values, 0.0])), 10.0)
        low = nice_ceiling(min(FARTHEST, -min([*values, 0.0])), 10.0)
        unit = " %" if known and known[0][1].unit in ("seconds", "ratio") else ""
        axis = f"{called}: harm beyond the tolerance"
        height = 150.0
        svg, y = self._frame(height, high, unit, axis, low=-low)
        time = self._time

        def place(at: datetime, value: float) -> str:
            return f"{time(at):.1f} {y(min(high, max(-low, value))):.1f}"

        upper = [place(at, top) for at, _, _, top in bounds]
        lower = [place(at, bottom) for at, bottom, _, _ in reversed(bounds)]
        svg.add("path", d="M" + " L".join([*upper, *lower]) + " Z", class_="area interval")
        svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(0.0), y2=y(0.0), class_="zero")
        middle = [place(at, effect) for at, _, effect, _ in bounds]
        svg.add("path", d="M" + " L".join(middle), class_="line canary")
        for at, one in known:
            effect = _bounds(one)[1]
            dot = svg.add("circle", cx=time(at), cy=y(min(high, max(-low, effect))), r=2)
            dot.element.set("class", f"dot {'bad' if one.verdict is Verdict.FAIL else 'canary'}")
            dot.add("title", f"{at:%H:%M:%S} {one.verdict.value}: {one.message}")
        last = known[-1][1]
        text = f"{_bounds(last)[1]:+.1f}{unit} {last.verdict.value}"
        style = "bad" if last.verdict is Verdict.FAIL else "canary"
        label = y(min(high, max(-low, _bounds(last)[1])))
        _direct_labels(svg, [(label, style, text)], TOP, height - BOTTOM)
        kind = "per cent" if unit else "points of a per cent"
        return Chart(
            f"Evidence: {called}",
            f"Harm beyond what is tolerated, in {kind}, with its bounds: it fails when the lower "
            "one rises above zero, and passes when the upper one falls below it. "
            f"{last.tolerance} is tolerated.",
            svg.markup(),
        )

    def _frame(
        self,
        height: float,
        high: float,
        unit: str,
        axis: str,
        top: float = TOP,
        low: float = 0.0,
    ) -> tuple[Node, Scale]:
        """Return a drawing with axes, shaded steps and marked decisions."""
        svg = drawing(WIDTH, height, axis)
        time, floor = self._time, height - BOTTOM
        y = Scale(low, high, floor, top)
        for index, step in enumerate(self.steps):
            x, end = time(step.span.start), time(step.span.end)
            style = "band odd" if index % 2 else "band"
            svg.add("rect", x=x, y=top, width=max(0.0, end - x), height=floor - top, class_=style)
            if end - x >= NARROWEST_LABEL:
                svg.add("text", f"{step.weight} %", x=(x + end) / 2, y=top - 5, class_="step")
        below = [-value for value in value_ticks(-low)[1:]] if low < 0 else []
        for value in [*below, *value_ticks(high)]:
            svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid")
            text = f"{value:,.10g}{unit}"
            svg.add("text", text, x=LEFT - 7, y=y(value) + 4, class_="tick value")
        for instant, text in time.ticks():
            x = time(instant)
            svg.add("line", x1=x, x2=x, y1=floor, y2=floor + 4, class_="axis")
            svg.add("text", text, x=x, y=floor + 17, class_="tick")
        svg.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=floor, y2=floor, class_="axis")
        svg.add("text", "UTC", x=LEFT - 7, y=floor + 17, class_="tick value")
        for flag in self.marks:
            x = time(flag.decision.at)
            svg.add("line", x1=x, x2=x, y1=top, y2=floor, class_=f"mark {flag.style}")
        return svg, y

    def _flags(self, svg: Node) -> None:
        """Number the marks; numbers that would overlap go one row up, then down again."""
        time = self._time
        rows = [-1e9, -1e9]
        for flag in self.marks:
            x = time(flag.decision.at)
            row = next((i for i, taken in enumerate(rows) if x - taken >= FLAG_GAP), None)
            if row is None:
                row = min(range(len(rows)), key=rows.__getitem__)
                x = rows[row] + FLAG_GAP
            rows[row] = x
            y = FLAGS - 8 - row * FLAG_GAP
            group = svg.add("a", href=f"#decision-{flag.number}")
            circle = group.add("circle", cx=x, cy=y, r=8.5, class_=f"flag {flag.style}")
            circle.add("title", f"{flag.decision.reason}: {flag.decision.message}")
            group.add("text", str(flag.number), x=x, y=y + 3.7, class_="flag-number")


def _direct_labels(
    svg: Node, labels: Iterable[tuple[float, str, str]], top: float, floor: float
) -> None:
    """Name the lines where they end, pushed apart where they would overlap."""
    ordered = sorted(labels)
    places: list[float] = []
    for y, _, _ in ordered:
        places.append(max(y, places[-1] + LABEL_GAP if places else top))
    # What was pushed below the floor goes back up, and pushes the others with it.
    limit = floor
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - LABEL_GAP
    for y, (_, arm, text) in zip(places, ordered, strict=True):
        svg.add("text", text, x=WIDTH - RIGHT + 8, y=y + 4, class_=f"label {arm}")


def _seconds(value: float) -> str:
    return f"{value * 1000:,.0f} ms" if value < 1 else f"{value:,.2f} s"


def _bounds(one: Evidence) -> tuple[float, float, float]:
    """Return a signal's lower bound, effect and upper bound in per cent, or points of it."""
    effect = 0.0 if one.effect is None else one.effect
    low = effect if one.lower is None else one.lower
    high = effect if one.upper is None else one.upper
    return 100 * min(low, effect), 100 * effect, 100 * max(high, effect)


def _at(look: Report) -> datetime:
    return datetime.fromtimestamp(look.at, UTC)
