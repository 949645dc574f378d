"""Two versions side by side: what each week was worth, its rows, what was left out, and every figure of the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.pages.week_table import SHARES

Values = Mapping[str, float]
IS_SHARE = ("_share", "yield", "found_by_text", "found_by_image", "found_by_both", "composition_gap")
COUNTS = ("new images", "new pairs", "new captioned", "new triplets", "all images", "all pairs", "all triplets")


def comparison(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Groups of rows, each with a title; a group that neither version has a value for is left out.

    Args:
        first, second: version.json of each.
    Returns:
        title, is_folded (of no use to most), rows: name, first, second, difference, as text.
    """
    groups = [
        ("Quality of the new rows", False, week_values(first), week_values(second)),
        ("Rows", False, row_values(first), row_values(second)),
        ("New rows left out", False, drop_values(first), drop_values(second)),
        ("All figures of the stages", True, stage_values(first), stage_values(second)),
    ]
    return [
        {"title": title, "is_folded": is_folded, "rows": compared(left, right)}
        for title, is_folded, left, right in groups
        if left or right
    ]


def compared(left: Values, right: Values) -> list[dict[str, str]]:
    """Rows of what at least one side has, as text, with the difference: points for shares."""
    rows = []
    for name in dict.fromkeys([*left, *right]):
        values = [side.get(name) for side in (left, right)]
        difference = None if None in values else right[name] - left[name]
        texts = [value_text(name, value) for value in values]
        rows.append({"name": name, "first": texts[0], "second": texts[1], "difference": change_text(name, difference)})
    return rows


def is_share(name: str) -> bool:
    """Whether a value is a share, 0 to 1."""
    return name in SHARES.values() or name.rpartition(": ")[2] in IS_SHARE or name.endswith("_share")


def value_text(name: str, value: float | None) -> str:
    """A value as text; a dash for none."""
    if value is None:
        return "–"
    if is_share(name):
        return f"{100 * value:.1f}%"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def change_text(name: str, change: float | None) -> str:
    """A difference as text, with its sign."""
    if change is None:
        return "–"
    if not change:
        return "0"
    size = f"{100 * abs(change):.1f} points" if is_share(name) else value_text("", abs(change))
    return ("+" if change > 0 else "−") + size


def week_values(record: Mapping[str, Any]) -> dict[str, float]:
    """The shares that the version's own week is told by."""
    week = (record.get("weeks") or {}).get(record.get("version")) or {}
    return {words: float(week[name]) for name, words in SHARES.items() if week.get(name) is not None}


def row_values(record: Mapping[str, Any]) -> dict[str, float]:
    """New and all rows of each table."""
    found = {f"new {name}": float(count) for name, count in (record.get("new_rows") or {}).items()}
    found |= {f"all {name}": float(count) for name, count in (record.get("rows") or {}).items()}
    return {name: found[name] for name in COUNTS if name in found}


def drop_values(record: Mapping[str, Any]) -> dict[str, float]:
    """New rows that each stage left out, by reason."""
    drops: Sequence[tuple[str, Mapping[str, int]]] = list((record.get("new_drops") or {}).items())
    return {f"{stage}: {reason}": float(count) for stage, reasons in drops for reason, count in reasons.items()}


def stage_values(record: Mapping[str, Any]) -> dict[str, float]:
    """Every figure that a stage reported."""
    return {
        f"{stage}: {name}": float(value)
        for stage, figures in (record.get("quality") or {}).items()
        for name, value in figures.items()
        if value is not None
    }
