"""Noise: what the seed alone does to a recipe's scores, measured once per recipe by a command of its own.

    python -m tasks noise

Run in the worktree of a model run (`python -m tasks open_run --run-id noise --kind model`), or in any clone with data.
Trains and evaluates the recipe of params.yaml with `promote.noise_seeds` seeds, each as the very commands that a run
has (`python -m tasks train`, `evaluate`), in folders below .run/noise/; a seed that is done is its own marker, so a
killed run goes on. Writes reports/noise-<recipe>.json: every score of each seed, mean and
sample standard deviation. In a run's worktree the table is then tracked by DVC and published on the branch `dataset`
under the tag `noise/<recipe>`; `open_run` brings it into later runs, where `promote` reads it. What makes two recipes
one: tasks/train/recipe.py. Costs `noise_seeds` trainings.
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
from tasks.errors import ConfigError, DataError, NothingToDo, TransientError
from tasks.evaluate.scores import composed_scores
from tasks.publish.dvc_repo import commit_outputs
from tasks.publish.git import resolve_ref
from tasks.publish.publish import Publication, publish
from tasks.records import StageReport
from tasks.store import Store
from tasks.train.recipe import recipe_id, recipe_of

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


def lay_out(folder: Path, store: Store, params: Params, seed: int) -> None:
    """A root for one seed: the run's data by a link, its parameters with that seed, no model in place (it is not what
    is measured).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(store.folder("data").resolve(), target_is_directory=True)
    changed = params.model_dump(mode="json", by_alias=True)
    changed["open_run"]["seed"] = seed
    store.write_bytes(folder / "params.yaml", yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode())


def command(stage: str, folder: Path) -> None:
    """Run a stage on the seed's root, from the folder that this one runs in: there lie the code and what relative model
    paths name.

    Raises:
        ConfigError, DataError, TransientError: as the stage ended, with its last lines.
    """
    environment = {k: v for k, v in os.environ.items() if k != "MEGAPAIRS_PROFILE"}  # its parameters are resolved
    line = [sys.executable, "-m", "tasks", stage, "--root", str(folder.resolve())]
    done = subprocess.run(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-5:])
        raise ERRORS.get(done.returncode, TransientError)(
            f"noise: `{' '.join(line[1:])}` ended with {done.returncode}:\n{last}"
        )


def run(params: Params, store: Store) -> StageReport:
    """Measure what is missing, write the table, and publish it from a run's worktree (not in a dry run).

    Raises:
        ConfigError, DataError, TransientError: as a training or evaluation ended.
        NothingToDo: it was measured and published before.
    """
    recipe = recipe_id(params)
    name = f"reports/noise-{recipe}.json"
    is_opened = store.folder(".run", "opened.json").exists()
    if is_opened and store.folder(name).exists() and resolve_ref(store.root, f"refs/tags/noise/{recipe}"):
        raise NothingToDo(f"the noise of recipe {recipe} was measured before: {name}, tag noise/{recipe}")
    seeds = [params.open_run.seed + n for n in range(params.promote.noise_seeds)]
    evaluations = []
    reused = 0
    for seed in seeds:
        folder = store.folder(".run", "noise", recipe, str(seed))
        result = folder / "reports" / "evaluation.json"
        if result.exists():
            reused += 1
        else:
            lay_out(folder, store, params, seed)
            for stage in ("train", "evaluate"):
                command(stage, folder)
            shutil.rmtree(folder / "models")  # the scores are wanted, not a hundred megabytes a seed
        evaluations.append(json.loads(result.read_text()))
    version = store.folder("version.json")
    table = {
        "recipe": recipe,
        "recipe_of": recipe_of(params),
        "seeds": seeds,
        "data_version": json.loads(version.read_text())["version"] if version.exists() else None,
        "base_revision": evaluations[0]["revisions"]["base"],
        "metrics": statistics([composed_scores(e)["finetuned"]["composed"] for e in evaluations]),
    }
    store.write_bytes(store.folder(name), (json.dumps(table, indent=1) + "\n").encode())
    main = table["metrics"][params.promote.metric]
    notes = [
        f"recipe {recipe}: {params.promote.metric} {main['mean']:.4f}, standard deviation {main['deviation']:.4f} over seeds {seeds}"
    ]
    if is_opened and not params.open_run.dry_run:
        commit_outputs(store.root, (), [name], store.folder("dvc.lock").read_bytes())
        files = {path: store.folder(path).read_bytes() for path in (f"{name}.dvc", "dvc.lock", "params.yaml")}
        published = publish(store.root, Publication(f"noise/{recipe}", notes[0], files))
        notes.append(
            f"noise/{recipe}, commit {published.commit[:12]}, {published.objects} objects verified in the remote"
        )
    figures = {f"{metric}_deviation": found["deviation"] for metric, found in table["metrics"].items()}
    return StageReport(
        "noise",
        read=len(seeds),
        written=1,
        new=len(seeds),
        done=len(seeds),
        reused=reused,
        figures=figures,
        notes=notes,
    )
