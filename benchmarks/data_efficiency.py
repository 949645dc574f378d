"""The seed's claim in miniature: how much composed retrieval a number of training samples buys, by what the samples
are.

    python -m benchmarks.data_efficiency [--dataset CLONE] [--benchmark FOLDER] [--arms judged unjudged image_text
    random]
        [--sizes 50 100 200 400 800] [--image-text-factor 70] [--seeds 0 1 2] [--steps 150] [--batch 256] [--ablations
        [...]] [--out .run/benchmarks/data_efficiency]

CLONE is a version of the sample world (a demo's clone after `dvc pull`, or a run's worktree) and FOLDER a benchmark of
`python -m tasks.sample.benchmark`; without them those of the last `make demo` are taken. `--drawn` draws a small
version and benchmark of its own; `--quick` does so and trains for seconds: it shows that all runs, its figures mean
nothing.

| arm | a sample is |
|---|---|
| judged | a triplet of the version: mined pair, instructions that the judge let pass |
| unjudged | a mined pair with every instruction that was written for it |
| image_text | an image and its caption, learnt from text to image, as the image-text models do; beyond the version's
images new ones are drawn |
| random | two images drawn at random, with the instructions that the same captioner and writer give to them (`python -m
tasks caption`) |

All arms start from the same checkpoint and get the same batch, rate, temperature and further candidates (drawn from the
version's images, as in the recipe's locked phase), and N samples get as many steps as the `factor` x N image-text pairs
that they are compared with (enough for one pass over those); the text tower is trained on features of the locked image
tower (the recipe's first phase, LiT), so that sixty trainings fit a laptop. `--ablations` adds METHOD.md 1.2 in
miniature at the largest size: negatives none / query image / + mined (with `--candidates 0`, since others of the
version's images hold them too), and pairs by each encoder alone, in twos, by all three; and, with as many samples each,
judge on / off by shortcut filter on / off (only samples whose target neither text nor image alone finds first); and
judged samples of which none, 5, 20 and 40% are such shortcuts, as many as there are for the largest share.

A training that is done stands in <out>/runs.jsonl and is not done again, features of encoded images stand in
<out>/features (or --features, which studies of several worlds share): a study that was ended goes on where it was, and
`--done` gives the figures of what it has.
Writes <out>/figures.json and <out>/scaling.svg; the last line is JSON: per arm and size the mean and standard deviation
of composed mAP@5 over the seeds, and as `claim` for each N whether N judged triplets beat `factor` x N image-text
pairs. `--together OUT OUT ... --out NEW` reads such studies of several worlds and writes the same, mean and standard
deviation over the worlds.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from benchmarks.measure import parse_arguments
from benchmarks.triplets import drawn_version
from tasks.config import ENCODER_ROLES, Params, load_params
from tasks.evaluate.benchmarks import read_benchmark
from tasks.evaluate.retrieval import encode_images
from tasks.evaluate.scores import score_retriever
from tasks.judge import shortcuts
from tasks.knn.unit_rows import unit_rows
from tasks.models.retrievers.clip import ClipRetriever
from tasks.names import stable_id
from tasks.pages import charts
from tasks.sample.benchmark import make_benchmark
from tasks.sample.phrases import web_caption
from tasks.sample.scenes import Scene, draw_image, family
from tasks.store import Store
from tasks.store.atomic import write_bytes
from tasks.train.loss import BatchLabels, info_nce
from tasks.train.trainer import learning_rate_at

ARMS = ("judged", "unjudged", "image_text", "random")
NEGATIVES = ("none", "query", "mined")
ABLATIONS = ("negatives", "encoders", "filters", "shortcuts")
SHORTCUT_SHARES = (0.0, 0.05, 0.2, 0.4)  # of the samples of a training, 0..1
METRIC = "map_at_5"
ENCODED_AT_ONCE = 4096  # images a file of kept features, a count
COLOURS = {"judged": "#1b7837", "unjudged": "#a65f00", "image_text": "#762a83", "random": "#6b7280"}  # of the figure
DEMO = Path(".demo")
QUICK = {
    "drawn": True,
    "arms": ["judged", "image_text"],
    "sizes": [8, 16],
    "seeds": [0],
    "image_text_factor": 2,
    "steps": 3,
    "batch": 8,
    "out": Path(".run/benchmarks/data_efficiency-quick"),
}


@dataclass(frozen=True)
class Sample:
    """One training sample; `query` is None for an image-text pair."""

    query: str | None
    target: str
    texts: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    mined_by: tuple[str, ...] = ()
    is_shortcut: bool = False  # text or image alone finds the target (tasks/judge/shortcuts.py)


# --- the arms ---------------------------------------------------------------------------------------------------------


def triplet_samples(rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """Rows with query, target, negatives and instructions as samples; the query image is no mined negative."""
    return [
        Sample(
            r["query_image_id"],
            r["target_image_id"],
            tuple(r["instructions"]),
            tuple(i for i in r["negative_image_ids"] if i not in (r["query_image_id"], r["target_image_id"])),
            tuple(r["mined_by"]),
        )
        for r in rows
    ]


def written_pairs(store: Store) -> list[Sample]:
    """Pairs with all the instructions that were written for them, judged or not."""
    pairs = {r["pair_id"]: r for r in store.read_table("pairs").to_pylist()}
    return triplet_samples(
        [{**pairs[r["pair_id"]], "instructions": r["instructions"]} for r in store.read_table("captioned").to_pylist()]
    )


def with_shortcuts(samples: Sequence[Sample], vectors: Mapping[str, np.ndarray], texts: np.ndarray) -> list[Sample]:
    """The samples, each marked where one modality alone finds its target among all images.

    Args:
        samples: triplets.
        vectors: image id -> (d,) unit row, of every image.
        texts: (m, d), a unit row per instruction, sample by sample.
    """
    rows = [{"query_image_id": s.query, "target_image_id": s.target, "instructions": s.texts} for s in samples]
    found = shortcuts.find_targets(rows, texts, vectors, sorted(vectors))
    return [replace(s, is_shortcut=shortcuts.is_shortcut(f)) for s, f in zip(samples, found, strict=True)]


def random_pairs(store: Store, params: Params, count: int, folder: Path) -> list[Sample]:
    """Random pairs with instructions, by the caption stage on a root of its own; kept in `folder`, written once.

    Args:
        store: whose images are paired.
        params: the caption stage's.
        count: pairs asked for; some drop out, as in any run.
        folder: <out>/random.
    Raises:
        RuntimeError: the stage failed.
    """
    root = folder / str(count)
    aside = Store(root)
    batch = "2026.01.01"
    if not aside.table_files("pairs"):
        (root / "data").mkdir(parents=True, exist_ok=True)
        for table in ("images", "captions"):
            if store.folder("data", table).is_dir():
                (root / "data" / table).symlink_to(store.folder("data", table).resolve())
        changed = params.model_dump(mode="json", by_alias=True)
        changed["open_run"] |= {"batch": batch, "date": "2026-01-01"}
        (root / "params.yaml").write_text(yaml.safe_dump(changed))
        rng = random.Random(0)
        images = sorted(store.read_table("images", ["image_id"])["image_id"].to_pylist())
        drawn: dict[tuple[str, str], None] = {}
        while len(drawn) < count:
            query, target = rng.sample(images, 2)
            drawn[query, target] = None
        rows = [
            {
                "pair_id": stable_id(query, target),
                "batch": batch,
                "query_image_id": query,
                "target_image_id": target,
                "mined_by": [],
                "rank": 0,
                "negative_image_ids": [query, *rng.sample(images, 4)],
                "negative_similarity": [0.0] * 5,
            }
            for query, target in drawn
        ]
        aside.write(aside.table_path("pairs", batch), rows, "pairs")
    command = [sys.executable, "-m", "tasks", "caption", "--root", str(root.resolve())]
    environment = {k: v for k, v in os.environ.items() if k != "MEGAPAIRS_PROFILE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"caption of random pairs failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    return written_pairs(aside)


def image_text_pairs(store: Store, count: int, drawn: dict[str, Scene]) -> list[Sample]:
    """Images with their captions: the version's own, then new scenes of the sample world until there are `count`.

    Args:
        store: the version.
        count: pairs wanted.
        drawn: scenes of the new images are put in here.
    """
    samples = [Sample(None, image_id, (caption,)) for image_id, caption in sorted(store.captions().items())]
    rng = random.Random("image-text")
    while len(samples) < count:
        for scene in family(rng, "corpus", rng.randint(4, 8)):
            name = f"drawn:{len(drawn)}:{scene.key}"  # the same scene in every study, as features are kept by name
            drawn[name] = scene
            samples.append(Sample(None, name, (web_caption(scene, rng),)))
    return samples


# --- one training -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitSettings:
    """Settings of one training.

    Attributes:
        steps: a count.
        batch: samples in one step, a count; all of them where there are fewer.
        rate: peak learning rate.
        warmup: steps.
        temperature: of the softmax.
        negatives: candidates beside the batch's targets: "none", "query" (the batch's query images), "mined" (and its
            mined negatives).
        seed: of batches and texts.
        candidates: other images of the version that a step draws as candidates too, a count.
    """

    steps: int
    batch: int
    rate: float
    warmup: int
    temperature: float
    negatives: str = "mined"
    seed: int = 0
    candidates: int = 0


def fit_texts(
    retriever: ClipRetriever,
    samples: Sequence[Sample],
    raw: Mapping[str, torch.Tensor],
    settings: FitSettings,
    others: Sequence[str] = (),
) -> float:
    """Train the text tower in place, the image tower locked; returns the last step's loss.

    Args:
        retriever: its text tower is changed.
        samples: at least one; a batch is drawn without repeats.
        raw: image -> (d,) raw feature.
        settings: of the training.
        others: images of which each step draws `settings.candidates`.
    """
    steps, batch, negatives, seed = settings.steps, settings.batch, settings.negatives, settings.seed
    model, rng = retriever.model, random.Random(seed)
    torch.manual_seed(seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
    waiting: list[Sample] = []
    last = math.nan
    for step in range(steps):
        while len(waiting) < min(batch, len(samples)):
            waiting += rng.sample(list(samples), len(samples))
        part, waiting = waiting[:batch], waiting[batch:]
        shown = dict.fromkeys(s.target for s in part)
        if negatives != "none":
            shown |= dict.fromkeys(s.query for s in part if s.query is not None)
        if negatives == "mined":
            shown |= dict.fromkeys(i for s in part for i in s.negatives)
        shown |= dict.fromkeys(rng.sample(others, min(settings.candidates, len(others))))
        place = {image: n for n, image in enumerate(shown)}
        images = torch.stack([raw[image] for image in shown])
        texts = retriever.text_features([rng.choice(s.texts) for s in part]).float()
        queries = (
            torch.stack([raw[s.query] if s.query is not None else torch.zeros_like(images[0]) for s in part]) + texts
        )
        positive = torch.tensor([place[s.target] for s in part])
        # the position of the query image only feeds a figure; where it is no candidate the target's stands in
        own = torch.tensor([place.get(s.query or s.target, place[s.target]) for s in part])
        loss = info_nce(
            F.normalize(queries, dim=-1),
            F.normalize(images, dim=-1),
            BatchLabels(torch.arange(len(images)), positive, query_image=own),
            temperature=settings.temperature,
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps=steps, warmup=settings.warmup, peak=settings.rate)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last = float(loss.total.detach())
    model.eval()
    return last


class Images:
    """Raw features of the locked image tower, each image encoded once for all trainings.

    With a folder they are kept there in files of ENCODED_AT_ONCE images, so that a study that was ended goes on.
    """

    def __init__(
        self, retriever: ClipRetriever, store: Store, drawn: Mapping[str, Scene], folder: Path | None = None
    ) -> None:
        """Read what `folder` holds of this retriever's features.

        Args:
            retriever: encodes.
            store: of the images.
            drawn: name -> scene of the images that are not in the store.
            folder: created where missing; nothing is kept when None.
        """
        self.retriever, self.store, self.drawn = retriever, store, drawn
        self.raw: dict[str, torch.Tensor] = {}
        self.folder = folder / retriever.revision[:16] if folder else None
        for path in sorted(self.folder.glob("*.npz")) if self.folder else ():
            with np.load(path) as kept:
                self.raw |= dict(zip(kept["images"].tolist(), torch.from_numpy(kept["features"]), strict=True))

    def add(self, images: Sequence[str]) -> None:
        """Encode what is not encoded yet."""
        todo = [p for p in dict.fromkeys(images) if p not in self.raw]
        for start in range(0, len(todo), ENCODED_AT_ONCE):
            part = todo[start : start + ENCODED_AT_ONCE]
            rows = np.concatenate([self._encode(part[n : n + 128]) for n in range(0, len(part), 128)])
            self.raw |= dict(zip(part, torch.from_numpy(rows), strict=True))
            if self.folder:
                content = io.BytesIO()
                np.savez(content, images=np.array(part), features=rows)
                write_bytes(self.folder / f"{stable_id(*part)}.npz", content.getvalue())

    def _encode(self, images: Sequence[str]) -> np.ndarray:
        shown = [draw_image(self.drawn[p]) if p in self.drawn else self.store.read_image(p) for p in images]
        return self.retriever.raw_image_features(shown)


# --- the study --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One training: what it is called, on how many of which samples, with which negatives and seed."""

    arm: str
    size: int
    seed: int
    negatives: str = "mined"
    encoders: tuple[str, ...] = ()
    filtered: bool | None = None  # the cell of the table judge by shortcut filter; None elsewhere
    shortcut_share: float | None = None  # of its samples, 0..1; None: as they come

    @property
    def label(self) -> str:
        """What it ablates; empty where nothing."""
        if self.filtered is not None:
            return (
                f"judge {'on' if self.arm == 'judged' else 'off'}, shortcut filter {'on' if self.filtered else 'off'}"
            )
        if self.shortcut_share is not None:
            return f"shortcuts: {self.shortcut_share:.0%}"
        return "+".join(self.encoders) or (f"negatives: {self.negatives}" if self.negatives != "mined" else "")

    @property
    def key(self) -> str:
        """Its name in runs.jsonl."""
        return "/".join((self.arm, str(self.size), str(self.seed), self.label))


