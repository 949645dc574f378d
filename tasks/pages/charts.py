"""Charts as SVG text: a histogram, and lines with points and error bars. The only place that draws.

    svg = histogram(Frame("Cosine", "400 images"), values, colour="var(--series-1)", band=Band(0.8, 0.96))
    file = standalone([svg])        # white background, several charts below each other

Pure functions over plain numbers, in and out; no dependency. The SVG tree is built with xml.etree, so that every text
is escaped. A chart inside a page takes its text colour from the page (`currentColor`) and may name the page's CSS
variables as colours; a chart in a file of its own takes hex colours. Why no plotting library: docs/decisions/0060.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

FONT_PX = 12
CHAR_PX = 6.6  # mean width of a character at FONT_PX, to leave room for labels
LINE_PX = 15  # between two labels below each other
INK = "#475467"  # of texts and axes where no page sets another colour


@dataclass(frozen=True)
class Frame:
    """Texts and size of a chart.

    Attributes:
        title: read out by screen readers and shown as the chart's tooltip.
        description: one sentence more, for screen readers: what the chart shows.
        x_label, y_label: below and above the axes; empty for none.
        width, height: of the whole chart, px.
    """

    title: str
    description: str
    x_label: str = ""
    y_label: str = ""
    width: int = 560
    height: int = 240


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, linear or logarithmic; values outside are drawn at its ends.

    Attributes:
        low, high: low < high; both above 0 on a logarithmic axis.
        is_log: equal distances are equal ratios.
        ticks: where labels stand; None chooses round values, () draws none.
    """

    low: float
    high: float
    is_log: bool = False
    ticks: Sequence[float] | None = None

    def fraction(self, value: float) -> float:
        """Where a value lies, from 0 (low) to 1 (high)."""
        clipped = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(clipped / self.low) / math.log(self.high / self.low)
        return (clipped - self.low) / (self.high - self.low)

    def labelled_ticks(self, at_most: int) -> list[tuple[float, str]]:
        """Ticks inside the axis, each with its label; at most so many where they are chosen here."""
        if self.ticks is not None:
            values = [t for t in self.ticks if self.low <= t <= self.high]
            return [(t, number_label(t)) for t in values]
        step = round_step(self.low, self.high, at_most)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9)) + (0 if _has_one_digit(step) else 1)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(n * step, number_label(n * step, decimals)) for n in range(first, last + 1)]


