"""The whole factory on sample worlds that nothing was tuned on, without Airflow: what its data is worth, week by week.

    python -m benchmarks.worlds --seeds 11,12,13,14,15 [--profile demo] [--set '{"train": {"locked_steps": 300}}']
        [--first 2200] [--second 260] [--jobs 2] [--threads 2] [--out .run/benchmarks/worlds] [--keep]

For each seed a world and a benchmark of its own are drawn (the demo's world has seed 7, its run seed 0, its benchmark
seed 11: `--seeds demo` is that one) and the run's seed is the world's. Two weekly batches go through the stages of the
DAG dataset_refresh, gates included, by the very functions that `python -m tasks` calls; then train, and base and
fine-tuned model are scored as stage evaluate does, with the composed mAP@5 by the number of a query's edits beside it,
and image-text retrieval on the same gallery (benchmarks/image_text.py).
Truth, completeness, shortcuts, yield and false rejections are those of tasks/pages/week_figures.py. No truth is read
before all that is made. What stands in <out>/<seed> is removed first.

A world takes seven to sixteen minutes of a core, by the machine, half of them the judge's; `--threads 1` where --jobs
fills the cores, since a training of two threads waits for the slower one. The last line is one JSON object: worlds (a
count), map_at_5_mean, map_at_5_min, base_map_at_5_mean (points, 0 to 100), text_to_image_recall_at_1_change_mean and
image_to_text_recall_at_1_change_mean (points, fine-tuned minus base), and over all worlds and weeks
true_share_min_week, complete_share_min_week, negatives_also_right_max, shortcut_share_max, yield_first_week_min,
yield_later_week_min, false_rejection_share_max (shares, 0 to 1). <out>/worlds.json has the same for each world,
and <out>/<seed>.json that world's alone as soon as it is done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.composed import composed_queries
from benchmarks.image_text import DIRECTIONS, answer_places, change_texts, changes, recalls
from benchmarks.measure import parse_arguments
from tasks.__main__ import run_stage
from tasks.config import Params, overlay, parse_params, read_raw, resolve
from tasks.pages.week_figures import weekly_figures
from tasks.publish.rows_files import count_further_rows, write_further_rows
from tasks.sample.benchmark import make_benchmark
from tasks.sample.world import make_world
from tasks.store import Store
from tasks.train import seeds as seeds_of_training

PROJECT = Path(__file__).resolve().parent.parent
WEEKS = ("2026.01.04", "2026.01.11")
DEMO = {"world": 7, "run": 0, "benchmark": 11}  # seeds of `make demo`
EDITS = (1, 2, 3)
QUICK = {"seeds": "11", "first": 120, "second": 40, "profile": "test", "jobs": 1, "queries": 20, "gallery": 80}


@dataclass(frozen=True)
class Job:
    """One world.

    Attributes:
        name: of its folder and its line in the table.
        seeds: world, run and benchmark -> seed.
        root: folder of all that it makes.
        profile: of params.yaml.
        changes: laid over it.
        files: of each week, counts.
        queries, gallery: of the benchmark, counts.
        threads: of its training, a count.
    """

    name: str
    seeds: Mapping[str, int]
    root: Path
    profile: str
    changes: Mapping[str, Any]
    files: Sequence[int]
    queries: int
    gallery: int
    threads: int


def seeds_of(name: str) -> dict[str, int]:
    """The seeds of a world: a number's own, `demo` for those of `make demo`."""
    return DEMO if name == "demo" else {"world": int(name), "run": int(name), "benchmark": 1000 + int(name)}


def params_of(job: Job, batch: str) -> Params:
    """The parameters of one week's run."""
    source = {"name": "sample", "path": str(job.root / "source"), "license_code": "CC0-1.0", "attribution": "sample"}
    opened = {"batch": batch, "date": batch.replace(".", "-"), "seed": job.seeds["run"]}
    changes = overlay(dict(job.changes), {"open_run": opened, "ingest": {"sources": [source]}})
    return parse_params(resolve(read_raw(Path("params.yaml")), job.profile, changes))


