"""What the home page and a version's page say of a version, as values ready to be shown. Pure: version.json in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.browse.promotions import MODELS, Decision
from tasks.pages.week_table import SHARES
from tasks.reasons import why

MODES = ("composed", "image_only", "text_only")  # kinds of a query, the one that counts first


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


def home_row(
    record: Mapping[str, Any], models: Sequence[Mapping[str, Any]], decisions: Sequence[Decision] = ()
) -> dict[str, Any]:
    """One version as a row of the home page.

    Args:
        record: version.json.
        models: of tasks.browse.published.models; the one that was trained on this version is named.
        decisions: of tasks.browse.promotions.read.
    """
    new, week = record.get("new_rows") or {}, (record.get("weeks") or {}).get(record["version"]) or {}
    pairs, triplets = new.get("captioned") or new.get("pairs") or 0, new.get("triplets") or 0
    trained = [m["name"] for m in models if f"dataset/{record['version']}:" in f"{m['message']}:"]
    trained = trained or [m["name"] for m in models if f"trained on {record['version']}:" in str(m["message"])]
    left_out = sum(sum(reasons.values()) for reasons in (record.get("new_drops") or {}).values())
    refused = [d for d in decisions if d.data_version == record["version"] and not d.is_promoted]
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
        "shortcut_share": figure(record, "shortcut_share"),
        "shortcut": share_text(figure(record, "shortcut_share")),
        "true_share": week.get("true_share"),
        "true": share_text(week.get("true_share")),
        "tokens": count_text(tokens_per_triplet(record)),
        "stale": count_text(sum(count["stale"] for count in (record.get("stale") or {}).values())),
        "renewed": count_text(sum((record.get("renewed") or {}).values())),
        "fingerprint": str(record.get("fingerprint", ""))[:12],
        "model": trained[0] if trained else "",
        "not_promoted": "" if trained or not refused else refused[0].why,
    }


def tokens_per_triplet(record: Mapping[str, Any]) -> float | None:
    """Tokens read and written for one accepted triplet; None where no model reported any."""
    known = (record.get("ledger") or {}).get("per_triplet") or {}
    return sum(known[name] for name in ("prompt_tokens", "output_tokens") if name in known) or None


def quarantined_text(record: Mapping[str, Any]) -> str:
    """Rows of the batch that the gates quarantined, with their share; a dash where no gate counted them."""
    figures = (record.get("quality") or {}).get("validate") or {}
    out = sum(value for name, value in figures.items() if name.endswith("_quarantined_rows"))
    kept = sum(value for name, value in figures.items() if name.endswith("_rows")) - out
    if not any(name.endswith("_quarantined_rows") for name in figures):
        return "–"
    return f"{out:,.0f} of {out + kept:,.0f}" + (f", {share_text(out / (out + kept))}" if out else "")


def quality_table(
    records: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """(head, rows) of what the gates looked at, what is true where that is known, and what an accepted triplet cost.

    A row a version; a column that no version has a value for is left out.

    Args:
        records: version.json of each.
        metrics: reports/quality.json of each, in the same order.
    """
    weeks = [(record.get("weeks") or {}).get(record["version"]) or {} for record in records]
    costs = [metric.get("per_triplet") or {} for metric in metrics]

    def seconds(name: str) -> list[str]:
        return [f"{cost[name]:,.3g}" if cost.get(name) else "–" for cost in costs]

    def shares(name: str) -> list[str]:
        return [share_text(figure(record, name)) for record in records]

    cosines = [figure(record, "median_caption_cosine_new") for record in records]
    columns = {
        "repeated files": shares("duplicate_share"),
        "unreadable files": shares("unreadable_share"),
        "with caption": shares("caption_share"),
        "median caption cosine": ["–" if value is None else f"{value:.3f}" for value in cosines],
        "quarantined rows": [quarantined_text(record) for record in records],
        "shortcuts": shares("shortcut_share"),
    }
    for name in ("true_share", "complete_share", "negatives_also_right", "false_rejection_share"):
        columns[SHARES[name]] = [share_text(week.get(name)) for week in weeks]
    columns["CPU s a triplet"], columns["GPU s a triplet"] = seconds("cpu_s"), seconds("gpu_s")
    columns["tokens a triplet"] = [count_text(tokens_per_triplet(record)) for record in records]
    known = {title: values for title, values in columns.items() if any(value != "–" for value in values)}
    names = [str(record["version"]) for record in records]
    return ["version", *known], [list(row) for row in zip(names, *known.values(), strict=True)]


def score_text(value: float, bounds: Sequence[float | None] | None = None) -> str:
    """A score in percent, with its interval where that was measured: 26.7 (23.5 to 29.8)."""
    text, (low, high) = f"{100 * value:.1f}", bounds or (None, None)
    return text if low is None or high is None else f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def model_row(model: Mapping[str, Any]) -> dict[str, Any]:
    """A promoted model as a row of the home page.

    Args:
        model: of tasks.browse.published.models.
    Returns:
        name, message; metric, the main one; scores: (model, mode -> score with its 95% interval) of that metric; more:
        (model, (metric, score with its interval) of the other metrics of its composed query).
    """
    evaluation = model["evaluation"]
    metrics, intervals = evaluation.get("metrics") or {}, evaluation.get("intervals") or {}

    def text(name: str, mode: str, metric: str) -> str:
        value = (metrics[name].get(mode) or {}).get(metric)
        bounds = ((intervals.get(name) or {}).get(mode) or {}).get(metric)
        return "–" if value is None else score_text(value, bounds)

    names = [name for name in MODELS if name in metrics] + [name for name in metrics if name not in MODELS]
    composed = {name: metrics[name].get("composed") or {} for name in names}
    main = str(evaluation.get("main_metric") or next((m for values in composed.values() for m in values), ""))
    others = {name: [(m, text(name, "composed", m)) for m in composed[name] if m != main] for name in names}
    return {
        "name": model["name"],
        "message": model["message"],
        "metric": main,
        "scores": [(name, {mode: text(name, mode, main) for mode in MODES}) for name in names],
        "more": [(name, values) for name, values in others.items() if values],
    }


def refused_rows(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """The model runs that promoted nothing, as rows of the home page: date, trained on, why, scores."""
    return [
        {
            "date": decision.at[:10],
            "data_version": decision.data_version,
            "why": decision.why,
            "metric": decision.metric,
            "scores": [
                (name, score_text(decision.scores[name][0] or 0.0, decision.scores[name][1:]))
                for name in MODELS
                if name in decision.scores
            ],
        }
        for decision in decisions
        if not decision.is_promoted
    ]


def course(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[str, str, str]:
    """A share over the versions: points of its line, its newest value, and its lowest and highest.

    Args:
        rows: of `home_row`, newest first, at least one.
        key: of the share, ending in _share; the row has its text under the name without that.
    """
    text = key.removesuffix("_share")
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: row[key])
    ends = f"lowest {known[0][text]}, highest {known[-1][text]}" if known else ""
    return sparkline([row[key] for row in reversed(rows)]), rows[0][text], ends


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
