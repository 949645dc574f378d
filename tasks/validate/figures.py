"""Figures of a run for the gates: shares, yields, medians, and what the last version's gate saw."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.fingerprints.takedown import NOTE
from tasks.pages.week_figures import week_figures
from tasks.reasons import COPY_REASONS, RENEWED, REVIEWED, UNREADABLE_REASONS
from tasks.renewal.encoders import moved_roles
from tasks.sources.files import count_litter
from tasks.store import Store
from tasks.store.tables import ROW_GROUP_ROWS
from tasks.validate.rows import STAGE_BEFORE, Row, Table

DRIFT_VERSIONS, DRIFT_VERSIONS_MIN = 4, 2  # versions whose median this run is compared with: at most, at least
DRIFT_ROWS = 50  # triplets (of this run: captioned pairs) below which a share says little
TEXTS_MIN = 200  # texts of which distinct n-grams say something
OF_EARLIER_ROWS = (*REVIEWED, RENEWED)  # reasons of judge that say nothing of this run's rows
VARIETY = ("words_mean", "words_low", "words_high", "distinct_1", "distinct_2", "distinct_3", "same_content")


@dataclass(frozen=True)
class RunReports:
    """What the run's stages report about a table.

    Attributes:
        dropped: rows that the stage before left out in this run, by reason, a count each.
        figures: of that stage's report, e.g. `median_caption_cosine_new` and `encoder_yield_lowest` of select.
        captioned: captioned pairs of this run, a count; for the triplets' yield.
        last_version: version.json of the version that the run continues; None for the first.
        litter: dropped files that an operating system left, a count: part of no share.
        notes: sentences of that stage's report, e.g. ingest's on captions that match no file; none on a takedown,
            because the gate's report is published.
        week: the run's own figures (tasks/pages/week_figures.py), for table triplets.
        is_encoder_changed: whether this run changed an encoder; cosines of the last version do not compare then.
    """

    dropped: Mapping[str, int]
    figures: Mapping[str, float]
    captioned: int = 0
    last_version: Mapping[str, Any] | None = None
    litter: int = 0
    notes: Sequence[str] = ()
    week: Mapping[str, Any] = field(default_factory=dict)
    is_encoder_changed: bool = False


def read_last_version(root: Path, batch: str) -> dict[str, Any] | None:
    """version.json of the version that this run continues; None for the first."""
    path = root / "version.json"
    version = json.loads(path.read_text()) if path.exists() else None
    return version if version and version["version"] != batch else None


def read_reports(store: Store, table: Table, batch: str) -> RunReports:
    """What the run's stages report about a table, from their reports and dropped rows."""
    stage = STAGE_BEFORE[table]
    report = store.read_reports().get(stage)
    dropped: Counter[str] = Counter()
    for counts in store.count_drops(stage, batch).values():
        dropped.update({reason: n for reason, n in counts.items() if reason not in OF_EARLIER_ROWS})
    litter = 0
    if stage == "ingest":
        keys = store.iter_blocks(store.dropped_files(stage, batch), "dropped", ["key"], rows=ROW_GROUP_ROWS)
        litter = sum(count_litter(block.column("key").to_pylist()) for block in keys)
    return RunReports(
        dropped=dropped,
        figures=report.figures if report else {},
        captioned=store.read_table("captioned", ["pair_id"], batch).num_rows if table == "triplets" else 0,
        last_version=read_last_version(store.root, batch),
        is_encoder_changed=bool(moved_roles(store)),
        litter=litter,
        notes=[note for note in report.notes if not note.startswith(NOTE)] if report else (),
        week=week_figures(store, batch) if table == "triplets" else {},
    )


def variety(week: Mapping[str, Any]) -> dict[str, float]:
    """Lengths and variety of a week's instructions; NaN where there are none, or fewer than TEXTS_MIN."""
    is_small = week.get("texts", 0) < TEXTS_MIN
    unknown = {
        name for name in VARIETY if week.get(name) is None or (is_small and name.startswith(("distinct", "same")))
    }
    return {name: math.nan if name in unknown else float(week[name]) for name in VARIETY}