@dataclass(frozen=True)
class Band:
    """A shaded range of x between two dashed lines."""

    low: float
    high: float
    colour: str


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        name: its label.
        colour: of line, points and label.
        x, y: of its points, by rising x.
        error: half the height of each point's error bar; empty for none.
    """

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()


def round_step(low: float, high: float, at_most: int) -> float:
    """The smallest of 0.1, 0.2, 0.25, 0.5, 1, 2, 2.5, 5, ... that gives at most `at_most` steps from low to high."""
    power = 10.0 ** (math.floor(math.log10((high - low) / at_most)) - 1)
    while True:
        for factor in (1, 2, 2.5, 5):
            if (high - low) / (factor * power) <= at_most + 1e-9:
                return factor * power
        power *= 10


def number_label(value: float, decimals: int | None = None) -> str:
    """A number as a label: '0.25', '1400', '56,000'; as many decimals as given, else as few as it needs."""
    text = f"{value:,.{decimals}f}" if decimals is not None else f"{value:,g}" if value < 1e6 else f"{value:,.0f}"
    return text.replace(",", "") if abs(value) < 10_000 else text


def _has_one_digit(step: float) -> bool:
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    return math.isclose(mantissa, round(mantissa))


class _Plot:
    """The SVG tree of one chart: axes drawn, and a place for everything else."""

    def __init__(self, frame: Frame, x: Axis, y: Axis, *, right: float, below: float) -> None:
        self.x_axis, self.y_axis = x, y
        self.bottom = frame.height - below - LINE_PX * (1 + bool(frame.x_label)) - 6
        self.top = 8 + LINE_PX * bool(frame.y_label) + FONT_PX / 2
        y_ticks = y.labelled_ticks(max(2, int((self.bottom - self.top) / 36)))
        self.left = 4 + CHAR_PX * max((len(label) for _, label in y_ticks), default=0) + 6 * bool(y_ticks)
        self.right = frame.width - right
        name = "chart-" + hashlib.sha256(f"{frame.title}\x1f{frame.description}".encode()).hexdigest()[:8]
        self.root = ElementTree.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {frame.width} {frame.height}",
                "color": INK,
                "font-family": "system-ui,sans-serif",
                "font-size": str(FONT_PX),
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-text",
            },
        )
        self.add("title", frame.title, id=f"{name}-title")
        self.add("desc", frame.description, id=f"{name}-text")
        self._axes(frame, y_ticks)

    def _axes(self, frame: Frame, y_ticks: Sequence[tuple[float, str]]) -> None:
        for value, label in y_ticks:
            y = self.y(value)
            self.line((self.left, y), (self.right, y), "currentColor", opacity=0.15)
            self.text(self.left - 6, y + 4, label, anchor="end")
        self.line((self.left, self.bottom), (self.right, self.bottom), "currentColor", opacity=0.5)
        for value, label in self.x_axis.labelled_ticks(max(2, int((self.right - self.left) / 70))):
            half = CHAR_PX * len(label) / 2
            x = min(max(self.x(value), half), frame.width - half)
            self.line((self.x(value), self.bottom), (self.x(value), self.bottom + 4), "currentColor", opacity=0.5)
            self.text(x, self.bottom + LINE_PX + 2, label, anchor="middle")
        if frame.y_label:
            self.text(0, FONT_PX, frame.y_label)
        if frame.x_label:
            self.text((self.left + self.right) / 2, self.bottom + 2 * LINE_PX + 2, frame.x_label, anchor="middle")

    def x(self, value: float) -> float:
        """Of a value, px from the left."""
        return self.left + self.x_axis.fraction(value) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Of a value, px from the top."""
        return self.bottom - self.y_axis.fraction(value) * (self.bottom - self.top)

    def add(self, tag: str, content: str | None = None, /, **attributes: object) -> None:
        """An element below the root; numbers are rounded to a tenth of a pixel, `_` in a name is written as `-`."""
        written = {
            name.replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else str(value)
            for name, value in attributes.items()
        }
        ElementTree.SubElement(self.root, tag, written).text = content

    def text(self, x: float, y: float, content: str, *, anchor: str = "start", colour: str = "currentColor") -> None:
        """A label; `anchor` is start, middle or end."""
        self.add("text", content, x=float(x), y=float(y), text_anchor=anchor, fill=colour)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], colour: str, *, dashes: str = "", opacity: float = 1
    ) -> None:
        """A straight line between two points (x, y), px."""
        more: dict[str, str] = {"stroke_dasharray": dashes} if dashes else {}
        if opacity != 1:
            more["opacity"] = f"{opacity:g}"
        (x1, y1), (x2, y2) = start, end
        self.add("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), stroke=colour, **more)

    def band(self, band: Band) -> None:
        """The shaded range of x."""
        left, right = self.x(band.low), self.x(band.high)
        height = self.bottom - self.top
        shape = {"x": left, "y": self.top, "width": max(right - left, 1.0), "height": height}
        self.add("rect", **shape, fill=band.colour, opacity="0.12")
        for x in (left, right):
            self.line((x, self.top), (x, self.bottom), band.colour, dashes="4 4")

    def svg(self) -> str:
        """The whole chart."""
        return ElementTree.tostring(self.root, encoding="unicode")


def histogram(
    frame: Frame, values: Sequence[float], *, colour: str, band: Band | None = None, bins: int = 60, upper: float = 1.0
) -> str:
    """How often each value occurs, as bars; bars outside the band are pale.

    Args:
        frame: title, labels, size.
        values: at least one.
        colour: of the bars.
        band: a range of x; the axis reaches over it.
        bins: bars over the whole axis, a count.
        upper: the largest value that is possible: the axis ends there at the latest.
    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("histogram: no values; expected at least one")
    edges = [*values, *((band.low, band.high) if band else ())]
    low = min(edges) - 0.02
    high = max(min(upper, max(edges) + 0.01), low + 1e-6)
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    plot = _Plot(frame, Axis(low, high), Axis(0, max(counts)), right=4, below=0)
    if band:
        plot.band(band)
    step = (plot.right - plot.left) / bins
    for n, count in enumerate(counts):
        middle = low + (n + 0.5) / bins * (high - low)
        is_inside = band is None or band.low <= middle < band.high
        if count:
            top = plot.y(count)
            shape = {"x": plot.left + n * step + 0.5, "y": top, "width": step - 1, "height": plot.bottom - top}
            plot.add("rect", **shape, rx=1.5, fill=colour, opacity="1" if is_inside else "0.3")
    return plot.svg()


def lines(
    frame: Frame,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    band: Band | None = None,
    baseline: Series | None = None,
) -> str:
    """Lines, each named in its colour: beside its last point where points are drawn, else below the chart.

    Args:
        frame: title, labels, size.
        x, y: the axes.
        series: with `error`, points and error bars are drawn, too.
        band: a shaded range of x.
        baseline: a series of no x and one y, drawn as a dashed line over the whole width.
    """
    named = [*series, *((baseline,) if baseline else ())]
    has_points = any(s.error for s in series)
    right = 12 + CHAR_PX * max((len(s.name) for s in named), default=0) if has_points else 4
    plot = _Plot(frame, x, y, right=right, below=0 if has_points else LINE_PX + 8)
    if band:
        plot.band(band)
    if baseline:
        height = plot.y(baseline.y[0])
        plot.line((plot.left, height), (plot.right, height), baseline.colour, dashes="4 4")
    for s in series:
        points = [(plot.x(a), plot.y(b)) for a, b in zip(s.x, s.y, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        plot.add("polyline", points=path, fill="none", stroke=s.colour, stroke_width="2", stroke_linejoin="round")
        for (a, b), middle, half in zip(points, s.y, s.error, strict=False):
            plot.line((a, plot.y(middle - half)), (a, plot.y(middle + half)), s.colour)
            plot.add("circle", cx=a, cy=b, r="3", fill=s.colour)
    if has_points:
        _name_at_the_ends(plot, named)
    else:
        _name_below(plot, named, frame.height)
    return plot.svg()


def _name_at_the_ends(plot: _Plot, series: Sequence[Series]) -> None:
    """Each name beside its line's last point, moved down where it would cover another name."""
    placed: list[tuple[float, float, float]] = []  # left, right, height of each name
    for s in sorted(series, key=lambda s: plot.y(s.y[-1])):
        left = (plot.x(s.x[-1]) if s.x else plot.right) + 8
        right, height = left + CHAR_PX * len(s.name), plot.y(s.y[-1])
        for other_left, other_right, other_height in placed:
            if left < other_right and other_left < right:
                height = max(height, other_height + LINE_PX)
        placed.append((left, right, height))
        plot.text(left, height + 4, s.name, colour=s.colour)


def _name_below(plot: _Plot, series: Sequence[Series], height: int) -> None:
    """The names in one row at the foot of the chart, each behind a stroke of its colour."""
    x = plot.left
    for s in series:
        plot.line((x, height - 9), (x + 16, height - 9), s.colour)
        plot.text(x + 22, height - 5, s.name, colour=s.colour)
        x += 22 + CHAR_PX * (len(s.name) + 3)


def standalone(charts: Sequence[str], *, margin: int = 20) -> str:
    """Charts below each other on white, as the text of one SVG file."""
    root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg"})
    ElementTree.SubElement(root, "rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    width, top = 0, margin
    for chart in charts:
        element = ElementTree.fromstring(chart)
        for part in element.iter():
            part.tag = part.tag.rpartition("}")[2]
        _, _, own_width, own_height = (int(n) for n in element.attrib["viewBox"].split())
        element.attrib |= {"x": str(margin), "y": str(top), "width": str(own_width), "height": str(own_height)}
        root.append(element)
        width, top = max(width, own_width), top + own_height + margin
    root.set("viewBox", f"0 0 {width + 2 * margin} {top}")
    return ElementTree.tostring(root, encoding="unicode") + "\n"
