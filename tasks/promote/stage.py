"""Promote: the fine-tuned candidate becomes the model in place when it is better, and is published like a version.

Reads reports/evaluation.json, models/candidate and the recipe's noise (reports/noise-<recipe>.json, `python -m tasks
noise`; `min_gain` alone where it was not measured); writes models/promoted (with a model card, and the submission files
of splits with hidden answers) and publishes the tag `model/<name>` on origin's branch `dataset`. The rule is
tasks/promote/decision.py. Not better: the report says why, exit 0.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.errors import DataError
from tasks.evaluate.scores import composed_scores
from tasks.names import batch_name
from tasks.pages.model_card import ModelFacts, model_card
from tasks.promote.decision import Noise, decide
from tasks.publish.dvc_repo import commit_outputs
from tasks.publish.git import read_at
from tasks.publish.publish import Publication, publish
from tasks.publish.published import MODEL_SECTIONS, MODEL_STAGES
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.atomic import atomic_write
from tasks.train.recipe import recipe_id

CANDIDATE, IN_PLACE, BASE = "finetuned", "promoted", "base"  # models in reports/evaluation.json's `metrics`


def read_evaluation(path: Path) -> dict[str, Any]:
    """evaluation.json: {"metrics": {model: {"composed" | "image_only" | "text_only": {metric: value}}}, ...}.

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


def place(candidate: Path, promoted: Path, card: str, submissions: Path | None = None) -> None:
    """Copy the candidate to models/promoted with its card; the old folder is replaced as a whole."""
    with atomic_write(promoted) as folder:
        shutil.copytree(candidate, folder)
        if submissions is not None and submissions.is_dir():
            shutil.copytree(submissions, folder / "submissions")
        readme = folder / "README.md"
        readme.unlink(missing_ok=True)
        readme.write_text(card)


def recipe_table(params: Params) -> Mapping[str, Any]:
    """What was done to train, for the card."""
    return {
        "recipe": recipe_id(params),
        **params.train.model_dump(mode="json", exclude={"device"}),
        "seed": params.open_run.seed,
    }


def read_noise(path: Path) -> Noise | None:
    """The table that `python -m tasks noise` wrote, or None where it was not measured.

    Raises:
        DataError: fewer than two seeds, or no table of noise.
    """
    if not path.exists():
        return None
    table = json.loads(path.read_text())
    if len(table.get("seeds", ())) < 2 or "metrics" not in table:
        raise DataError(f"{path}: expected the scores of at least two seeds; run `python -m tasks noise` again")
    return Noise(len(table["seeds"]), {metric: found["deviation"] for metric, found in table["metrics"].items()})


def seen_share(evaluation: Mapping[str, Any]) -> float:
    """The largest share of a benchmark's query and answer images that was trained on, over its benchmarks, 0..1."""
    sections = [evaluation, *(evaluation.get("benchmarks") or {}).values()]
    return max(float((s.get("contamination") or {}).get("share", 0.0)) for s in sections)


def costs_of(root: Path) -> dict[str, Any]:
    """What training and evaluating cost in this run, as tasks/meter.py wrote it; empty where a stage ran elsewhere."""
    found = {stage: root / ".run" / "costs" / f"{stage}.json" for stage in ("train", "evaluate")}
    return {stage: json.loads(path.read_text()) for stage, path in found.items() if path.exists()}


def run(params: Params, store: Store) -> StageReport:
    """Decide, and publish the candidate when it won. `figures["is_promoted"]` is 1 or 0; the last note says why.

    Raises:
        DataError: no evaluation, no candidate.
    """
    root = store.root
    evaluation = read_evaluation(root / "reports" / "evaluation.json")
    metrics = evaluation["metrics"]
    scores = composed_scores(evaluation)
    noise = read_noise(root / "reports" / f"noise-{recipe_id(params)}.json")
    decision = decide(
        scores[CANDIDATE],
        scores.get(IN_PLACE),
        scores[BASE],
        params.promote.metric,
        params.promote.min_gain,
        noise=noise,
        seen_share=seen_share(evaluation),
        seen_share_max=params.promote.seen_share_max,
    )
    figures = {"is_promoted": float(decision.is_promoted)}
    for model in (BASE, IN_PLACE, CANDIDATE):
        value = (metrics.get(model) or {}).get("composed", {}).get(params.promote.metric)
        if value is not None:
            figures[f"{model}_{params.promote.metric}"] = float(value)
    if not decision.is_promoted:
        return StageReport(
            "promote",
            read=1,
            dropped={"not_better": 1},
            new=1,
            done=1,
            figures=figures,
            notes=[f"not promoted: {decision.why}"],
        )
    if params.open_run.dry_run:
        return StageReport(
            "promote",
            read=1,
            new=1,
            done=1,
            figures={**figures, "is_promoted": 0.0},
            notes=[f"dry run: not promoted, though {decision.why}"],
        )
    candidate = root / "models" / "candidate"
    if not candidate.is_dir():
        raise DataError(f"{candidate}: missing; run `python -m tasks train` first")
    tag = f"model/{batch_name(params)}"
    data_version = json.loads((root / "version.json").read_text())["version"]
    facts = ModelFacts(
        tag=tag,
        data_version=f"dataset/{data_version}",
        base_model=params.train.base_model,
        recipe=recipe_table(params),
        why=decision.why,
        noise=None if noise is None else {"seeds": noise.seeds, "margin": noise.margin(params.promote.metric)},
        costs=costs_of(root),
        version=json.loads((root / "version.json").read_text()),
    )
    card = model_card(evaluation, facts)
    place(candidate, root / "models" / "promoted", card, root / "reports" / "evaluation")
    commit_outputs(
        root, MODEL_STAGES, ["models/promoted"], read_at(root, f"refs/tags/dataset/{data_version}", "dvc.lock")
    )
    files = {
        "params.yaml": (root / "params.yaml").read_bytes(),
        "dvc.lock": (root / "dvc.lock").read_bytes(),
        "models/promoted.dvc": (root / "models" / "promoted.dvc").read_bytes(),
        "reports/evaluation.json": (root / "reports" / "evaluation.json").read_bytes(),
    }
    message = f"Model {batch_name(params)}, trained on {data_version}: {decision.why}"
    published = publish(root, Publication(tag, message, files, stages=MODEL_STAGES, sections=MODEL_SECTIONS))
    notes = [
        tag,
        f"commit {published.commit[:12]}, {published.objects} objects verified in the remote",
        f"promoted: {decision.why}",
    ]
    return StageReport("promote", read=1, written=1, new=1, done=1, figures=figures, notes=notes)
