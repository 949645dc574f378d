"""Promote: the fine-tuned candidate replaces the promoted model when it is better, and is published like a version.

Reads    reports/evaluation.json, models/candidate, and the recipe's seed noise (reports/noise-<recipe>.json, written by
         `python -m tasks noise`; `promote.min_gain` alone decides where it was not measured).
Writes   models/promoted, with a model card and the submission files of splits with hidden answers; publishes the tag
         `model/<name>` on origin's branch `dataset`, and tells MLflow of it where MLFLOW_TRACKING_URI is set.

The rule is tasks/promote/decision.py. A candidate that is not better is no error: the report says why, exit code 0. In
a dry run nothing is written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.config.public import public_params
from tasks.errors import DataError
from tasks.evaluate.scores import composed_scores
from tasks.models.retrievers.load import load_retriever
from tasks.models.retrievers.onnx_export import export_onnx
from tasks.names import batch_name
from tasks.pages.model_card import ModelFacts, model_card
from tasks.promote.decision import Noise, PromotionRule, decide
from tasks.promote.registry import register_model
from tasks.publish.dvc_repo import commit_outputs
from tasks.publish.git import read_at
from tasks.publish.publish import Publication, Published, publish
from tasks.publish.published import MODEL_SECTIONS, MODEL_STAGES
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.atomic import atomic_write
from tasks.train.recipe import recipe_id

CANDIDATE, PROMOTED, BASE = "finetuned", "promoted", "base"  # models in reports/evaluation.json's `metrics`


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read evaluation.json: {"metrics": {model: {"composed" | "image_only" | "text_only": {metric: value}}}, ...}.

    Raises:
        DataError: missing, or without the candidate's and the base's composed scores.
    """
    if not path.exists():
        raise DataError(f"{path}: missing; run `python -m tasks evaluate` first")
    evaluation: dict[str, Any] = json.loads(path.read_text())
    for model in (CANDIDATE, BASE):
        if "composed" not in evaluation.get("metrics", {}).get(model, {}):
            raise DataError(
                f"{path}: metrics.{model}.composed is missing; found {sorted(evaluation.get('metrics', {}))}"
            )
    return evaluation


def read_noise(path: Path) -> Noise | None:
    """Read the table that `python -m tasks noise` wrote; None where the noise was not measured.

    Raises:
        DataError: fewer than two seeds, or no table of noise.
    """
    if not path.exists():
        return None
    table = json.loads(path.read_text())
    if len(table.get("seeds", ())) < 2 or "metrics" not in table:
        raise DataError(f"{path}: expected the scores of at least two seeds; run `python -m tasks noise` again")
    return Noise(len(table["seeds"]), {metric: values["deviation"] for metric, values in table["metrics"].items()})


def seen_share(evaluation: Mapping[str, Any]) -> float:
    """The largest share of a benchmark's query and answer images that was trained on, over its benchmarks, 0..1."""
    sections = [evaluation, *(evaluation.get("benchmarks") or {}).values()]
    return max(float((s.get("contamination") or {}).get("share", 0.0)) for s in sections)


def report_figures(evaluation: Mapping[str, Any], metric: str, *, is_promoted: bool) -> dict[str, float]:
    """Figures of the stage's report: is_promoted (1 or 0), and the main metric of each model that was scored."""
    figures = {"is_promoted": float(is_promoted)}
    for model in (BASE, PROMOTED, CANDIDATE):
        value = (evaluation["metrics"].get(model) or {}).get("composed", {}).get(metric)
        if value is not None:
            figures[f"{model}_{metric}"] = float(value)
    return figures


def read_costs(root: Path) -> dict[str, Any]:
    """What training and evaluating cost in this run, as tasks/meter.py wrote it; empty where a stage ran elsewhere."""
    paths = {stage: root / ".run" / "costs" / f"{stage}.json" for stage in ("train", "evaluate")}
    return {stage: json.loads(path.read_text()) for stage, path in paths.items() if path.exists()}


def hub_name(model: str) -> tuple[str, bool]:
    """(a model's name on the Hub, or a folder's last name; whether it is a folder): a card names no path of a
    machine.
    """
    is_local = Path(model).is_dir() or model.startswith((".", "/", "~")) or model.count("/") > 1
    return (Path(model).name if is_local else model), is_local


def read_instruction(model: Path) -> str:
    """The task instruction that a saved MLLM's queries carry; empty for a CLIP."""
    path = model / "config_sentence_transformers.json"
    return str(json.loads(path.read_text())["prompts"].get("query", "")) if path.is_file() else ""


def shown_recipe(params: Params) -> dict[str, Any]:
    """Section `train` as a card shows it: further datasets by their names, no path of a machine."""
    recipe = params.train.model_dump(mode="json", exclude={"device"})
    shown: dict[str, Any] = public_params({"train": recipe})["train"]
    return {**shown, "datasets": [dataset["name"] for dataset in recipe["datasets"]]}


