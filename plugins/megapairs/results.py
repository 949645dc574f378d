"""The last lines of a task's log: what came out, as a person would say it. Pure; without Airflow.

published dataset/2026.11.28: 220 new triplets, 1,173 in all
renewed 2,000 rows; 3,400 of earlier models or prompts are left
promoted: 26.7 against 11.6 of the base model (composed map_at_5, noise 0.9)
gate 'images' passed: 18 of 18 expectations
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOISE = re.compile(r"noise (\d+\.\d+)")


def number(value: Any) -> str:
    """A value of a gate: a share as a percentage with the share itself, other numbers short, nothing as a dash."""
    if value is None or value == "":
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_line(check: Mapping[str, Any]) -> str:
    """One expectation of a gate."""
    state = "holds" if check.get("is_held") else "BROKEN"
    last = f", last version {number(check['last'])}" if check.get("last") is not None else ""
    return f"  {state}  {check['column']}: {number(check['observed'])}, expected {check['expected']}{last}"


def gate_lines(report: Mapping[str, Any]) -> list[str]:
    """A gate's verdict and its expectations; those on figures whole, those on rows only where a row breaks one.

    Args:
        report: reports/validation/<table>.json.
    """
    checks = list(report.get("checks") or [])
    held = sum(bool(check.get("is_held")) for check in checks)
    verdict = "passed" if report.get("is_valid") else "stopped the run"
    shown = [check for check in checks if check.get("table_half") == "figures" or not check.get("is_held")]
    head = f"gate '{report.get('table')}' {verdict}: {held} of {len(checks)} expectations hold"
    return [head, *(check_line(check) for check in shown)]


def promotion_line(report: Mapping[str, Any]) -> str:
    """Whether the model was promoted, with both scores in percent."""
    why, figures = str((report.get("notes") or [""])[-1]), dict(report.get("figures") or {})
    for note in report.get("notes") or []:
        if "promoted" in note:
            why = str(note)
    names = [name for name in figures if name.startswith("finetuned_")]
    if not names:
        return why
    metric = names[0].removeprefix("finetuned_")
    rival = "promoted" if f"promoted_{metric}" in figures else "base"
    scores = f"{100 * figures[names[0]]:.1f}"
    if f"{rival}_{metric}" in figures:
        scores += f" against {100 * figures[f'{rival}_{metric}']:.1f} of the {rival} model"
    noise = NOISE.search(why)
    more = f", noise {100 * float(noise[1]):.1f}" if noise else ""
    verdict = "promoted" if figures.get("is_promoted") else "not promoted"
    reason = "" if verdict == "promoted" else f"; {why.removeprefix('not promoted: ')}"
    return f"{verdict}: {scores} (composed {metric}{more}){reason}"


def result_lines(stage: str, item: str | None, report: Mapping[str, Any], folder: Path) -> list[str]:
    """What a stage that succeeded logs last; empty for a stage whose counts say it all.

    Args:
        stage, item: as in `python -m tasks <stage> <item>`.
        report: its StageReport.
        folder: the run's worktree.
    """
    if stage == "version":
        figures = report.get("figures") or {}
        rows = int(figures.get("rows_triplets", report.get("read", 0)))
        lines = [f"published {report['notes'][0]}: {report['written']:,} new triplets, {rows:,} in all"]
        if "rows_stale" in figures:
            renewed, stale = int(figures.get("rows_renewed", 0)), int(figures["rows_stale"])
            lines.append(f"renewed {renewed:,} rows; {stale:,} of earlier models or prompts are left")
        return lines
    if stage == "promote":
        return [promotion_line(report)]
    if stage == "validate":
        try:
            return gate_lines(json.loads((folder / "reports" / "validation" / f"{item}.json").read_text()))
        except (OSError, ValueError):
            return []
    return []
