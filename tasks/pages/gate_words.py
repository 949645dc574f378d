"""What a gate observed, in words that a person decides by: percentages with their counts, a median against a median.

    35%, 70 of 200                                         a share of which the report has the counts
    0.12 against 0.24 in the last version, a drop of 0.12  a drop against the last version
Pure; for the mail, the pages and the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Figure that is a share -> the figures that hold the whole; the first that the report has counts.
WHOLES = {
    "duplicate_share": ("looked_at",),
    "unreadable_share": ("looked_at",),
    "caption_share": ("rows",),
    "quarantined_share": ("rows",),
}
# What to do where a figure of a gate does not hold: (what to mend, the parameter that loosens it).
REMEDIES = {
    "duplicate_share": ("the source: take the repeated files below out of it", "duplicate_share_max"),
    "unreadable_share": ("the files below: copy them again from where they came", "unreadable_share_max"),
    "caption_share": ("captions.csv (columns path, caption) in the source's folder", "caption_share_min"),
    "quarantined_share": ("the rows below, in the source's own table", "quarantined_share_max"),
    "rows": ("the source: it brought fewer new rows than a run must have", "rows_min"),
    "median_caption_cosine_drop": ("captions.* of the source: they fit other images than theirs", "cosine_drop_max"),
    "encoder_yield_lowest": ("mine.windows: `python -m tasks calibrate` proposes them anew", "encoder_yield_min"),
    "yield": ("the judge or the writer: `python -m tasks judge_check` measures them", "yield_min"),
}


def is_share(column: str) -> bool:
    """Whether a figure is a share of rows, 0 to 1."""
    return column.endswith("_share") or column == "yield"


def share_words(value: float) -> str:
    """0.354 -> '35%'; below ten percent with a digit behind the point."""
    text = f"{100 * value:.1f}" if 0 < abs(value) < 0.1 else f"{100 * value:.0f}"
    return text.removesuffix(".0") + "%"


def value_words(column: str, value: Any, figures: Mapping[str, Any] | None = None) -> str:
    """A value of a check as text; a dash for nothing.

    Args:
        column: the figure's name.
        value: observed, or the last version's.
        figures: of the same report, for the counts.
    """
    if value is None or value == "":
        return "–"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and not is_share(column) and float(value).is_integer():
        return f"{value:,.0f}"
    if not is_number or not is_share(column):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    whole = next((figures[name] for name in WHOLES.get(column, ()) if figures and name in figures), None)
    if whole is None:
        return f"{share_words(value)} ({value:.4g})"
    quarantined = (figures or {}).get("quarantined_rows", 0.0) if column == "quarantined_share" else 0.0
    total = float(whole) + float(quarantined)
    return f"{share_words(value)}, {round(value * total):,} of {total:,.0f}"


def observed_words(check: Mapping[str, Any], figures: Mapping[str, Any] | None = None) -> str:
    """What a check observed.

    Args:
        check: of a gate's report: column, observed, last.
        figures: of the report.
    """
    column, observed, last = str(check.get("column")), check.get("observed"), check.get("last")
    new = (figures or {}).get(f"{column.removesuffix('_drop')}_new")
    if column.endswith("_drop") and isinstance(observed, float) and isinstance(last, float) and new is not None:
        return f"{new:.4g} against {last:.4g} in the last version, a drop of {observed:.4g}"
    return value_words(column, observed, figures)


def remedy(table: str, check: Mapping[str, Any]) -> tuple[str, str]:
    """(what to mend, dotted parameter that loosens the check); the parameter is empty for a rule on rows."""
    mend, key = REMEDIES.get(str(check.get("column")), ("the rows below, where they come from", ""))
    return mend, f"validate.{table}.{key}" if key else ""
