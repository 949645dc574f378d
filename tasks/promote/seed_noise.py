"""Seed noise: how much the seed alone changes a recipe's scores; measured once per recipe, by a command of its own.

    python -m tasks noise

Run it in the worktree of a model run (`python -m tasks open_run --run-id noise --kind model`), or in any clone with
data. It costs `promote.noise_seeds` trainings.

Trains and evaluates the recipe of params.yaml with each seed, by the very commands of a run (`python -m tasks train`,
`evaluate`), in folders below .run/noise/. A seed whose evaluation is there is skipped, so a killed run resumes.

Writes reports/noise-<recipe>.json: every score of each seed, mean and sample standard deviation. In a run's worktree
the table is then tracked by DVC and published on the branch `dataset` under the tag `noise/<recipe>`; `open_run` brings
it into later runs, where `promote` reads it. Which runs are of one recipe: tasks/train/recipe.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tasks.config import Params
from tasks.config.public import public_params
from tasks.errors import ConfigError, DataError, NothingToDo, TransientError
from tasks.evaluate.scores import composed_scores
from tasks.publish.dvc_repo import commit_outputs
from tasks.publish.git import resolve_ref
from tasks.publish.publish import Publication, Published, publish
from tasks.records import StageReport
from tasks.store import Store
from tasks.train.recipe import recipe_id, recipe_values

ERRORS = {e.exit_code: e for e in (ConfigError, DataError)}


def statistics(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """metric -> {"values", "mean", "deviation"} over the seeds; the sample standard deviation, divided by n - 1.

    Args:
        scores: per seed metric -> score; at least two.
    """
    out = {}
    for metric in scores[0]:
        values = [s[metric] for s in scores]
        out[metric] = {"values": values, "mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}
    return out


def prepare_folder(folder: Path, store: Store, params: Params, seed: int) -> None:
    """Make the root of one seed: the run's data by a link, its parameters with that seed.

    There is no promoted model in it: the recipe is measured, not the gain over another model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(store.folder("data").resolve(), target_is_directory=True)
    changed = params.model_dump(mode="json", by_alias=True)
    changed["open_run"]["seed"] = seed
    store.write_bytes(folder / "params.yaml", yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode())


def run_stage(stage: str, folder: Path) -> None:
    """Run a stage on a seed's root, from the current folder: relative model paths refer to it, and the code is there.

    Raises:
        ConfigError, DataError, TransientError: by the stage's exit code, with its last lines.
    """
    environment = {k: v for k, v in os.environ.items() if k != "MEGAPAIRS_PROFILE"}  # its parameters are resolved
    line = [sys.executable, "-m", "tasks", stage, "--root", str(folder.resolve())]
    done = subprocess.run(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last_lines = "\n".join(done.stdout.splitlines()[-5:])
        raise ERRORS.get(done.returncode, TransientError)(
            f"noise: `{' '.join(line[1:])}` ended with {done.returncode}:\n{last_lines}"
        )


def evaluate_seed(folder: Path, store: Store, params: Params, seed: int) -> bool:
    """Train and evaluate with one seed; returns False where that was done before."""
    if (folder / "reports" / "evaluation.json").exists():
        return False
    prepare_folder(folder, store, params, seed)
    for stage in ("train", "evaluate"):
        run_stage(stage, folder)
    shutil.rmtree(folder / "models")  # only the scores are needed; a model is a hundred megabytes or more
    return True


def noise_table(params: Params, store: Store, seeds: Sequence[int], folders: Sequence[Path]) -> dict[str, Any]:
    """The content of reports/noise-<recipe>.json, from the evaluations in the seeds' folders."""
    evaluations = [json.loads((folder / "reports" / "evaluation.json").read_text()) for folder in folders]
    version = store.folder("version.json")
    return {
        "recipe": recipe_id(params),
        "recipe_of": {**recipe_values(params), **public_params({"train": recipe_values(params)["train"]})},
        "seeds": list(seeds),
        "data_version": json.loads(version.read_text())["version"] if version.exists() else None,
        "base_revision": evaluations[0]["revisions"]["base"],
        "metrics": statistics([composed_scores(e)["finetuned"]["composed"] for e in evaluations]),
    }


def publish_table(store: Store, name: str, tag: str, message: str) -> Published:
    """Track the table by DVC and publish it under its tag.

    Args:
        store: of the run's worktree.
        name: path of the table in it.
        tag: noise/<recipe>.
        message: of the commit and of the tag.
    """
    commit_outputs(store.root, (), [name], store.folder("dvc.lock").read_bytes())
    files = {path: store.folder(path).read_bytes() for path in (f"{name}.dvc", "dvc.lock", "params.yaml")}
    return publish(store.root, Publication(tag, message, files))


def run(params: Params, store: Store) -> StageReport:
    """Measure the seeds that are missing, write the table, and publish it from a run's worktree (not in a dry run).

    Raises:
        ConfigError, DataError, TransientError: as a training or evaluation ended.
        NothingToDo: it was measured and published before.
    """
    recipe, metric = recipe_id(params), params.promote.metric
    name, tag = f"reports/noise-{recipe}.json", f"noise/{recipe}"
    is_opened = store.folder(".run", "opened.json").exists()
    if is_opened and store.folder(name).exists() and resolve_ref(store.root, f"refs/tags/{tag}"):
        raise NothingToDo(f"the noise of recipe {recipe} was measured before: {name}, tag {tag}")
    seeds = [params.open_run.seed + n for n in range(params.promote.noise_seeds)]
    folders = [store.folder(".run", "noise", recipe, str(seed)) for seed in seeds]
    measured = [evaluate_seed(folder, store, params, seed) for folder, seed in zip(folders, seeds, strict=True)]
    table = noise_table(params, store, seeds, folders)
    store.write_bytes(store.folder(name), (json.dumps(table, indent=1) + "\n").encode())
    mean, deviation = table["metrics"][metric]["mean"], table["metrics"][metric]["deviation"]
    notes = [f"recipe {recipe}: {metric} {mean:.4f}, standard deviation {deviation:.4f} over seeds {seeds}"]
    if is_opened and not params.open_run.dry_run:
        published = publish_table(store, name, tag, notes[0])
        notes.append(f"{tag}, commit {published.commit[:12]}, {published.objects} objects verified in the remote")
    return StageReport(
        "noise",
        read=len(seeds),
        written=1,
        new=len(seeds),
        done=len(seeds),
        reused=measured.count(False),
        figures={f"{m}_deviation": values["deviation"] for m, values in table["metrics"].items()},
        notes=notes,
    )
