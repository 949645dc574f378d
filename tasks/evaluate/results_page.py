"""The results page: each benchmark's scores in Markdown, with published scores of other models and their sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.evaluate.published import PUBLISHED

COLUMNS = 6  # metrics beside each other, at most; the others stand below each other


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; bars inside a cell are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in lines]


def shown_metrics(section: Mapping[str, Any]) -> list[str]:
    """The metrics of a benchmark's table: the main one first, without those of single tasks."""
    measured = [m for kinds in section["metrics"].values() for m in kinds["composed"]]
    published = [m for row in PUBLISHED.get(section["protocol"], ("", ()))[1] for m in row.scores]
    wanted = [section["main_metric"], *(m for m in published if m in measured), *(m for m in measured if "." not in m)]
    return list(dict.fromkeys(wanted))


def score_rows(section: Mapping[str, Any], metrics: Sequence[str]) -> list[list[str]]:
    """Rows of the first table: model, kind of query, and each metric with its interval."""
    rows = []
    for model, kinds in section["metrics"].items():
        for kind, values in kinds.items():
            bounds = (section["intervals"].get(model) or {}).get(kind) or {}
            cells = []
            for metric in metrics:
                interval = bounds.get(metric)
                text = f"{100 * values[metric]:.1f}" if metric in values else ""
                cells.append(text + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""))
            rows.append([model, kind.replace("_", " "), *cells])
    return rows


def benchmark_lines(name: str, section: Mapping[str, Any]) -> list[str]:
    """A benchmark's part of the page."""
    metrics = shown_metrics(section)[:COLUMNS]
    lines = [
        f"## {name} ({section['split']})",
        "",
        section["rule"],
        f"{section['queries']:,} queries, {section['gallery']:,} in the gallery. Query text: "
        + "; ".join(f"{task + ': ' if task else ''}`{text}`" for task, text in section["templates"].items())
        + (f". Task instruction: `{said}`" if (said := section.get("instruction")) else "")
        + f". Source: {section['source']}.",
        "",
        *table(["model", "query", *metrics], score_rows(section, metrics)),
    ]
    if section.get("incomplete"):
        lines += ["", section["incomplete"]]
    if section.get("left_out"):
        lines += ["", section["left_out"]]
    if section.get("subset"):
        lines += ["", f"Of the queries that `{section['subset']}` names."]
    for model, gain in section.get("gain_over_first", {}).items():
        low, high = (f"{100 * bound:+.1f}" for bound in gain["interval"])
        lines += [
            "",
            f"{model} over the first model: {100 * gain['value']:+.1f} [{low}, {high}] {section['main_metric']}",
        ]
    what, rows = PUBLISHED.get(section["protocol"], ("", ()))
    is_own_world = section["protocol"] == "circo" and section["split"] == "all"  # no published number is of it
    if rows and not is_own_world and not section.get("subset"):
        others = [[r.model, *(f"{r.scores[m]:.1f}" if m in r.scores else "" for m in metrics), r.source] for r in rows]
        lines += [
            "",
            f"Published by others ({what}; each with its own query text):",
            "",
            *table(["model", *metrics, "source"], others),
        ]
    composed = {model: kinds["composed"] for model, kinds in section["metrics"].items()}
    if further := [m for m in next(iter(composed.values())) if m not in metrics]:
        values = [[m, *(f"{100 * scores[m]:.1f}" for scores in composed.values())] for m in further]
        lines += ["", "All other metrics, of the composed queries:", "", *table(["metric", *composed], values)]
    return [*lines, ""]


def results_page(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """results.md of the benchmarks' parts of evaluation.json.

    Args:
        sections: benchmark -> its part, as `benchmark_report` makes it.
    """
    lines = [
        "# Retrieval results",
        "",
        "Percent; in brackets 95% bootstrap intervals over the queries.",
        "",
    ]
    for name, section in sections.items():
        lines += benchmark_lines(name, section)
    return "\n".join(lines).rstrip() + "\n"
