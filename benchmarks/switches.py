"""What each switch of the trainer is worth on the sample world: one training a switch and seed, of the same triplets.

    python -m benchmarks.worlds --seeds demo --keep          # the demo's two weeks, without Airflow
    python -m benchmarks.switches [--world .run/benchmarks/worlds/demo] [--seeds 0,1,2] [--only "cosine;hardness 2"]
        [--set '{"locked_batch_triplets": 64}'] [--threads 1] [--out .run/benchmarks/switches] [--minutes 60]

Each arm of `ARMS` is the recipe of profile demo, with --set laid over its `train`, with one switch changed, trained by
stage `train` on the world's triplets and scored on its benchmark (500 composed queries). Arms that leave the locked
phase as it is start from its weights, which are trained once a seed, unless a dataset has `keep_base`; `--check` trains
the default whole and compares the weights. `teacher` learns from the default recipe's model of another seed.
`average_seeds` takes seeds of its own, three for each of its models.

A training is not repeated: results stand in <out>/results.jsonl, by arm, its parameters, seed and world, and a command
that was cut off, or ended after --minutes, goes on where it was, a training from its last checkpoint (each 50 steps by
default). `cpu_s` of such a training is that of its last part.

No arm has adapters, nor a base in bfloat16 or 4 bits under them: the sample world's retriever is a CLIP, which is
trained as a whole (docs/decisions/0164).

Printed is a table: mean and standard deviation of mAP@5, R@1 and R@10 over the seeds (points, 0 to 100), and mean and
standard deviation of the difference to the default of the same seed. The last line is one JSON object: world, seeds,
trainings (a count), base_map_at_5, default_map_at_5, is_equal (with `--check`), and those means and deviations by arm.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.composed import composed_queries
from benchmarks.measure import fair_environment, parse_arguments
from benchmarks.triplets import drawn_version
from tasks.config import Params, overlay, parse_params, read_raw, resolve
from tasks.sample.benchmark import make_benchmark
from tasks.store import Store
from tasks.train import seeds as seeds_of_training

METRICS = ("map_at_5", "recall_at_1", "recall_at_10")
TEACHER_SEED = 100
# Sections of `train` that the locked phase does not read.
MAIN_PHASE = {"steps", "learning_rate", "warmup_steps", "batch_triplets", "teacher", "refresh_negatives"}
BOTH_TOWERS = {"steps": 20, "warmup_steps": 10}  # profile demo has no main phase
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "main phase of 20 steps": BOTH_TOWERS,
    "no captions": {"datasets": [], "locked_steps": 150},
    "warm-up 20 of 20 steps": {"steps": 20, "warmup_steps": 20},
    "warm-up 4 of 20 steps": {"steps": 20, "warmup_steps": 4},
    "warm-up 10 of 40 steps": {"steps": 40, "warmup_steps": 10},
    "warm-up 10 of 80 steps": {"steps": 80, "warmup_steps": 10},
    "cosine": {"optimizer": {"schedule": "cosine"}},
    "norms and biases not decayed": {"optimizer": {"decay_norms_and_biases": False}},
    "matryoshka 64 and 32": {"matryoshka_dimensions": [64, 32]},
    "hardness 2": {"hardness_weight": 2.0},
    "hardness 9": {"hardness_weight": 9.0},
    "judge_weight 0.2": {"judge_weight": 0.2},
    "teacher of another seed": BOTH_TOWERS | {"teacher": {"model": "teacher", "weight": 1.0, "temperature": 0.02}},
    "refresh_negatives each 5 steps": BOTH_TOWERS | {"refresh_negatives": {"every_steps": 5}},
    "validation with the best kept": {"validation": {"share": 0.1, "every_steps": 25}},
    "early stopping": BOTH_TOWERS | {"validation": {"share": 0.1, "every_steps": 5, "patience": 2}},
    "learnt temperature": {"learn_temperature": True},
    "mask_margin 0.1": {"mask_margin": 0.1},
    "average_seeds 3": {"average_seeds": 3},
    "count_copies": {"count_copies": True},
    "weight decay 0.1": {"optimizer": {"weight_decay": 0.1}},
    "betas 0.9 and 0.999": {"optimizer": {"betas": [0.9, 0.999]}},
}
QUICK = {"seeds": "0", "only": "hardness 2"}
QUICK_TRAIN: dict[str, Any] = {
    "datasets": [],
    "locked_steps": 2,
    "locked_batch_triplets": 16,
    "locked_warmup_steps": 1,
    "locked_candidates": 32,
    "batch_triplets": 8,
    "steps": 2,
    "warmup_steps": 1,
}


class Bench:
    """Trains and scores arms on one world."""

    def __init__(self, world: Path, out: Path, changes: Mapping[str, Any]) -> None:
        """Nothing is trained yet.

        Args:
            world: folder with run/data and benchmark/, as benchmarks.worlds leaves it.
            out: of results.jsonl and what is in work.
            changes: of `train`, for every arm.
        """
        self.world, self.out, self.changes = world, out, {"train": dict(changes)}
        self.raw = read_raw(Path("params.yaml"))
        self.work = out / "work"
        self.results_file = out / "results.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        lines = self.results_file.read_text().splitlines() if self.results_file.exists() else []
        self.results: dict[str, dict[str, Any]] = {r["id"]: r for r in map(json.loads, lines)}

    def params(self, train: Mapping[str, Any], seed: int) -> Params:
        """The recipe with changes of `train`."""
        changes = overlay(overlay(self.changes, {"train": dict(train)}), {"open_run": {"seed": seed}})
        return parse_params(resolve(self.raw, "demo", changes))

    def train(self, params: Params, folder: Path) -> Path:
        """Run stage `train` in a folder of its own, from the checkpoint there where one is; the candidate's folder."""
        from tasks.train.stage import run

        run(params, self.work_store(folder))
        return folder / "models" / "candidate"

    def work_store(self, folder: Path) -> Store:
        """A store in a folder of its own, with the world's data."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "data").is_symlink():
            (folder / "data").symlink_to((self.world / "run" / "data").resolve(), target_is_directory=True)
        return Store(folder)

    def locked_folder(self, seed: int) -> Path:
        """Where the weights of the locked phase of a seed on this world are kept."""
        recipe = self.params({}, seed).train.model_dump(mode="json", exclude=MAIN_PHASE)
        return self.out / "locked" / f"{digest([recipe, str(self.world.resolve())])}-{seed}"

    def teacher_folder(self) -> Path:
        """Where the teacher of this world is kept."""
        return self.out / f"teacher-{self.name_of('default', TEACHER_SEED)}"

    def locked_model(self, seed: int) -> Path:
        """The model of a seed after the default recipe's locked phase, trained once."""
        from tasks.train.datasets import read_training_set
        from tasks.train.seeds import build_trainer, load_base_model, training_data

        params, saved = self.params({}, seed), self.locked_folder(seed)
        if not saved.exists():
            store = self.work_store(self.work / saved.name)
            training_set, retriever = read_training_set(params.train, store), load_base_model(params)
            trainer = build_trainer(params, store, training_set, retriever)
            trainer.fit_text_tower(training_data(params, store, training_set, retriever))
            retriever.model.eval()
            retriever.save(saved)
            shutil.rmtree(store.root)
        return saved

    def teacher(self) -> Path:
        """A model of the default recipe with a seed that no arm has."""
        saved = self.teacher_folder()
        if not saved.exists():
            made = self.train(self.params({}, TEACHER_SEED), self.work / "teacher")
            shutil.copytree(made, saved)
            shutil.rmtree(self.work / "teacher")
        return saved

    def params_of(self, arm: str, seed: int, *, whole: bool = False) -> Params:
        """The parameters of an arm's training; from the locked phase's weights where it leaves that as it is."""
        changes = dict(ARMS[arm])
        if "teacher" in changes:
            changes["teacher"] = changes["teacher"] | {"model": str(self.teacher())}
        # what keep_base holds on to is the model that a training begins with
        recipe = self.params(changes, seed).train
        is_kept = any(dataset.keep_base for dataset in recipe.datasets)
        if recipe.steps and not whole and not is_kept and set(changes) <= MAIN_PHASE:
            changes |= {"base_model": str(self.locked_model(seed)), "locked_steps": 0}
        return self.params(changes, 10 * seed if "average_seeds" in changes else seed)

    def name_of(self, arm: str, seed: int) -> str:
        """Of an arm's training in results.jsonl."""
        recipe = self.params(ARMS[arm], seed).train.model_dump(mode="json")
        return digest([recipe, seed, str(self.world.resolve())])

    def is_known(self, arm: str, seed: int) -> bool:
        """Whether the training is done."""
        return self.name_of(arm, seed) in self.results

    def result(self, arm: str, seed: int) -> dict[str, Any]:
        """Scores of an arm with a seed, and the CPU-seconds of its training."""
        known = self.name_of(arm, seed)
        if known not in self.results:
            params = self.params_of(arm, seed)
            start = time.process_time()
            model = self.train(params, self.work / known)
            found = {"id": known, "arm": arm, "seed": seed, "cpu_s": round(time.process_time() - start, 1)}
            found |= self.score(str(model), params)
            with self.results_file.open("a") as file:
                file.write(json.dumps(found) + "\n")
            shutil.rmtree(self.work / known)
            self.results[known] = found
            print(json.dumps(found), flush=True)
        return self.results[known]

    def score(self, model: str, params: Params) -> dict[str, float]:
        """Mean of each metric over the benchmark's composed queries, in points."""
        metrics, _ = composed_queries(model, self.world / "benchmark", params)
        return {name: round(float(metrics[name].mean()), 3) for name in METRICS}

    def check(self, seed: int) -> bool:
        """Whether the default trained whole has the weights of the one from the kept locked phase."""
        files = [
            (self.train(self.params_of("default", seed, whole=whole), self.work / f"{whole}") / "model.safetensors")
            .read_bytes()
            for whole in (True, False)
        ]  # fmt: skip
        shutil.rmtree(self.work)
        return files[0] == files[1]