def jobs_of(
    arms: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    factor: int,
    *,
    ablations: Collection[str] = (),
    cell: int = 0,
    is_claim_alone: bool = False,
) -> list[Job]:
    """All trainings of a study: every arm at every size and seed, image-text pairs at `factor` times each size too, and
    the ablations.

    `cell` samples stand in each cell of the table judge by shortcut filter, a count; no table where 0.
    `is_claim_alone` leaves out image-text pairs at the sizes themselves.
    """
    whole = [arm for arm in arms if not (is_claim_alone and arm == "image_text")]
    jobs = [Job(arm, size, seed) for arm in whole for size in sizes for seed in seeds]
    if "image_text" in arms:
        jobs += [
            Job("image_text", size * factor, seed) for size in sizes for seed in seeds if size * factor not in sizes
        ]
    most = max(sizes)
    if "negatives" in ablations:
        jobs += [Job("judged", most, seed, negatives=n) for n in NEGATIVES[:-1] for seed in seeds]
    if "encoders" in ablations:
        groups = [g for n in (1, 2, 3) for g in itertools.combinations(ENCODER_ROLES, n)]
        jobs += [Job("unjudged", most, seed, encoders=g) for g in groups for seed in seeds]
    if "filters" in ablations and cell:
        jobs += [
            Job(arm, cell, seed, filtered=f) for arm in ("judged", "unjudged") for f in (True, False) for seed in seeds
        ]
    return list(dict.fromkeys(jobs))


