"""Figures of a run for the gates: shares, yields, medians."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.reasons import COPY_REASONS, UNREADABLE_REASONS
from tasks.validate.rows import Table


def share(part: int, whole: int) -> float:
    """part / whole; NaN (which no expectation complains about) when there is nothing."""
    return part / whole if whole else math.nan


def figures_of(
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    dropped: Mapping[str, int],
    reported: Mapping[str, float],
    last: Mapping[str, Any] | None,
    pairs_before: int = 0,
) -> dict[str, float]:
    """The run's figures for a table: counts, shares, medians, and the drop against the last version.

    Args:
        rows: new rows, as `*_rows` makes them.
        dropped: rows that the stage before left out in this run, by reason.
        reported: figures that the stage before reported (`median_caption_cosine_new` and `encoder_yield_lowest` for
            pairs).
        last: the last version's version.json.
        pairs_before: captioned pairs of this run, for the triplets' yield.
    """
    out: dict[str, float] = {"rows": float(len(rows)) if rows or dropped else math.nan}
    if table == "images":
        seen = len(rows) + sum(dropped.values())
        out["looked_at"] = float(seen)
        out["duplicate_share"] = share(sum(dropped.get(r, 0) for r in COPY_REASONS), seen)
        out["unreadable_share"] = share(sum(dropped.get(r, 0) for r in UNREADABLE_REASONS), seen)
        out["caption_share"] = share(sum(1 for r in rows if r["caption"]), len(rows))
    elif table == "pairs":
        new = reported.get("median_caption_cosine_new", math.nan)
        before = ((last or {}).get("quality", {}).get("select") or {}).get("median_caption_cosine_new")
        out["median_caption_cosine_new"] = math.nan if new is None else float(new)
        out["median_caption_cosine_drop"] = (
            float(before) - out["median_caption_cosine_new"] if before is not None else math.nan
        )
        out["encoder_yield_lowest"] = float(reported.get("encoder_yield_lowest", math.nan))
        for key, value in reported.items():
            out.setdefault(key, float(value))
    else:
        out["yield"] = share(len(rows), pairs_before)
        out["instructions_mean"] = statistics.fmean(r["instructions_count"] for r in rows) if rows else math.nan
        for key, value in reported.items():
            out.setdefault(key, float(value))
    return out


def last_figures(last: Mapping[str, Any] | None, table: Table) -> dict[str, Any]:
    """The last version's figures of a table, as its own gate saw them."""
    found = (
        (
            (last or {}).get("quality", {}).get(f"validate@{table}")
            or (last or {}).get("quality", {}).get("validate")
            or {}
        )
        if last
        else {}
    )
    prefix = f"{table}_"
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures that are numbers: JSON knows no NaN."""
    return {k: v for k, v in figures.items() if math.isfinite(v)}
