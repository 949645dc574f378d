"""The model card: README.md of a promoted model: scores with intervals, cost, and the way back to its triplets.

Pure text from figures. The words are in templates/model_card.md.j2, where every value is escaped for Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.pages.render import markdown

METRICS = {"map_at_5": "mAP@5", "recall_at_1": "Recall@1", "recall_at_10": "Recall@10"}
COLUMNS = 4  # metrics shown of a benchmark, at most
MLLM_NAMES = {"llava_next": "LLaVA-NeXT", "qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL"}


@dataclass(frozen=True)
class ModelFacts:
    """What the card says about a model beside its scores.

    Attributes:
        tag: of the model, model/YYYY.MM.DD[.n].
        data_version: tag of the triplets that it was trained on.
        base_model: the checkpoint that fine-tuning started from.
        recipe: parameter -> value.
        why: the reason for the promotion, half a sentence.
        noise: {"seeds", "margin"} of the recipe, None where it was not measured.
        costs: stage -> what it cost (tasks/meter.py).
        version: version.json of the data.
        kind: model_type of the model's config.json: clip, or an MLLM architecture.
        base_is_local: the base is a folder, which the Hub's header cannot name.
        license_name: of the data, as its card states it.
        instruction: of the MLLM type: task instruction in every query's prompt.
        has_onnx: the folder onnx/ is published with the model.
    """

    tag: str
    data_version: str
    base_model: str
    recipe: Mapping[str, Any]
    why: str
    noise: Mapping[str, Any] | None = None
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    version: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "clip"
    base_is_local: bool = False
    license_name: str = "other"
    instruction: str = ""
    has_onnx: bool = False

    @property
    def is_mllm(self) -> bool:
        """Whether one decoder reads image and text together."""
        return self.kind in MLLM_NAMES


def interval_text(bounds: Sequence[float] | None) -> str:
    """A 95% interval, or nothing."""
    return f" [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else ""


def benchmark_context(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """One benchmark of reports/evaluation.json: how it was scored, its scores with intervals, and what they show."""
    metrics = {
        model: kinds
        for model, kinds in evaluation["metrics"].items()
        if all(isinstance(v, Mapping) for v in kinds.values())
    }
    measured = [m for kinds in metrics.values() for values in kinds.values() for m in values if "." not in m]
    main = evaluation.get("main_metric")
    first = [*([main] if main else []), *METRICS, *measured]
    columns = [m for m in dict.fromkeys(first) if m in measured][:COLUMNS]
    intervals = evaluation.get("intervals") or {}
    scores = [
        (
            model,
            kind,
            *(
                f"{values[m]:.4f}{interval_text(intervals.get(model, {}).get(kind, {}).get(m))}" if m in values else ""
                for m in columns
            ),
        )
        for model, kinds in metrics.items()
        for kind, values in kinds.items()
    ]
    return {
        "name": evaluation.get("benchmark") or "held-out triplets",
        "protocol": protocol_context(evaluation) if evaluation.get("templates") else None,
        "header": ("model", "query", *(METRICS.get(m, m) for m in columns)),
        "scores": scores,
        "findings": findings(evaluation),
    }


def protocol_context(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """How the benchmark was scored: rule, sizes, query texts by task, source."""
    return {
        "rule": evaluation["rule"],
        "queries": f"{evaluation['queries']:,}",
        "gallery": f"{evaluation['gallery']:,}",
        "templates": list(evaluation["templates"].items()),
        "source": evaluation["source"],
    }


def findings(evaluation: Mapping[str, Any]) -> list[str]:
    """What the scores show, a sentence each: gaps, gains, wordings, images seen in training."""
    main = evaluation.get("main_metric")
    lines = [
        f"{model}: composed {main} is {gap['value']:+.4f}{interval_text(gap['interval'])} over its better half "
        f"({gap['over']})"
        for model, gap in (evaluation.get("composition_gap") or {}).items()
    ]
    lines += [
        f"finetuned over {rival}: {gain['value']:+.4f}{interval_text(gain['interval'])}"
        for rival, gain in (evaluation.get("gain") or {}).items()
    ]
    lines += [
        f"{model}, {spread['queries']:.0f} queries in {spread['wordings']:.1f} wordings: mean {spread['mean']:.4f}, "
        f"each query's worst {spread['worst']:.4f}, best {spread['best']:.4f}"
        for model, spread in (evaluation.get("paraphrases") or {}).items()
    ]
    seen = evaluation.get("contamination")
    if seen:
        lines.append(
            f"trained on {seen['copies']} of {seen['images']:,} images of queries and answers, "
            f"{seen['distractor_copies']} of {seen['distractors']:,} others"
        )
    return lines


def cost_text(cost: Mapping[str, Any]) -> str:
    """A stage's cost in words; energy only where it was measured."""
    parts = [f"{cost['wall_s']:.0f} s wall", f"{cost['cpu_s']:.0f} CPU seconds"]
    if cost.get("gpus"):
        parts.append(f"{cost['gpu_s']:.0f} GPU seconds on {cost['gpus']}")
    measured = cost.get("energy_j")
    parts.append("energy not measurable here" if measured is None else f"{measured / 3600:.2f} Wh")
    return ", ".join(parts)


def hub_header(facts: ModelFacts) -> dict[str, Any]:
    """The card's YAML header, as the Hub reads it: licence, language, task, library, base and tags."""
    header: dict[str, Any] = {
        "license": facts.license_name,
        "language": ["en"],
        "pipeline_tag": "image-feature-extraction",
        "library_name": "transformers",
        "base_model": facts.base_model,
        "tags": [
            "composed-image-retrieval",
            "bge-vl",
            "sentence-transformers",
            "mllm" if facts.is_mllm else "clip",
            f"trained-on:{facts.data_version}",
        ],
    }
    if facts.license_name == "other":
        header["license_name"] = "see-base-model-and-data"
    if facts.base_is_local:
        del header["base_model"]
    return header


def model_card(evaluation: Mapping[str, Any], facts: ModelFacts) -> str:
    """README.md of a promoted model.

    Args:
        evaluation: reports/evaluation.json; of hand-made ones only `metrics` is needed.
        facts: all else.
    """
    header = hub_header(facts)
    rows, fingerprint = facts.version.get("rows"), facts.version.get("fingerprint")
    data = None
    if rows and fingerprint:
        counts = {table: f"{rows[table]:,}" for table in ("triplets", "images")}
        data = {**counts, "fingerprint": fingerprint[:16]}
    return markdown(
        "model_card.md.j2",
        header=header,
        tag=facts.tag,
        base_model=facts.base_model,
        kind=MLLM_NAMES.get(facts.kind, "CLIP"),
        is_mllm=facts.is_mllm,
        is_llava=facts.kind == "llava_next",
        is_local=facts.base_is_local,
        license_name=facts.license_name,
        instruction=facts.instruction,
        has_onnx=facts.has_onnx,
        data_version=facts.data_version,
        data=data,
        why=facts.why,
        recipe=list(facts.recipe.items()),
        noise=facts.noise,
        benchmarks=[benchmark_context(e) for e in (evaluation, *(evaluation.get("benchmarks") or {}).values())],
        costs=[(stage, cost_text(cost)) for stage, cost in facts.costs.items()],
    )