def stages_of(params: Params) -> list[tuple[str, str | None]]:
    """(stage, item) of a dataset run, in order."""
    encoders = list(map(str, params.embed.encoders))
    return [
        *(("ingest", None), ("validate", "images"), ("recaption", None)),
        *((stage, encoder) for stage in ("embed", "mine") for encoder in encoders),
        *(("select", None), ("validate", "pairs"), ("caption", None), ("judge", None), ("validate", "triplets")),
    ]


def run_weeks(job: Job) -> Params:
    """Draw and run every week, then train; the parameters of the last one."""
    offset, params = 0, params_of(job, WEEKS[0])
    store = Store(job.root / "run")
    shutil.copytree(PROJECT / "expectations", store.folder("expectations"))
    for batch, files in zip(WEEKS, job.files, strict=True):
        truth = job.root / "truth.jsonl"
        make_world(job.root / "source", seed=job.seeds["world"], images=files, offset=offset, truth=truth)
        offset += files
        params = params_of(job, batch)
        values = params.model_dump(mode="json", by_alias=True)
        store.write_bytes(store.folder("params.yaml"), yaml.safe_dump(values).encode())
        for stage, item in stages_of(params):
            report = run_stage(stage, item, None, store.root)
            print(f"{job.name} {batch} {stage} {item or ''}: {report.seconds:.0f} s, {report.written}", flush=True)
        write_further_rows(params, store)  # of this week, as stage version does; the training reads all weeks'
    run_stage("train", None, None, store.root)
    return params


def composed_scores(model: str, folder: Path, params: Params) -> dict[str, float]:
    """map_at_5 of composed queries in points, of all (`all`) and of those of 1, 2 and 3 edits, and their counts."""
    import numpy as np

    from tasks.sample.truth import parse

    metrics, texts = composed_queries(model, folder, params)
    values = metrics["map_at_5"]
    readings = [parse(text) for text in texts]
    edits = np.array([0 if reading is None else len(reading.edits) for reading in readings])
    return {
        "all": float(values.mean()),
        **{str(n): float(values[edits == n].mean()) for n in EDITS if (edits == n).any()},
    }


def images_named(store: Store) -> int:
    """Different queries and targets of all triplets, a count."""
    triplets = store.read_table("triplets", ["query_image_id", "target_image_id"]).to_pydict()
    return len({image for ids in triplets.values() for image in ids})


def run_world(job: Job) -> dict[str, Any]:
    """Run one world.

    Returns:
        name, triplets and images (counts), further_rows (task -> count), base and finetuned (`composed_scores`),
        image_text (`recalls` of both, and `changes`), weeks (`weekly_figures`).
    """
    shutil.rmtree(job.root, ignore_errors=True)
    job.root.mkdir(parents=True)
    seeds_of_training.THREADS_MIN = job.threads
    params = run_weeks(job)
    store, benchmark = Store(job.root / "run"), job.root / "benchmark"
    truth = job.root / "benchmark_truth.jsonl"
    make_benchmark(benchmark, seed=job.seeds["benchmark"], queries=job.queries, gallery=job.gallery, truth=truth)
    candidate = str(store.folder("models", "candidate"))
    places = [answer_places(model, benchmark, truth, params) for model in (params.train.base_model, candidate)]
    world = {
        "name": job.name,
        "triplets": store.read_table("triplets", ["triplet_id"]).num_rows,
        "images": images_named(store),
        "further_rows": count_further_rows(store.root),
        "base": composed_scores(params.train.base_model, benchmark, params),
        "finetuned": composed_scores(candidate, benchmark, params),
        "image_text": {"base": recalls(places[0]), "finetuned": recalls(places[1]), "changes": changes(*places)},
        "weeks": weekly_figures(store, job.root / "truth.jsonl", WEEKS),
    }
    job.root.with_suffix(".json").write_text(json.dumps(world, indent=1) + "\n")  # known before the others are done
    return world