def largest_mix(pool: Sequence[Sample]) -> int:
    """Samples that a training can have at each of SHORTCUT_SHARES, a count."""
    found = sum(s.is_shortcut for s in pool)
    least, most = min(SHORTCUT_SHARES), max(SHORTCUT_SHARES)
    return math.floor(min(found / most, (len(pool) - found) / (1 - least)))


def steps_of(job: Job, sizes: Sequence[int], factor: int, steps: int, batch: int) -> int:
    """Optimiser steps of a training, the same for N samples of any arm and the `factor` x N image-text pairs that they
    are compared with: as many as those need for one pass, at least `steps`.

    Args:
        job: the training.
        sizes: the study's sizes N.
        factor: image-text pairs per sample.
        steps: least steps.
        batch: samples in a step.
    """
    pairs = job.size * factor if job.size in sizes else job.size
    return max(steps, math.ceil(pairs / batch))


def samples_of(job: Job, pools: Mapping[str, Sequence[Sample]]) -> list[Sample]:
    """A job's samples: the first `size` of its arm's pool in an order drawn by the seed, so that a larger size holds
    the smaller one.

    With `shortcut_share`, so many of them are shortcuts. With `encoders`, pairs that one of them mined; fewer than
    `size` where there are not so many (the figures say how many).
    """
    pool = [
        s
        for s in pools[job.arm]
        if (not job.encoders or set(s.mined_by) & set(job.encoders)) and not (job.filtered and s.is_shortcut)
    ]
    order = random.Random(f"{job.arm}:{job.seed}").sample(range(len(pool)), len(pool))
    if job.shortcut_share is not None:
        found = [n for n in order if pool[n].is_shortcut][: round(job.shortcut_share * job.size)]
        order = found + [n for n in order if not pool[n].is_shortcut][: job.size - len(found)]
    return [pool[n] for n in order[: job.size]]


