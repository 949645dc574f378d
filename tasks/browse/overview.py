"""What the home page and a version's page say of a version, as values ready to be shown. Pure: version.json in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.reasons import why

SHOWN_FIGURES = ("duplicate_share", "unreadable_share", "caption_share", "median_caption_cosine_new", "yield")


def share_text(value: float | None) -> str:
    """0.354 -> '35%', a small one with a digit behind the point; a dash for nothing."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if abs(value) < 0.1 else f"{100 * value:.0f}%"


def count_text(value: float | None) -> str:
    """A count with thousands apart; a dash for nothing."""
    return "–" if value is None else f"{value:,.0f}"


def figure(record: Mapping[str, Any], name: str) -> float | None:
    """A figure of the version's stages by its name, whichever stage reported it; None where none did."""
    for figures in (record.get("quality") or {}).values():
        if name in figures:
            return float(figures[name])
    return None


def drops_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stage and reason with the new rows that were left out, and all: the most first."""
    new = record.get("new_drops") or {}
    rows = [
        {
            "stage": stage,
            "reason": reason,
            "new": int((new.get(stage) or {}).get(reason, 0)),
            "all": int(count),
            "why": why(stage, reason),
        }
        for stage, reasons in (record.get("drops") or {}).items()
        for reason, count in reasons.items()
    ]
    return sorted(rows, key=lambda row: (-row["new"], -row["all"], row["stage"], row["reason"]))


def home_row(record: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One version as a row of the home page.

    Args:
        record: version.json.
        models: of tasks.browse.published.models; the one that was trained on this version is named.
    """
    new, ledger = record.get("new_rows") or {}, record.get("ledger") or {}
    pairs, triplets = new.get("captioned") or new.get("pairs") or 0, new.get("triplets") or 0
    trained = [m["name"] for m in models if f"dataset/{record['version']}:" in f"{m['message']}:"]
    trained = trained or [m["name"] for m in models if f"trained on {record['version']}:" in str(m["message"])]
    left_out = sum(sum(reasons.values()) for reasons in (record.get("new_drops") or {}).values())
    per_triplet = ledger.get("per_triplet") or {}
    tokens = sum(per_triplet[name] for name in ("prompt_tokens", "output_tokens") if name in per_triplet) or None
    shortcut = figure(record, "shortcut_share")
    return {
        "name": record["version"],
        "date": record.get("date", ""),
        "images": count_text(new.get("images")),
        "pairs": count_text(new.get("pairs")),
        "triplets": count_text(triplets),
        "total": count_text((record.get("rows") or {}).get("triplets")),
        "yield_share": triplets / pairs if pairs else None,
        "yield": share_text(triplets / pairs if pairs else None),
        "dropped": count_text(left_out),
        "shortcut": share_text(shortcut),
        "tokens": count_text(tokens),
        "fingerprint": str(record.get("fingerprint", ""))[:12],
        "model": trained[0] if trained else "",
    }


def sparkline(values: Sequence[float | None], width: int = 120, height: int = 24) -> str:
    """Points of an SVG polyline, oldest first; empty for fewer than two values.

    Args:
        values: one a version; None is left out.
        width, height: of the drawing, px.
    """
    known = [(n, value) for n, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return ""
    low, high = min(v for _, v in known), max(v for _, v in known)
    span, last = (high - low) or 1.0, max(len(values) - 1, 1)
    return " ".join(
        f"{2 + n * (width - 4) / last:.1f},{height - 2 - (v - low) / span * (height - 4):.1f}" for n, v in known
    )


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Two versions side by side: rows, drops and figures that at least one of them has, with the difference."""

    def values(record: Mapping[str, Any]) -> dict[str, float]:
        out = {f"new {name}": float(count) for name, count in (record.get("new_rows") or {}).items()}
        out |= {f"all {name}": float(count) for name, count in (record.get("rows") or {}).items()}
        for stage, reasons in (record.get("new_drops") or {}).items():
            out |= {f"dropped by {stage}: {reason}": float(count) for reason, count in reasons.items()}
        for stage, figures in (record.get("quality") or {}).items():
            out |= {f"{stage}: {name}": float(value) for name, value in figures.items() if value is not None}
        return out

    left, right = values(first), values(second)
    return [
        {
            "name": name,
            "first": left.get(name),
            "second": right.get(name),
            "difference": None if name not in left or name not in right else right[name] - left[name],
        }
        for name in dict.fromkeys([*left, *right])
    ]
