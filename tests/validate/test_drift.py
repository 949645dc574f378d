"""Figures that drift from the last four versions; ten small weeks fell from a yield of 0.76 to 0.19, all green."""

import math
from typing import Any

import pytest

from tasks.validate.figures import RunReports, drift


def week(share: float, shortcuts: float, rows: int = 100) -> dict[str, Any]:
    return {"pairs": rows, "triplets": rows, "yield": share, "shortcut_share": shortcuts}


def drift_of(now: dict[str, Any], *weeks: dict[str, Any]) -> dict[str, float]:
    history = {f"2026.11.{n + 1:02d}": one for n, one in enumerate(weeks)}
    return drift(RunReports({}, {}, last_version={"version": "x", "weeks": history}, week=now))


def test_a_week_is_compared_with_the_median_of_the_last_four():
    good = [week(0.76, 0.06)] * 3
    found = drift_of(week(0.19, 0.23), week(0.1, 0.9), *good, week(0.5, 0.1))
    assert found["yield_fall"] == pytest.approx(0.75) and found["shortcut_rise"] == pytest.approx(0.17)
    better = drift_of(week(0.9, 0.01), *good)
    assert better["yield_fall"] < 0 and better["shortcut_rise"] < 0


def test_versions_are_ordered_by_number_and_not_by_text():
    names = {"2026.11.9": week(0.2, 0.0), **{f"2026.11.{n}": week(0.8, 0.0) for n in (10, 11, 12, 13)}}
    found = drift(RunReports({}, {}, last_version={"weeks": names}, week=week(0.4, 0.0)))
    assert found["yield_fall"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("now", "weeks"),
    [
        (week(0.1, 0.9), [week(0.7, 0.0)]),  # one version is no history
        (week(0.1, 0.9, rows=20), [week(0.7, 0.0)] * 4),
        (week(0.1, 0.9), [week(0.7, 0.0, rows=20)] * 4),
        ({}, [week(0.7, 0.0)] * 4),
    ],
)
def test_too_little_is_no_drift(now: dict[str, Any], weeks: list[dict[str, Any]]):
    assert all(math.isnan(value) for value in drift_of(now, *weeks).values())
