"""The demo's summary: counts, drops, seconds and scores, as one dict and as text."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.pages.week_table import SHARES

TRUTH = {  # as the weeks' table names them
    "instructions_true": SHARES["true_share"],
    "instructions_complete": SHARES["complete_share"],
    "negatives_also_right": SHARES["negatives_also_right"],
}
PLUMBING = ("open_run", "close_run", "mine_parts")
PARTS_ALONE = ("ingest_list", "ingest_fetch", "mine_part", "evaluate_part")  # their stage counts what they did


@dataclasses.dataclass
class TaskRun:
    """One ended task of an Airflow run.

    Attributes:
        task_id: Airflow's.
        label: the encoder or part that the task was mapped to; empty for others.
        state: success, failed, skipped ...
        seconds: wall time, s.
        report: the StageReport's values; empty where the task has none.
    """

    task_id: str
    label: str
    state: str
    seconds: float
    report: dict[str, Any]


def counts_text(report: Mapping[str, Any]) -> str:
    """A report's counts as a person reads them."""
    parts = [f"{name} {report[name]:,}" for name in ("read", "written", "reused") if report.get(name)]
    dropped = report.get("dropped") or {}
    if dropped:
        by_count = sorted(dropped.items(), key=lambda entry: -entry[1])
        parts.append("dropped " + ", ".join(f"{count:,} {reason}" for reason, count in by_count))
    return ", ".join(parts)


def task_line(task: TaskRun) -> str:
    """One ended task in a line."""
    name = f"{task.task_id} {task.label}".strip()
    what = counts_text(task.report) if task.state == "success" else task.state
    return f"{name:<22}{task.seconds:6.1f} s  {what}".rstrip()


def count_drops(tasks: Sequence[TaskRun]) -> dict[str, dict[str, int]]:
    """{stage: {reason: count}} over all runs."""
    drops: dict[str, dict[str, int]] = {}
    for task in tasks:
        for reason, count in (task.report.get("dropped") or {}).items():
            stage = drops.setdefault(task.task_id, {})
            stage[reason] = stage.get(reason, 0) + count
    return drops


def stage_seconds(tasks: Sequence[TaskRun], total_s: float) -> dict[str, float]:
    """{stage: wall seconds of its tasks, summed over parts and runs}, and `total`: the demo's own wall time."""
    seconds: dict[str, float] = {}
    for task in tasks:
        seconds[task.task_id] = round(seconds.get(task.task_id, 0.0) + task.seconds, 1)
    return {**seconds, "total": round(total_s, 1)}


def count_increments(tasks: Sequence[TaskRun]) -> dict[str, dict[str, int]]:
    """{stage: {new, done, reused}} of one run.

    Parts add up; those that a later task merges are not counted. Each encoder works on the same images: the stage's own
    entry holds the largest count, and `<stage>@<encoder>` the encoder's.
    """
    names = ("new", "done", "reused")
    out: dict[str, dict[str, int]] = {}
    for task in tasks:
        if task.task_id in (*PLUMBING, *PARTS_ALONE) or task.task_id.startswith("validate") or not task.report:
            continue
        counts = {name: int(task.report.get(name, 0)) for name in names}
        old = out.get(task.task_id, dict.fromkeys(names, 0))
        encoder = task.label.partition("@")[0]
        if encoder and "/" not in encoder:
            of_encoder = out.setdefault(f"{task.task_id}@{encoder}", dict.fromkeys(names, 0))
            of_encoder.update({name: of_encoder[name] + counts[name] for name in names})
            out[task.task_id] = {name: max(old[name], of_encoder[name]) for name in names}
        else:
            out[task.task_id] = {name: old[name] + counts[name] for name in names}
    return out


def certainty_lines(summary: Mapping[str, Any]) -> list[str]:
    """How certain the scores are: intervals, the gap to the better single modality, the spread over wordings.

    Empty where the evaluation measured none of it.
    """
    lines = []
    metric = summary.get("main_metric")
    for model, kinds in (summary.get("intervals") or {}).items():
        low, high = kinds["composed"][metric]
        words = f"95% interval {100 * low:.1f} to {100 * high:.1f}"
        if gap := summary["composition_gap"].get(model):
            low, high = gap["interval"]
            words += f"; {100 * gap['value']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            words += f" over {gap['over'].replace('_', ' ')}"
        if spread := summary["paraphrases"].get(model):
            words += f"; worst wording {100 * spread['worst']:.1f}, best {100 * spread['best']:.1f}"
        lines.append(f"  {model + ', ' + metric:<28}{words}")
    return lines


