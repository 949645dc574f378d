"""Figures of weekly batches as a table; tasks/pages/week_figures.py measures them. Loads nothing but this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# figure -> how a table names it; shares, 0..1, in the order in which they are shown
SHARES = {
    "yield": "triplets per written pair",
    "shortcut_share": "shortcuts",
    "true_share": "true texts",
    "complete_share": "complete texts",
    "negatives_also_right": "negatives also right",
    "false_rejection_share": "true texts thrown away",
    "same_content": "texts that repeat another",
}
NUMBERS = {"words_mean": "words a text", "distinct_2": "distinct 2-grams", "distinct_3": "distinct 3-grams"}


def week_table(weeks: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of a table with a row a week; a figure that no week has is left out, one that a week lacks is empty.

    Args:
        weeks: batch -> figures, as of `weekly_figures`.
    """
    names = [name for name in (*SHARES, *NUMBERS) if any(week.get(name) is not None for week in weeks.values())]
    head = ["week", "pairs", "triplets", *({**SHARES, **NUMBERS}[name] for name in names)]
    rows = []
    for batch, week in weeks.items():
        values = [(name, week.get(name)) for name in names]
        shown = ["" if v is None else f"{100 * v:.1f}%" if n in SHARES else f"{v:.3g}" for n, v in values]
        rows.append([batch, f"{week.get('pairs') or 0:,}", f"{week.get('triplets') or 0:,}", *shown])
    return head, rows