def write_card(params: Params, root: Path, evaluation: Mapping[str, Any], why: str, noise: Noise | None) -> str:
    """The model card of the candidate.

    Args:
        params: recipe and name of the run.
        root: the run's worktree.
        evaluation: reports/evaluation.json.
        why: the reason for the promotion, half a sentence.
        noise: of the recipe.
    """
    version = json.loads((root / "version.json").read_text())
    recipe = shown_recipe(params)
    base, is_local = hub_name(params.train.base_model)
    recipe["base_model"] = base
    config_file = root / "models" / "candidate" / "config.json"
    kind = json.loads(config_file.read_text())["model_type"] if config_file.is_file() else "clip"
    facts = ModelFacts(
        tag=f"model/{batch_name(params)}",
        data_version=f"dataset/{version['version']}",
        base_model=base,
        recipe={"recipe": recipe_id(params), **recipe, "seed": params.open_run.seed},
        why=why,
        noise=None if noise is None else {"seeds": noise.seeds, "margin": noise.margin(params.promote.metric)},
        costs=read_costs(root),
        version=version,
        kind=kind,
        base_is_local=is_local,
        license_name=params.version.license,
        instruction=read_instruction(root / "models" / "candidate"),
        has_onnx=params.promote.onnx,
    )
    return model_card(evaluation, facts)


def put_in_place(candidate: Path, promoted: Path, card: str, submissions: Path, *, has_onnx: bool = False) -> None:
    """Copy the candidate to models/promoted with its card; the old folder is replaced as a whole.

    Args:
        candidate: the fine-tuned model.
        promoted: where it goes.
        card: text of its README.md.
        submissions: folder of submission files; it need not exist.
        has_onnx: export it to the folder onnx/, too.
    Raises:
        ConfigError: an export of another type than CLIP, or without the extra `onnx`.
    """
    with atomic_write(promoted) as folder:
        shutil.copytree(candidate, folder)
        if submissions.is_dir():
            shutil.copytree(submissions, folder / "submissions")
        if has_onnx:
            export_onnx(load_retriever(str(candidate), device="cpu"), folder / "onnx")
        readme = folder / "README.md"
        readme.unlink(missing_ok=True)  # it may be a hard link of DVC's cache
        readme.write_text(card)


def publish_model(params: Params, root: Path, why: str) -> Published:
    """Track models/promoted by DVC and publish it under the tag `model/<name>`."""
    name, data_version = batch_name(params), json.loads((root / "version.json").read_text())["version"]
    lock = read_at(root, f"refs/tags/dataset/{data_version}", "dvc.lock")
    commit_outputs(root, MODEL_STAGES, ["models/promoted"], lock)
    paths = ("params.yaml", "dvc.lock", "models/promoted.dvc", "reports/evaluation.json")
    publication = Publication(
        tag=f"model/{name}",
        message=f"Model {name}, trained on {data_version}: {why}",
        files={path: (root / path).read_bytes() for path in paths},
        stages=MODEL_STAGES,
        sections=MODEL_SECTIONS,
    )
    return publish(root, publication)


def run(params: Params, store: Store) -> StageReport:
    """Decide, and publish the candidate when it won. `figures["is_promoted"]` is 1 or 0; the last note says why.

    Raises:
        DataError: no evaluation, no candidate.
    """
    root, config = store.root, params.promote
    evaluation = read_evaluation(root / "reports" / "evaluation.json")
    noise = read_noise(root / "reports" / f"noise-{recipe_id(params)}.json")
    scores = composed_scores(evaluation)
    rule = PromotionRule(config.metric, config.min_gain, noise, config.seen_share_max)
    decision = decide(scores[CANDIDATE], scores.get(PROMOTED), scores[BASE], rule, seen_share=seen_share(evaluation))
    is_dry_run = params.open_run.dry_run
    figures = report_figures(evaluation, config.metric, is_promoted=decision.is_promoted and not is_dry_run)
    report = StageReport("promote", read=1, new=1, done=1, figures=figures)
    if not decision.is_promoted:
        report.dropped, report.notes = {"not_better": 1}, [f"not promoted: {decision.why}"]
        return report
    if is_dry_run:
        report.notes = [f"dry run: not promoted, though {decision.why}"]
        return report
    candidate = root / "models" / "candidate"
    if not candidate.is_dir():
        raise DataError(f"{candidate}: missing; run `python -m tasks train` first")
    card = write_card(params, root, evaluation, decision.why, noise)
    submissions = root / "reports" / "evaluation"
    put_in_place(candidate, root / "models" / "promoted", card, submissions, has_onnx=config.onnx)
    published = publish_model(params, root, decision.why)
    report.written = 1
    report.notes = [
        published.tag,
        f"commit {published.commit[:12]}, {published.objects} objects verified in the remote",
        f"promoted: {decision.why}",
    ]
    facts = {"commit": published.commit, "recipe": recipe_id(params)}
    if said := register_model(published.tag, f"{published.tag}@{published.commit}", figures, facts):
        report.notes.append(said)
    return report
