"""Charts: axes with round ticks, bars and lines where the numbers say, texts escaped, readable by a screen reader."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.pages.charts import (
    Axis,
    Band,
    Frame,
    Series,
    histogram,
    lines,
    number_label,
    round_step,
    standalone,
)

SVG = "{http://www.w3.org/2000/svg}"
FRAME = Frame("Sizes", "Two values & a half", x_label="size", y_label="count", width=400, height=200)


def parts(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(SVG + tag))


def texts(svg: str) -> list[str]:
    return [str(e.text) for e in parts(svg, "text")]


@given(st.floats(-1000, 1000), st.floats(1e-6, 1e6), st.integers(2, 12))
def test_ticks_are_round_inside_the_axis_and_not_too_many(low: float, span: float, at_most: int):
    axis = Axis(low, low + span)
    ticks = axis.labelled_ticks(at_most)
    step = round_step(axis.low, axis.high, at_most)
    assert len(ticks) <= at_most + 1
    assert all(axis.low - 1e-6 * span <= t <= axis.high + 1e-6 * span for t, _ in ticks)
    assert f"{step:e}"[0] in "125", "a step begins with 1, 2, 2.5 or 5"
    assert len({label for _, label in ticks}) == len(ticks), "no two ticks have the same label"


def test_labels_have_as_few_digits_as_tell_them_apart():
    assert [label for _, label in Axis(0.12, 0.31).labelled_ticks(4)] == ["0.15", "0.20", "0.25", "0.30"]
    assert [label for _, label in Axis(0, 337).labelled_ticks(4)] == ["0", "100", "200", "300"]
    assert [label for _, label in Axis(0.5, 0.6).labelled_ticks(4)] == ["0.500", "0.525", "0.550", "0.575", "0.600"]
    assert [number_label(v) for v in (0.25, 1400, 56_000, 1_234_567)] == ["0.25", "1400", "56,000", "1,234,567"]
    assert Axis(10, 1000, is_log=True, ticks=(5, 10, 100)).labelled_ticks(9) == [(10, "10"), (100, "100")]
    assert Axis(0, 1, ticks=()).labelled_ticks(9) == []


def test_an_axis_places_values_evenly_by_difference_or_by_ratio_and_clips():
    assert [Axis(2, 4).fraction(v) for v in (1, 2, 3, 4, 9)] == [0, 0, 0.5, 1, 1]
    assert Axis(1, 100, is_log=True).fraction(10) == pytest.approx(0.5)


def test_a_histogram_counts_each_value_once_and_pales_what_lies_outside_the_band():
    values = [0.1, 0.1, 0.1, 0.5, 0.9]
    svg = histogram(FRAME, values, colour="#123456", band=Band(0.3, 0.7, "#abcdef"), bins=10)
    shade, *bars = parts(svg, "rect")
    assert shade.get("fill") == "#abcdef"
    heights = [float(b.get("height", "0")) for b in bars]
    assert len(bars) == 3 and heights[0] == pytest.approx(3 * heights[1], abs=0.2) and heights[1] == heights[2]
    assert [b.get("opacity") for b in bars] == ["0.3", "1", "0.3"]
    left, right = (float(line.get("x1", "0")) for line in parts(svg, "line") if line.get("stroke-dasharray"))
    centre = float(bars[1].get("x", "0")) + float(bars[1].get("width", "0")) / 2
    assert left < centre < right
    assert {"size", "count"} <= set(texts(svg))


def test_a_histogram_of_one_value_or_of_equal_ones_is_drawn_and_none_is_refused():
    for values in ([1.0], [0.4] * 9, [-0.2]):
        assert len(parts(histogram(FRAME, values, colour="red"), "rect")) == 1
    with pytest.raises(ValueError, match="expected at least one"):
        histogram(FRAME, [], colour="red")


def test_points_have_error_bars_that_reach_one_error_up_and_down():
    series = [Series("ours", "#1b7837", [10, 100], [0.2, 0.4], [0.1, 0.0]), Series("theirs", "#762a83", [10], [0.2])]
    x, y = Axis(10, 100, is_log=True, ticks=(10, 100)), Axis(0, 0.5)
    svg = lines(FRAME, x, y, series, baseline=Series("base", "#888888", (), [0.1]))
    first, second = parts(svg, "circle")
    assert float(second.get("cy", "0")) < float(first.get("cy", "0")), "more is higher"
    bars = [e for e in parts(svg, "line") if e.get("stroke") == "#1b7837"]
    top, bottom = (float(bars[0].get(name, "0")) for name in ("y2", "y1"))
    assert (top + bottom) / 2 == pytest.approx(float(first.get("cy", "0")), abs=0.2) and bottom - top > 20
    assert bars[1].get("y1") == bars[1].get("y2"), "no error, no height"
    assert {"ours", "theirs", "base", "10", "100"} <= set(texts(svg))
    assert [e.get("stroke-dasharray") for e in parts(svg, "line") if e.get("stroke") == "#888888"] == ["4 4"]


def test_names_beside_the_last_points_never_cover_each_other():
    series = [Series(f"line {n}", "#333333", [0, 1], [0.5, 0.5 + n / 1000], [0.01, 0.01]) for n in range(5)]
    svg = lines(FRAME, Axis(0, 1), Axis(0, 1), series)
    heights = sorted(float(e.get("y", "0")) for e in parts(svg, "text") if str(e.text).startswith("line "))
    assert len(heights) == 5 and all(b - a >= 14.9 for a, b in zip(heights, heights[1:], strict=False))
    apart = [
        Series("left", "#333333", [0, 0.1], [0.5, 0.5], [0, 0]),
        Series("right", "#333333", [0, 1], [0, 0.5], [0, 0]),
    ]
    same = [
        e.get("y") for e in parts(lines(FRAME, Axis(0, 1), Axis(0, 1), apart), "text") if e.text in ("left", "right")
    ]
    assert len(same) == 2 and same[0] == same[1], "names far from each other stay beside their points"


def test_lines_without_points_are_named_below():
    svg = lines(
        FRAME, Axis(0, 1), Axis(0, 1, ticks=()), [Series("a", "red", [0, 1], [0, 1])], band=Band(0.2, 0.3, "blue")
    )
    assert "a" in texts(svg) and not parts(svg, "circle") and len(parts(svg, "polyline")) == 1


@pytest.mark.parametrize("where", ["title", "description", "x_label", "y_label"])
def test_any_text_is_escaped_and_every_chart_has_a_title_and_a_description(where: str):
    evil = "<script>alert(\"1\")</script> & 'more'"
    frame = Frame(**{"title": "t", "description": "d", "x_label": "x", "y_label": "y", where: evil})
    for svg in (
        histogram(frame, [0.5], colour="red"),
        lines(frame, Axis(0, 1), Axis(0, 1), [Series(evil, "red", [0], [0])]),
    ):
        assert "<script" not in svg
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        title, description = root.get("aria-labelledby", "").split()
        named = {e.get("id"): e.text for e in root.iter() if e.get("id")}
        assert named == {title: frame.title, description: frame.description}


def test_the_same_numbers_give_the_same_bytes_and_two_charts_have_names_of_their_own():
    one, two = (histogram(Frame(title, "d"), [0.1, 0.2], colour="red") for title in ("one", "two"))
    assert one == histogram(Frame("one", "d"), [0.1, 0.2], colour="red")
    assert not {e.get("id") for e in parts(one, "title")} & {e.get("id") for e in parts(two, "title")}


def test_a_file_of_its_own_holds_all_charts_below_each_other_on_white():
    chart = histogram(FRAME, [0.1, 0.2], colour="red")
    root = ElementTree.fromstring(standalone([chart, chart], margin=10))
    ground, first, second = list(root)
    assert ground.get("fill") == "#ffffff" and root.get("viewBox") == "0 0 420 430"
    assert (first.get("y"), second.get("y")) == ("10", "220") and first.tag == SVG + "svg"