def summary_of(worlds: Sequence[Mapping[str, Any]]) -> dict[str, float | int | None]:
    """The last line's values; a figure that no week has is None."""
    scores = [world["finetuned"]["all"] for world in worlds]

    def extreme(pick: Any, name: str, weeks: slice = slice(None)) -> float | None:
        values = [week.get(name) for world in worlds for week in list(world["weeks"].values())[weeks]]
        known = [value for value in values if value is not None]
        return pick(known) if known else None

    return {
        "worlds": len(worlds),
        "map_at_5_mean": statistics.fmean(scores),
        "map_at_5_min": min(scores),
        "base_map_at_5_mean": statistics.fmean(world["base"]["all"] for world in worlds),
        **{
            f"{name}_recall_at_1_change_mean": statistics.fmean(
                world["image_text"]["changes"][name][0] for world in worlds
            )
            for name in DIRECTIONS
        },
        "true_share_min_week": extreme(min, "true_share"),
        "complete_share_min_week": extreme(min, "complete_share"),
        "negatives_also_right_max": extreme(max, "negatives_also_right"),
        "shortcut_share_max": extreme(max, "shortcut_share"),
        "yield_first_week_min": extreme(min, "yield", slice(0, 1)),
        "yield_later_week_min": extreme(min, "yield", slice(1, None)),
        "false_rejection_share_max": extreme(max, "false_rejection_share"),
    }


def table_lines(worlds: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a world, a line a week below it, then mean and spread of the scores."""
    lines = [f"{'world':<10}{'triplets':>9}{'images':>8}{'base':>7}{'mAP@5':>7}" + "".join(f"{n:>5} ed" for n in EDITS)]
    shares = (
        "yield",
        "true_share",
        "complete_share",
        "negatives_also_right",
        "shortcut_share",
        "false_rejection_share",
    )
    for world in worlds:
        scores = [world["base"]["all"], world["finetuned"]["all"]]
        row = f"{world['name']:<10}{world['triplets']:>9,}{world['images']:>8,}" + "".join(f"{s:>7.1f}" for s in scores)
        lines.append(row + "".join(f"{world['finetuned'].get(str(n), float('nan')):>8.1f}" for n in EDITS))
        for batch, week in world["weeks"].items():
            known = {name: week.get(name) for name in shares}
            texts = ", ".join(f"{name} {100 * value:.1f}%" for name, value in known.items() if value is not None)
            lines.append(f"  {batch}: {week['pairs']:,} pairs, {week['triplets']:,} triplets, {texts}")
        lines.append(f"  {change_texts(world['image_text']['changes'])}")
    scores = [world["finetuned"]["all"] for world in worlds]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    lines.append(f"mAP@5 {statistics.fmean(scores):.1f}, standard deviation over {len(scores)} worlds {spread:.1f}")
    return lines


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.worlds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="11,12,13,14,15", help="worlds, separated by commas; demo is the demo's")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="laid over the profile's parameters")
    parser.add_argument("--first", type=int, default=2200, help="files of the first week")
    parser.add_argument("--second", type=int, default=260, help="files of the second week")
    parser.add_argument("--queries", type=int, default=500, help="of each benchmark")
    parser.add_argument("--gallery", type=int, default=2000, help="least images of each benchmark")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="worlds side by side")
    parser.add_argument("--threads", type=int, default=2, help="of each training; 1 where worlds fill the cores")
    parser.add_argument("--keep", action="store_true", help="leave what the worlds made in --out")
    parser.add_argument("--out", type=Path, default=Path(".run/benchmarks/worlds"))
    args = parse_arguments(parser, argv, QUICK)
    sizes = {
        "files": (args.first, args.second),
        "queries": args.queries,
        "gallery": args.gallery,
        "threads": args.threads,
    }
    jobs = [
        Job(name, seeds_of(name), args.out.resolve() / name, args.profile, args.set, **sizes)
        for name in dict.fromkeys(args.seeds.split(","))
    ]
    if args.jobs > 1 and len(jobs) > 1:
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
            worlds = list(pool.map(run_world, jobs))
    else:
        worlds = list(map(run_world, jobs))
    summary = summary_of(worlds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "worlds.json").write_text(json.dumps({"worlds": worlds, "summary": summary}, indent=1) + "\n")
    if not args.keep:
        for job in jobs:
            shutil.rmtree(job.root)
    print("\n".join(table_lines(worlds)))
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