def summary_of(runs: Sequence[Mapping[str, Any]], factor: int) -> dict[str, Any]:
    """Means and deviations over the seeds, and what became of the claim.

    Returns:
        {"arms": {arm: {size: {"mean", "deviation", "seeds", "samples", "composition_gap"}}}, "claim": {N: {"judged",
        "image_text", "factor", "holds"}}, "ablations": {name: ...}}; the gap is composed minus the better of text and
        image alone.
    """

    def of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        values = [r["composed"] for r in rows]
        samples = statistics.fmean(r["samples"] for r in rows)
        return {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "seeds": len(values),
            "samples": samples,
            "composition_gap": statistics.fmean(r["composed"] - max(r["text_only"], r["image_only"]) for r in rows)
            if all({"text_only", "image_only"} <= r.keys() for r in rows)
            else None,
        }

    plain = [r for r in runs if not r["label"]]
    arms: dict[str, dict[str, Any]] = {}
    for arm, size in sorted({(r["arm"], r["size"]) for r in plain}):
        arms.setdefault(arm, {})[str(size)] = of([r for r in plain if (r["arm"], r["size"]) == (arm, size)])
    labels = sorted({r["label"] for r in runs if r["label"]})
    ablations = {label: of([r for r in runs if r["label"] == label]) for label in labels}
    return {"arms": arms, "claim": claims_of(arms, factor), "ablations": ablations}


