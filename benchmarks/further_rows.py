"""What a version's rows for other tasks do to composed retrieval and to image-text retrieval, when trained on too.

    python -m benchmarks.further_rows --run FOLDER [--arms none captions ...] [--seeds 0 1 2] [--weight 0.5]
        [--set '{"steps": 60}'] [--out .run/benchmarks/further_rows]

FOLDER holds the tables of a finished run of the sample world and its params.yaml (`python -m benchmarks.worlds --keep`
leaves one at <out>/<seed>/run); it is only read. `--drawn` draws a small one.

| arm | trained on |
|---|---|
| base | nothing: the model that training starts from |
| none | the triplets alone |
| caption_to_image | and caption_to_image |
| captions | and caption_to_image, image_to_caption |
| pairs | and description_to_pair, difference_classification, which_image_fits |
| all | and all five |
| recipe | what the run's own params.yaml names, as it is: profile demo holds captions to the base model |

The other arms contrast their rows with the batch's candidates, in one direction, and end with a main phase, the only
one that reads rows of pairs: of 10 steps on triplets where the recipe has none. Each takes as many steps on triplets:
those on rows come on top, `weight` of them per step on triplets, shared by the arm's tasks. Composed retrieval is
scored as stage evaluate does, on a benchmark that the world does not contain; image-text retrieval on the different
scenes of its gallery, each with three captions as the web writes them: recall at 1 and at 5 of the image for the
caption, and of the caption for the image. The last line is JSON: arm -> metric -> mean and standard deviation over the
seeds, in points. A training that stands in <out>/runs.jsonl is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.image_text import answer_places, recalls
from benchmarks.measure import parse_arguments
from benchmarks.triplets import drawn_version
from tasks.config import (
    LOCKED_TASKS,
    ROW_TASKS,
    Params,
    TrainConfig,
    load_params,
    overlay,
    parse_params,
    read_raw,
    resolve,
)
from tasks.evaluate.benchmarks import read_benchmark
from tasks.evaluate.scores import score_retriever
from tasks.models.retrievers.clip import ClipRetriever
from tasks.publish.rows_files import update_files
from tasks.sample.benchmark import make_benchmark
from tasks.store import Store
from tasks.train import seeds as seeds_of_training
from tasks.train import stage as train

CAPTION_TASKS = ("caption_to_image", "image_to_caption")
RECIPE = "recipe"
MAIN_STEPS = 10  # on triplets
ARMS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "caption_to_image": CAPTION_TASKS[:1],
    "captions": CAPTION_TASKS,
    "pairs": tuple(task for task in ROW_TASKS if task not in CAPTION_TASKS),
    "all": ROW_TASKS,
    RECIPE: (),
}
QUICK = {
    "drawn": True,
    "arms": ["none", "all"],
    "seeds": [0],
    "set": {"steps": 2, "locked_steps": 2, "batch_triplets": 8, "locked_batch_triplets": 8, "locked_candidates": 16},
    "queries": 20,
    "gallery": 80,
    "out": Path(".run/benchmarks/further_rows-quick"),
}


def work_root(run: Path, folder: Path) -> Store:
    """A root with the tables of a run, as links, and further rows of its own."""
    root = folder / "version"
    (root / "data").mkdir(parents=True, exist_ok=True)
    for table in (run / "data").iterdir():
        if table.name != "rows" and not (root / "data" / table.name).exists():
            (root / "data" / table.name).symlink_to(table.resolve())
    store = Store(root)
    batches = sorted({path.stem.rpartition("-")[0] or path.stem for path in store.table_files("triplets")})
    paths = [store.folder("data", "rows", task, f"{batch}.parquet") for task in ROW_TASKS for batch in batches]
    update_files(store, paths, "tiny")
    return store


def add_captions(version: Path) -> Path:
    """Captions for the images of a drawn version, which have none; the version's folder."""
    store = Store(version)
    ids = store.read_table("images", ["image_id"])["image_id"].to_pylist()
    rows = [{"image_id": i, "caption": f"scene {i}", "caption_source": "drawn"} for i in ids]
    store.write(store.table_path("captions", "2026.01.05"), rows, "captions")
    return version


def triplet_steps(train: TrainConfig) -> tuple[int, int]:
    """Steps of the main and of the locked phase that a recipe takes on triplets, counts."""
    own = train.version_weight
    in_main, in_locked = own, own
    for dataset in train.datasets:
        in_main += dataset.weight
        in_locked += dataset.weight * (dataset.path in LOCKED_TASKS)
    return round(train.steps * own / in_main), round(train.locked_steps * own / in_locked)


