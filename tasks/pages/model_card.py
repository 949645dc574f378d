"""The model card: scores with intervals, cost, how to load the model and how to go back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tasks.pages.dataset_card import table


def interval_text(bounds: Sequence[float] | None) -> str:
    """A 95% interval, or nothing."""
    return f" [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else ""


def score_section(evaluation: Mapping[str, Any]) -> str:
    """One benchmark of reports/evaluation.json: how it was scored, its scores with intervals, gaps and wordings."""
    metrics = {
        model: kinds
        for model, kinds in evaluation["metrics"].items()
        if all(isinstance(v, Mapping) for v in kinds.values())
    }
    found = [m for kinds in metrics.values() for values in kinds.values() for m in values if "." not in m]
    known = {"map_at_5": "mAP@5", "recall_at_1": "Recall@1", "recall_at_10": "Recall@10"}
    main = evaluation.get("main_metric")
    shown = [m for m in dict.fromkeys([*([main] if main else []), *known, *found]) if m in found][:4]
    intervals = evaluation.get("intervals") or {}
    rows = []
    for model, kinds in metrics.items():
        for kind, values in kinds.items():
            bounds = intervals.get(model, {}).get(kind, {})
            rows.append(
                (model, kind, *(f"{values[m]:.4f}{interval_text(bounds.get(m))}" if m in values else "" for m in shown))
            )
    lines = [f"## Scores ({evaluation.get('benchmark') or 'held-out triplets'})"]
    if evaluation.get("templates"):
        templates = "; ".join(
            f"{task + ': ' if task else ''}`{text}`" for task, text in evaluation["templates"].items()
        )
        lines.append(
            f"{evaluation['rule']} {evaluation['queries']:,} queries, {evaluation['gallery']:,} in the gallery. Query text: {templates}. Source: {evaluation['source']}."
        )
    lines.append(table(("model", "query", *(known.get(m, m) for m in shown)), rows))
    for model, gap in (evaluation.get("composition_gap") or {}).items():
        lines.append(
            f"- {model}: composed {main} is {gap['value']:+.4f}{interval_text(gap['interval'])} over its better half ({gap['over']})"
        )
    for rival, gain in (evaluation.get("gain") or {}).items():
        lines.append(f"- finetuned over {rival}: {gain['value']:+.4f}{interval_text(gain['interval'])}")
    for model, spread in (evaluation.get("paraphrases") or {}).items():
        words = f"{spread['queries']:.0f} queries in {spread['wordings']:.1f} wordings"
        lines.append(
            f"- {model}, {words}: mean {spread['mean']:.4f}, each query's worst {spread['worst']:.4f}, best {spread['best']:.4f}"
        )
    seen = evaluation.get("contamination")
    if seen:
        lines.append(
            f"- trained on {seen['copies']} of {seen['images']:,} images of queries and answers, {seen['distractor_copies']} of {seen['distractors']:,} others"
        )
    return "\n".join(line if line.startswith("- ") else line + "\n" for line in lines)


def cost_text(cost: Mapping[str, Any]) -> str:
    """A stage's cost in words; energy only where it was measured."""
    parts = [f"{cost['wall_s']:.0f} s wall", f"{cost['cpu_s']:.0f} CPU seconds"]
    if cost.get("gpus"):
        parts.append(f"{cost['gpu_s']:.0f} GPU seconds on {cost['gpus']}")
    parts.append(
        f"{cost['energy_j'] / 3600:.2f} Wh" if cost.get("energy_j") is not None else "energy not measurable here"
    )
    return ", ".join(parts)


def model_card(
    evaluation: Mapping[str, Any],
    *,
    tag: str,
    data_version: str,
    base_model: str,
    recipe: Mapping[str, Any],
    why: str,
    metrics: Mapping[str, Any],
    noise: Mapping[str, Any] | None = None,
    costs: Mapping[str, Mapping[str, Any]] | None = None,
    version: Mapping[str, Any] | None = None,
) -> str:
    """README.md of a promoted model: data version, recipe, scores with intervals, noise, cost, and the way back to its
    triplets.

    Args:
        evaluation: reports/evaluation.json; of hand-made ones only `metrics` is needed.
        metrics: its scores.
        noise: {"seeds", "margin"} of the recipe, None where it was not measured.
        costs: stage -> what it cost (tasks/meter.py).
        version: version.json of the data.
    """
    header = {
        "pipeline_tag": "image-feature-extraction",
        "library_name": "transformers",
        "base_model": base_model,
        "tags": ["composed-image-retrieval", "bge-vl", f"trained-on:{data_version}"],
    }
    sections = [
        score_section({**evaluation, "metrics": metrics}),
        *(score_section(s) for s in (evaluation.get("benchmarks") or {}).values()),
    ]
    known = version or {}
    rows = known.get("rows") or {}
    about = (
        f" ({rows['triplets']:,} triplets over {rows['images']:,} images, fingerprint `{known['fingerprint'][:16]}`)"
        if rows and known.get("fingerprint")
        else ""
    )
    if noise is None:
        noise_text = "The seed noise of this recipe was not measured (`python -m tasks noise`); promotion went by `promote.min_gain` alone."
    else:
        noise_text = f"Seed noise of the recipe, from {noise['seeds']} seeds: a difference below {noise['margin']:.4f} in the main metric is no difference (one-sided 95%)."
    cost_lines = "\n".join(f"- {stage}: {cost_text(cost)}" for stage, cost in (costs or {}).items()) or "Not recorded."
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---
# BGE-VL (CLIP type), {tag}

Fine-tuned from `{base_model}` on data version `{data_version}`{about}. Query = normalised sum of the image's and the text's projected features. Promoted: {why}.

The triplets that made it: `git checkout {data_version} && dvc pull` in the clone that holds this tag; `version.json` and `manifest.json` there name every parameter and file.

## Recipe
{table(("parameter", "value"), list(recipe.items()))}

{noise_text}

{chr(10).join(sections)}
Numbers in brackets: 95% bootstrap intervals over the queries.

## Cost
{cost_lines}
"""