def week_lines(weeks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A column a weekly batch, a line a figure; a figure that no week has is left out."""
    if not weeks:
        return []
    lines = ["", "Week by week (true and thrown away: by the sample world's truth)"]
    lines.append(f"  {'':<28}" + "".join(f"{batch:>14}" for batch in weeks))
    for name in ("pairs", "triplets", "texts"):
        lines.append(f"  {name:<28}" + "".join(f"{week.get(name) or 0:>14,}" for week in weeks.values()))
    for name, words in SHARES.items():
        values = [week.get(name) for week in weeks.values()]
        if any(value is not None for value in values):
            shown = ("-" if value is None else f"{100 * value:.1f}%" for value in values)
            lines.append(f"  {words:<28}" + "".join(f"{value:>14}" for value in shown))
    return lines


def summary_text(summary: Mapping[str, Any], root: Path) -> str:
    """The demo's last page: what came out, what it cost, where to look next."""
    lines = ["", "What came out", f"  versions    {', '.join(summary['versions']) or 'none'}"]
    lines += [f"  fingerprint {value[:16]} {tag}" for tag, value in summary.get("fingerprints", {}).items()]
    lines.append(
        f"  newest      {summary['images']:,} images, {summary['pairs']:,} pairs, {summary['triplets']:,} triplets"
    )
    for stage, reasons in summary["drops"].items():
        lines.append(
            f"  dropped     {stage}: "
            + ", ".join(f"{count:,} {reason}" for reason, count in sorted(reasons.items(), key=lambda x: -x[1]))
        )
    work = {k: v for k, v in summary["incremental"].items() if k in ("embed", "caption", "judge")}
    if work:
        lines += ["", "The second week did only what was new", f"  {'':<10}{'new':>8}{'done':>8}{'reused':>8}"]
        lines += [f"  {stage:<10}{c['new']:>8,}{c['done']:>8,}{c['reused']:>8,}" for stage, c in work.items()]
    lines += week_lines(summary.get("weeks") or {})
    if summary["metrics"]:
        lines += ["", "Retrieval on the held-out benchmark", f"  {'':<28}{'mAP@5':>8}{'R@1':>8}{'R@10':>8}"]
        for model, kinds in summary["metrics"].items():
            for kind, m in kinds.items():
                columns = "".join(
                    f"{100 * m[k]:>8.1f}" if k in m else f"{'-':>8}"
                    for k in ("map_at_5", "recall_at_1", "recall_at_10")
                )
                lines.append(f"  {model + ', ' + kind.replace('_', ' '):<28}{columns}")
    lines += certainty_lines(summary)
    lines.append(f"  promoted    {'yes' if summary['promoted'] else 'no'}: {summary['why']}")
    if summary["truth"]:
        lines += ["", "All weeks together, against the sample world's truth (evaluation only)"]
        lines += [f"  {TRUTH.get(name, name):<28}{100 * value:>7.1f}%" for name, value in summary["truth"].items()]
    seconds = {k: v for k, v in summary["seconds"].items() if k not in (*PLUMBING, "total")}
    lines += ["", f"Seconds by stage (of {summary['seconds']['total']:.0f} in all)"]
    lines.append("  " + ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()))
    lines += [
        "",
        "Where to look next",
        f"  {root / 'gallery.html'}   48 triplets to look at",
        "  make ui                  the same Airflow in your browser",
        f"  git clone {root / 'origin.git'} mine && cd mine && dvc pull",
        f"  {root / 'summary.json'}   these figures",
    ]
    return "\n".join(lines)


def read_json(path: Path) -> dict[str, Any]:
    """The file's mapping; empty when it is not there."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def git_output(repository: Path, *words: str) -> str:
    """What a git command prints; empty when it fails."""
    done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def model_metrics(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """{"base" | "finetuned": {"composed" | "image_only" | "text_only": {...}}} of the evaluation's report."""
    models = evaluation.get("metrics", evaluation)
    return {name: models[name] for name in ("base", "finetuned") if isinstance(models.get(name), dict)}


def summarize(
    root: Path, weeks: Sequence[Sequence[TaskRun]], training: Sequence[TaskRun], total_s: float
) -> dict[str, Any]:
    """The summary, from what was published and what the tasks reported."""
    origin = root / "origin.git"
    tags = git_output(origin, "tag", "--list", "dataset/*", "--sort=creatordate").split()
    versions = [json.loads(git_output(origin, "show", f"{tag}:version.json") or "{}") for tag in tags]
    version = versions[-1] if versions else {}
    rows = version.get("rows", {})
    evaluation = read_json(root / "evaluation.json")
    everything = [task for week in (*weeks, training) for task in week]
    decision = next((task.report for task in training if task.task_id == "promote"), {})
    return {
        "versions": tags,
        "fingerprints": {tag: v.get("fingerprint", "") for tag, v in zip(tags, versions, strict=True)},
        "images": int(rows.get("images", 0)),
        "pairs": int(rows.get("pairs", 0)),
        "triplets": int(rows.get("triplets", 0)),
        "weeks": version.get("weeks") or {},
        "drops": version.get("drops") or count_drops(everything),
        "seconds": stage_seconds(everything, total_s),
        "promoted": bool(decision.get("figures", {}).get("is_promoted")),
        "why": str((decision.get("notes") or ["promote said nothing"])[-1])
        .removeprefix("not promoted: ")
        .removeprefix("promoted: "),
        "metrics": model_metrics(evaluation),
        "main_metric": evaluation.get("main_metric"),
        "intervals": {name: evaluation["intervals"][name] for name in ("base", "finetuned")}
        if evaluation.get("intervals")
        else {},
        "composition_gap": evaluation.get("composition_gap") or {},
        "paraphrases": evaluation.get("paraphrases") or {},
        "contamination": evaluation.get("contamination") or {},
        "truth": evaluation.get("truth") or {},
        "incremental": count_increments(weeks[-1]),
    }