def claims_of(arms: Mapping[str, Mapping[str, Mapping[str, Any]]], factor: int) -> dict[str, dict[str, Any]]:
    """For each N whether N judged triplets beat `factor` x N image-text pairs; an N without such pairs is left out.

    Args:
        arms: arm -> number of samples -> {"mean", "deviation", "samples"}.
        factor: image-text pairs per triplet.
    """
    claim = {}
    for size, judged in arms.get("judged", {}).items():
        other = arms.get("image_text", {}).get(str(int(size) * factor))
        if other:
            claim[size] = {
                "judged": judged["mean"],
                "image_text": other["mean"],
                "deviations": [judged["deviation"], other["deviation"]],
                "image_text_pairs": other["samples"],
                "factor": factor,
                "holds": judged["mean"] > other["mean"],
            }
    return claim


def over_worlds(studies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Studies of several worlds as one: a world's mean over its seeds is one value, whatever its number of seeds.

    Args:
        studies: where it stands -> its figures.json; two at least.
    Returns:
        As `summary_of`, mean and deviation over the worlds and "worlds" (a count) in the place of "seeds"; "claim" has
        "worlds_that_hold", a count, too, and "holds" is true where all do. What not all of them measured is left out.
    Raises:
        ValueError: fewer than two, or they were trained with different settings.
    """
    if len(studies) < 2:
        raise ValueError(f"data_efficiency: --together got {len(studies)} study, expected two or more")
    of_world = ("dataset", "benchmark")
    (first, one), *others = studies.items()
    for name, study in others:
        differ = sorted(
            key
            for key in one["settings"].keys() | study["settings"].keys()
            if key not in of_world and one["settings"].get(key) != study["settings"].get(key)
        )
        if differ:
            raise ValueError(
                f"data_efficiency: the studies {first} and {name} differ in {', '.join(differ)}, expected the same "
                "settings; run one of them again with those of the other"
            )
    arms: dict[str, dict[str, Any]] = {}
    for arm, by_size in one["arms"].items():
        for size in by_size:
            rows = [s["arms"].get(arm, {}).get(size) for s in studies.values()]
            if not all(rows):
                continue
            gaps = [r["composition_gap"] for r in rows]
            arms.setdefault(arm, {})[size] = {
                "mean": statistics.fmean(r["mean"] for r in rows),
                "deviation": statistics.stdev(r["mean"] for r in rows),
                "worlds": len(rows),
                "samples": statistics.fmean(r["samples"] for r in rows),
                "composition_gap": None if None in gaps else statistics.fmean(gaps),
            }
    factor = next((c["factor"] for s in studies.values() for c in s["claim"].values()), 1)
    claim = claims_of(arms, factor)
    for size, found in claim.items():
        found["worlds_that_hold"] = sum(claims_of(s["arms"], factor)[size]["holds"] for s in studies.values())
        found["holds"] = found["worlds_that_hold"] == len(studies)
    bases = [s["base"] for s in studies.values()]
    return {
        "arms": arms,
        "claim": claim,
        "base": {half: statistics.fmean(b[half] for b in bases) for half in bases[0]},
        "base_deviation": {half: statistics.stdev(b[half] for b in bases) for half in bases[0]},
        "settings": {k: v for k, v in one["settings"].items() if k not in of_world},
        "studies": list(studies),
    }


def plot(arms: Mapping[str, Mapping[str, Mapping[str, Any]]], base: float, over: str = "seeds") -> str:
    """The scaling figure as SVG: composed mAP@5 against the number of samples (log scale), one line an arm, error bars
    of one standard deviation.

    Args:
        arms: arm -> number of samples -> {"mean", "deviation"}.
        base: the score before any training.
        over: what the deviations are over.
    """
    series = []
    for arm, by_size in arms.items():
        sizes = sorted(by_size, key=int)
        means = [by_size[s]["mean"] for s in sizes]
        deviations = [by_size[s]["deviation"] or 0.0 for s in sizes]
        name, colour = arm.replace("_", "-"), COLOURS.get(arm, "#333333")
        series.append(charts.Series(name, colour, [int(s) for s in sizes], means, deviations))
    ticks = sorted({int(size) for by_size in arms.values() for size in by_size})
    ends = [base, *(m + sign * e for s in series for m, e in zip(s.y, s.error, strict=True) for sign in (-1, 1))]
    frame = charts.Frame(
        "Composed mAP@5 by number of training samples",
        f"One line for each kind of sample ({', '.join(s.name for s in series)}), error bars of one standard deviation "
        f"over the {over}; the dashed line is the model before training.",
        x_label="training samples",
        y_label="composed mAP@5",
        width=640,
        height=400,
    )
    x = charts.Axis(ticks[0], max(ticks[-1], 2 * ticks[0]), is_log=True, ticks=ticks)
    y = charts.Axis(min(ends) * 0.95, max(ends) * 1.05 or 1.0)
    baseline = charts.Series("base", "#6b7280", (), [base])
    return charts.standalone([charts.lines(frame, x, y, series, baseline=baseline)])


def study_jobs(args: argparse.Namespace, cell: int = 0, mix: int = 0) -> list[Job]:
    """The trainings that the command line asks for.

    Args:
        args: the command line.
        cell: as of `jobs_of`.
        mix: judged samples in each training with a stated share of shortcuts, a count; no such trainings where 0.
    """
    more = {"ablations": args.ablations, "cell": cell, "is_claim_alone": args.claim}
    jobs = jobs_of(args.arms, args.sizes, args.seeds, args.image_text_factor, **more)
    shares = SHORTCUT_SHARES if "shortcuts" in args.ablations and mix else ()
    return jobs + [Job("judged", mix, seed, shortcut_share=share) for share in shares for seed in args.seeds]


def shortcut_arms(ablations: Collection[str]) -> list[str]:
    """The arms whose shortcuts must be known for these ablations."""
    return ["judged", "unjudged"] if "filters" in ablations else ["judged"] if "shortcuts" in ablations else []


def study(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, write the figures and the plot."""
    params, store, out = load_params(args.dataset / "params.yaml"), Store(args.dataset), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    benchmark = read_benchmark(args.benchmark, params.evaluate.template)
    jobs = study_jobs(args)
    model = args.base_model or params.train.base_model
    base = ClipRetriever(model, revision=params.train.revision, device="cpu", threads=args.threads)
    drawn: dict[str, Scene] = {}
    pools: dict[str, list[Sample]] = {}
    wanted = {job.arm for job in jobs} | set(shortcut_arms(args.ablations))
    if "judged" in wanted:
        pools["judged"] = triplet_samples(store.read_table("triplets").to_pylist())
    if "unjudged" in wanted:
        pools["unjudged"] = written_pairs(store)
    if "random" in wanted:
        pools["random"] = random_pairs(store, params, math.ceil(max(args.sizes) * 1.2), out / "random")
    if "image_text" in wanted:
        pools["image_text"] = image_text_pairs(store, max(j.size for j in jobs if j.arm == "image_text"), drawn)
    settings = {
        "steps": args.steps,
        "batch": args.batch,
        "rate": args.rate,
        "warmup": args.warmup,
        "temperature": args.temperature,
        "candidates": args.candidates,
    }
    images = Images(base, store, drawn, args.features or out / "features")
    looked_at = shortcut_arms(args.ablations)
    known = sorted(store.read_table("images", ["image_id"])["image_id"].to_pylist())
    if looked_at or args.candidates:
        images.add(known)
    if looked_at:
        vectors = dict(zip(known, unit_rows(torch.stack([images.raw[i] for i in known]).numpy()), strict=True))
        for arm in looked_at:
            pools[arm] = with_shortcuts(
                pools[arm], vectors, base.encode(texts=[t for s in pools[arm] for t in s.texts])
            )
        cell = min(sum(not s.is_shortcut for s in pools[arm]) for arm in looked_at)
        jobs = study_jobs(args, cell, largest_mix(pools["judged"]))
    same = {
        **settings,
        "are_steps_equal": True,
        "base": base.revision,
        "benchmark": str(args.benchmark),
        "dataset": str(args.dataset),
    }
    log = out / "runs.jsonl"
    runs = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {r["key"] for r in runs if r["settings"] == same}
    if args.done:
        jobs = [job for job in jobs if job.key in done]
    gallery = encode_images(base, benchmark, 128)
    base_scores = score_retriever(base, benchmark, 128, image_features=gallery)
    for n, job in enumerate(jobs):
        if job.key in done:
            continue
        samples = samples_of(job, pools)
        images.add([p for s in samples for p in (s.target, *((s.query,) if s.query else ()), *s.negatives)])
        retriever = ClipRetriever(model, revision=params.train.revision, device="cpu", threads=args.threads)
        steps = steps_of(job, args.sizes, args.image_text_factor, args.steps, args.batch)
        fit = FitSettings(**(settings | {"steps": steps}), negatives=job.negatives, seed=job.seed)
        loss = fit_texts(retriever, samples, images.raw, fit, known)
        scores = score_retriever(retriever, benchmark, 128, image_features=gallery)
        row = {"key": job.key, "arm": job.arm, "size": job.size, "seed": job.seed, "label": job.label}
        row |= {
            "samples": len(samples),
            "steps": steps,
            "loss": loss,
            "settings": same,
            **{half: scores[half][METRIC] for half in scores},
        }
        runs.append(row)
        with open(log, "a") as f:
            f.write(json.dumps(row) + "\n")
        print(f"{n + 1}/{len(jobs)}  {job.key}: composed {METRIC} {row['composed']:.4f}", flush=True)
    keys_wanted = {job.key for job in jobs}
    figures = summary_of([r for r in runs if r["settings"] == same and r["key"] in keys_wanted], args.image_text_factor)
    figures |= {
        "base": {half: base_scores[half][METRIC] for half in base_scores},
        "settings": same,
        "pools": {arm: len(pool) for arm, pool in pools.items()},
    }
    figures["shortcut_shares"] = (
        {arm: sum(s.is_shortcut for s in pool) / len(pool) for arm, pool in pools.items()}
        if shortcut_arms(args.ablations)
        else {}
    )
    write_figures(out, figures)
    return figures


def write_figures(out: Path, figures: Mapping[str, Any], over: str = "seeds") -> None:
    """Write <out>/figures.json and, where there is an arm to show, <out>/scaling.svg."""
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / "figures.json", (json.dumps(figures, indent=1) + "\n").encode())
    if figures["arms"]:
        write_bytes(out / "scaling.svg", plot(figures["arms"], figures["base"]["composed"], over).encode())