def digest(value: Any) -> str:
    """A short name of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 of one value), rounded to hundredths."""
    return round(statistics.fmean(values), 2), round(statistics.stdev(values) if len(values) > 1 else 0.0, 2)


def summary_of(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Per arm mean and deviation of each metric and of the paired difference of mAP@5 to the default.

    Args:
        results: arm -> scores by seed, in the seeds' order; `default` among them.
    """
    default = [r["map_at_5"] for r in results["default"]]
    found = {}
    for arm, scores in results.items():
        row: dict[str, Any] = {"seeds": len(scores), "cpu_s": round(statistics.fmean(s["cpu_s"] for s in scores), 1)}
        row |= {metric: spread([s[metric] for s in scores]) for metric in METRICS}
        row["difference"] = spread([s["map_at_5"] - d for s, d in zip(scores, default, strict=False)])
        found[arm] = row
    return found


def table_lines(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The summary as a Markdown table."""
    lines = ["| | mAP@5 | against the default | R@1 | R@10 |", "|---|---|---|---|---|"]
    for arm, row in summary.items():
        cells = [f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in (row[metric] for metric in METRICS)]
        change = "" if arm == "default" else "{:+.2f} ± {:.2f}".format(*row["difference"])
        lines.append(f"| {arm} | {cells[0]} | {change} | {cells[1]} | {cells[2]} |")
    return lines


def drawn_world(folder: Path) -> Path:
    """A little world for --quick."""
    if not folder.exists():
        drawn_version(folder / "run", families=8)
        make_benchmark(folder / "benchmark", queries=10, gallery=40)
    return folder


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.switches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=Path, default=Path(".run/benchmarks/worlds/demo"))
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--only", default=";".join(ARMS), metavar="ARMS", help="arms of the table, separated by ;")
    parser.add_argument("--set", type=json.loads, default={}, metavar="JSON", help="laid over `train`, for every arm")
    parser.add_argument("--minutes", type=float, default=1e6, help="no training is begun after so many")
    parser.add_argument("--check", action="store_true", help="train the default of the first seed whole, and compare")
    parser.add_argument("--out", type=Path, default=Path(".run/benchmarks/switches"))
    parser.add_argument("--threads", type=int, default=2, help="of each training; 1 where others run beside it")
    args = parse_arguments(parser, argv, QUICK)
    seeds_of_training.THREADS_MIN = args.threads
    world = drawn_world(args.out / "drawn") if args.quick else args.world
    bench = Bench(world, args.out, QUICK_TRAIN if args.quick else args.set)
    seeds, end = [int(seed) for seed in args.seeds.split(",")], time.monotonic() + 60 * args.minutes
    results: dict[str, list[dict[str, Any]]] = {}
    for arm in dict.fromkeys(["default", *args.only.split(";")]):
        for seed in seeds:
            if bench.is_known(arm, seed) or time.monotonic() < end:
                results.setdefault(arm, []).append(bench.result(arm, seed))
    params = bench.params({}, seeds[0])
    summary = summary_of(results)
    figures = {
        "world": world.name,
        "seeds": seeds,
        "trainings": sum(map(len, results.values())),
        "base_map_at_5": bench.score(params.train.base_model, params)["map_at_5"],
        "default_map_at_5": summary["default"]["map_at_5"][0],
        **({"is_equal": bench.check(seeds[0])} if args.check else {}),
        "arms": summary,
    }
    print("\n".join(table_lines(summary)))
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    fair_environment("switches")
    main()