def drift(reports: RunReports) -> dict[str, float]:
    """How far this run's yield and shortcuts are from the last versions'; NaN where too little is known of either.

    Returns:
        yield_fall: of the yield against the median of the last DRIFT_VERSIONS, relative to it; shortcut_rise: of the
        share of shortcuts against theirs. Negative values are changes for the better.
    """
    weeks = [week for name, week in sorted_weeks(reports.last_version) if (week.get("triplets") or 0) >= DRIFT_ROWS]
    figures = {"yield_fall": math.nan, "shortcut_rise": math.nan}
    if (reports.week.get("pairs") or 0) < DRIFT_ROWS:
        return figures
    last = weeks[-DRIFT_VERSIONS:]
    yields, shortcuts = ([w[n] for w in last if w.get(n) is not None] for n in ("yield", "shortcut_share"))
    now = reports.week
    if len(yields) >= DRIFT_VERSIONS_MIN and now.get("yield") is not None and statistics.median(yields):
        figures["yield_fall"] = 1 - now["yield"] / statistics.median(yields)
    if len(shortcuts) >= DRIFT_VERSIONS_MIN and now.get("shortcut_share") is not None:
        figures["shortcut_rise"] = now["shortcut_share"] - statistics.median(shortcuts)
    return figures


def sorted_weeks(version: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    """(batch, figures) of every week that a version's version.json tells of, the oldest first."""
    weeks = (version or {}).get("weeks") or {}
    return sorted(weeks.items(), key=lambda week: [int(number) for number in week[0].split(".")])


def share(part: int, whole: int) -> float:
    """part / whole; NaN (which no expectation complains about) when there is nothing."""
    return part / whole if whole else math.nan


def run_figures(table: Table, rows: Sequence[Row], reports: RunReports, quarantined: int = 0) -> dict[str, float]:
    """The run's figures for a table: counts, shares, medians, and the drop against the last version.

    Args:
        table: which.
        rows: new rows that break no row rule, as tasks/validate/rows.py makes them.
        reports: of the run's stages.
        quarantined: new rows that break one, a count.
    """
    dropped, has_rows = reports.dropped, bool(rows or reports.dropped or quarantined)
    figures: dict[str, float] = {"rows": float(len(rows)) if has_rows else math.nan}
    if has_rows:
        figures["quarantined_rows"] = float(quarantined)
    figures["quarantined_share"] = share(quarantined, len(rows) + quarantined)
    if table == "images":
        files = len(rows) + quarantined + sum(dropped.values()) - reports.litter
        figures["looked_at"] = float(files)
        figures["duplicate_share"] = share(sum(dropped.get(r, 0) for r in COPY_REASONS), files)
        figures["unreadable_share"] = share(sum(dropped.get(r, 0) for r in UNREADABLE_REASONS), files)
        figures["caption_share"] = share(sum(1 for r in rows if r["caption"]), len(rows))
        return figures
    if table == "pairs":
        median = reports.figures.get("median_caption_cosine_new", math.nan)
        quality = (reports.last_version or {}).get("quality", {}).get("select") or {}
        last_median = None if reports.is_encoder_changed else quality.get("median_caption_cosine_new")
        figures["median_caption_cosine_new"] = math.nan if median is None else float(median)
        figures["median_caption_cosine_drop"] = (
            math.nan if last_median is None else float(last_median) - figures["median_caption_cosine_new"]
        )
        figures["encoder_yield_lowest"] = float(reports.figures.get("encoder_yield_lowest", math.nan))
    else:
        figures["yield"] = share(len(rows), reports.captioned)
        figures |= variety(reports.week) | drift(reports)
        figures["instructions_mean"] = statistics.fmean(r["instructions_count"] for r in rows) if rows else math.nan
    for name, value in reports.figures.items():
        figures.setdefault(name, float(value))
    return figures


def last_figures(last_version: Mapping[str, Any] | None, table: Table) -> dict[str, Any]:
    """The last version's figures of a table, as its own gate saw them; empty for the first version."""
    quality = (last_version or {}).get("quality", {})
    figures = quality.get(f"validate@{table}") or quality.get("validate") or {}
    prefix = f"{table}_"
    return {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Figures that are numbers: JSON has no NaN."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}