def together(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Read the studies of several worlds, write their figures as one; see `over_worlds`.

    Raises:
        ValueError: a folder has no figures.json, or as `over_worlds`.
    """
    studies = {}
    for folder in folders:
        path = folder / "figures.json"
        if not path.is_file():
            raise ValueError(f"data_efficiency: {path} is missing, expected the --out of a study that ended")
        studies[str(folder)] = json.loads(path.read_text())
    figures = over_worlds(studies)
    write_figures(out, figures, "worlds")
    return figures


def demo_inputs(args: argparse.Namespace) -> tuple[Path, Path]:
    """The version and the benchmark that are named, else those of the last `make demo`, cloned and pulled.

    Raises:
        SystemExit: nothing is named and there is no demo.
    """
    if args.dataset and args.benchmark:
        return args.dataset, args.benchmark
    origin, clone = DEMO / "origin.git", args.out / "dataset"
    if not origin.is_dir() or not (DEMO / "benchmark").is_dir():
        raise SystemExit(
            f"data_efficiency: {DEMO} holds no finished demo; run `make demo` first, name --dataset and --benchmark, "
            "or take --drawn"
        )
    if args.dataset is None:
        shutil.rmtree(clone, ignore_errors=True)
        clone.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "-q", "-b", "dataset", str(origin.resolve()), str(clone)], check=True)
        subprocess.run([sys.executable, "-m", "dvc", "pull", "-q"], cwd=clone, check=True)
    return args.dataset or clone, args.benchmark or DEMO / "benchmark"


def drawn_inputs(out: Path) -> tuple[Path, Path]:
    """A drawn version (judged triplets alone) and a small benchmark of the sample world, in `out`."""
    dataset, benchmark = out / "drawn", out / "drawn-benchmark"
    for folder in (dataset, benchmark):
        shutil.rmtree(folder, ignore_errors=True)
    drawn_version(dataset, families=12)
    shutil.copyfile("params.yaml", dataset / "params.yaml")
    make_benchmark(benchmark, queries=20, gallery=80)
    return dataset, benchmark


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_efficiency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", type=Path, help="a clone of a version; the last demo's when left out")
    parser.add_argument("--benchmark", type=Path, help="a folder in CIRCO's format; the last demo's when left out")
    parser.add_argument("--drawn", action="store_true", help="a small drawn version and benchmark, no demo needed")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 100, 200, 400, 800])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--image-text-factor", type=int, default=70)
    parser.add_argument("--claim", action="store_true", help="no image-text pairs at the sizes themselves")
    parser.add_argument("--ablations", nargs="*", choices=ABLATIONS, help="all of them where none is named")
    parser.add_argument("--base-model", help="default: train.base_model of the dataset's params.yaml")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.0002)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.02)
    parser.add_argument("--candidates", type=int, default=4096, help="other images of the version that a step draws")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features", type=Path, help="kept features, may be shared by studies; default: OUT/features")
    parser.add_argument("--done", action="store_true", help="train nothing: figures of the trainings that are done")
    parser.add_argument(
        "--together", nargs="+", type=Path, metavar="OUT", help="train nothing: studies of several worlds as one"
    )
    parser.add_argument("--out", type=Path, default=Path(".run/benchmarks/data_efficiency"))
    args = parse_arguments(parser, argv, QUICK)
    if args.together:
        try:
            figures = together(args.together, args.out)
        except ValueError as e:
            raise SystemExit(str(e)) from None
        print(json.dumps(figures))
        return figures
    args.ablations = ABLATIONS if args.ablations == [] else args.ablations or ()
    if "negatives" in args.ablations and args.candidates:
        parser.error("ablation negatives: other candidates hold the negatives too; run it with --candidates 0")
    args.dataset, args.benchmark = drawn_inputs(args.out) if args.drawn else demo_inputs(args)
    figures = study(args)
    print(json.dumps(figures))
    return figures


if __name__ == "__main__":
    main()