def with_seed(params: Params, seed: int) -> Params:
    """The parameters with another seed."""
    return parse_params(overlay(params.model_dump(mode="json", by_alias=True), {"open_run": {"seed": seed}}))


def arm_params(params: Params, tasks: Sequence[str], weight: float) -> Params:
    """The parameters of an arm: the tasks' rows, and steps that leave the triplets as many as without them."""
    steps, locked_steps = triplet_steps(params.train)
    main = {} if steps else {"warmup_steps": MAIN_STEPS}
    datasets = [{"name": t, "format": "rows", "path": t, "weight": weight / len(tasks)} for t in tasks]
    factor = 1 + (weight if tasks else 0)
    locked = sum(weight / len(tasks) for t in tasks if t in LOCKED_TASKS)
    raw = params.model_dump(mode="json", by_alias=True)
    changes = {
        "steps": round((steps or MAIN_STEPS) * factor),
        "locked_steps": round(locked_steps * (1 + locked)),
        "version_weight": 1.0,
        "datasets": datasets,
    }
    return parse_params(overlay(raw, {"train": changes | main}))


def score(model: str, benchmark_folder: Path, params: Params) -> dict[str, float]:
    """All metrics of a model, in points."""
    retriever = ClipRetriever(model, device="cpu", threads=params.open_run.threads)
    benchmark = read_benchmark(benchmark_folder, params.evaluate.template)
    composed = score_retriever(retriever, benchmark, params.evaluate.batch_images)["composed"]
    scores = {name: 100 * composed[name] for name in ("map_at_5", "recall_at_1") if name in composed}
    return scores | recalls(answer_places(model, benchmark_folder, benchmark_folder / "truth.jsonl", params))


def summary_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Arm -> metric -> [mean, standard deviation over the seeds]."""
    out: dict[str, dict[str, list[float]]] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        rows = [run["scores"] for run in runs if run["arm"] == arm]
        for metric in rows[0]:
            values = [row[metric] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            out.setdefault(arm, {})[metric] = [round(statistics.fmean(values), 2), round(spread, 2)]
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.further_rows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, help="a finished run of the sample world")
    parser.add_argument("--drawn", action="store_true", help="draw a small version in its place")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--weight", type=float, default=0.5, help="steps on further rows per step on triplets")
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="laid over section train")
    parser.add_argument("--benchmark-seed", type=int, default=2011)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--gallery", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(".run/benchmarks/further_rows"))
    parser.add_argument("--threads", type=int, default=2, help="of each training; 1 where others run beside it")
    args = parse_arguments(parser, argv, QUICK)
    seeds_of_training.THREADS_MIN = args.threads
    if args.drawn:
        run, params = (
            add_captions(drawn_version(args.out / "drawn", 12)),
            parse_params(resolve(read_raw(Path("params.yaml")), "test", {})),
        )
    else:
        run, params = args.run, load_params(args.run / "params.yaml")
    params = parse_params(overlay(params.model_dump(mode="json", by_alias=True), {"train": args.set}))
    store, benchmark = work_root(run, args.out), args.out / "benchmark"
    if not (benchmark / "truth.jsonl").exists():
        shutil.rmtree(benchmark, ignore_errors=True)
        sizes = {"queries": args.queries, "gallery": args.gallery}
        make_benchmark(benchmark, seed=args.benchmark_seed, truth=benchmark / "truth.jsonl", **sizes)
    kept = args.out / "runs.jsonl"
    runs = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []

    def add(arm: str, seed: int, model: str) -> None:
        runs.append({"arm": arm, "seed": seed, "scores": score(model, benchmark, params)})
        kept.write_text("".join(json.dumps(run) + "\n" for run in runs))
        print(json.dumps(runs[-1]), flush=True)

    if not any(run["arm"] == "base" for run in runs):
        add("base", 0, params.train.base_model)
    for seed in args.seeds:
        for arm in args.arms:
            if not any((run["arm"], run["seed"]) == (arm, seed) for run in runs):
                tasks = [task for task in ARMS[arm] if any(store.folder("data", "rows", task).glob("*.parquet"))]
                changed = params if arm == RECIPE else arm_params(params, tasks, args.weight)
                train.run(with_seed(changed, seed), store)
                add(arm, seed, str(store.folder("models", "candidate")))
    summary = summary_of(runs)
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
