"""Evaluate: the base checkpoint, the candidate and the model in place on composed retrieval, by CIRCO's protocol.

Reads models/candidate, models/promoted (if there is one), and a benchmark folder in CIRCO's format (annotations.json,
images/<id>.jpg), or else the version's held-out triplets; writes reports/evaluation.json. Beside the composed query stand
its halves alone: a model that does not beat both ignores half of the query. The reference picture stays in the gallery,
as in CIRCO (miccunifi/CIRCO, src/evaluation.py). With `evaluate.truth` the sample world's truth measures the triplets.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config import EvaluateConfig, Params
from tasks.errors import ConfigError, DataError
from tasks.metrics import RANKS, rank_gallery, score
from tasks.models.retriever import Retriever, unit
from tasks.records import StageReport
from tasks.splits import held_out_pictures
from tasks.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """Composed queries over a gallery.

    Attributes:
        name: for the report.
        gallery: picture ids, in the order of their vectors.
        references: per query its picture's id.
        texts: per query its text.
        targets: per query the one target, for Recall.
        ground_truths: per query all right pictures, for mAP.
        read: picture id -> picture.
    """

    name: str
    gallery: list[str]
    references: list[str]
    texts: list[str]
    targets: list[str]
    ground_truths: list[list[str]]
    read: Callable[[str], Image]


def query_text(template: str, annotation: Mapping[str, Any]) -> str:
    """The template with {relative_caption} and {shared_concept} of the annotation."""
    text = template
    for name in ("relative_caption", "shared_concept"):
        text = text.replace("{" + name + "}", str(annotation.get(name, "")))
    return text


def read_benchmark(folder: Path, template: str) -> Benchmark:
    """A benchmark in CIRCO's format: every file of images/ is in the gallery.

    Raises:
        ConfigError: no annotations.json there, or a template without {relative_caption}.
        DataError: an annotation names a picture that is not there.
    """
    path = folder / "annotations.json"
    if not path.is_file():
        raise ConfigError(f"{path}: missing; 'evaluate.benchmark' names a folder with annotations.json in CIRCO's format and images/<id>.jpg")
    if "{relative_caption}" not in template:
        raise ConfigError(f"'evaluate.template' is {template!r}: expected {{relative_caption}} in it")
    annotations = json.loads(path.read_text(encoding="utf-8"))
    files = {f.stem: f for f in (folder / "images").iterdir() if f.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")}
    gallery = sorted(files, key=lambda stem: (len(stem), stem))
    for a in annotations:
        named = [a["reference_img_id"], a["target_img_id"], *a["gt_img_ids"]]
        if missing := [i for i in named if str(i) not in files]:
            raise DataError(f"{path}: query {a['id']} names pictures {missing[:3]} that are not in {folder / 'images'}")

    def read(picture: str) -> Image:
        from PIL import Image

        return Image.open(files[picture], formats=("JPEG", "PNG", "WEBP")).convert("RGB")

    return Benchmark(
        folder.name,
        gallery,
        [str(a["reference_img_id"]) for a in annotations],
        [query_text(template, a) for a in annotations],
        [str(a["target_img_id"]) for a in annotations],
        [[str(i) for i in a["gt_img_ids"]] for a in annotations],
        read,
    )


def held_out_benchmark(triplets: Sequence[Mapping[str, Any]], share: float, template: str, read: Callable[[str], Image]) -> Benchmark:
    """The held-out triplets as a benchmark: their first instruction, all their pictures as gallery.

    A picture is right when it is the target of a triplet with the same query picture and text.

    Raises:
        DataError: nothing is held out.
    """
    held_out = held_out_pictures([(t["query_image_id"], t["target_image_id"]) for t in triplets], share)
    rows = [t for t in triplets if t["query_image_id"] in held_out]
    if not rows:
        raise DataError(
            f"evaluate: of {len(triplets)} triplets none is held out (train.held_out_share is {share}, and only whole connected components are); "
            "raise the share, or name a folder in evaluate.benchmark"
        )
    gallery = sorted({i for t in rows for i in (t["query_image_id"], t["target_image_id"], *t["negative_image_ids"])})
    right: dict[tuple[str, str], list[str]] = {}
    for t in rows:
        right.setdefault((t["query_image_id"], t["instructions"][0]), []).append(t["target_image_id"])
    keys = [(t["query_image_id"], t["instructions"][0]) for t in rows]
    texts = [query_text(template, {"relative_caption": text}) for _, text in keys]
    targets = [t["target_image_id"] for t in rows]
    return Benchmark("held-out triplets", gallery, [q for q, _ in keys], texts, targets, [sorted(set(right[k])) for k in keys], read)


def measure(retriever: Retriever, benchmark: Benchmark, batch: int) -> dict[str, dict[str, float]]:
    """mAP@K and Recall@K of the composed query, the picture alone and the text alone.

    Args:
        retriever: the model.
        benchmark: queries and gallery.
        batch: pictures in one pass of the model, a count.
    """
    raw = np.concatenate(
        [retriever.raw_images([benchmark.read(i) for i in benchmark.gallery[start : start + batch]]) for start in range(0, len(benchmark.gallery), batch)]
    )
    texts = np.concatenate([retriever.raw_texts(benchmark.texts[start : start + batch]) for start in range(0, len(benchmark.texts), batch)])
    place = {picture: n for n, picture in enumerate(benchmark.gallery)}
    references = raw[[place[i] for i in benchmark.references]]
    gallery = unit(raw)
    numbers = range(len(benchmark.texts))
    out = {}
    for name, rows in (("composed", references + texts), ("image_only", references), ("text_only", texts)):
        ranked = rank_gallery(unit(rows), gallery, max(RANKS))
        out[name] = score(
            {n: [benchmark.gallery[k] for k in ranked[n]] for n in numbers},
            {n: benchmark.ground_truths[n] for n in numbers},
            {n: benchmark.targets[n] for n in numbers},
        )
    return out


def truth_of(path: Path, triplets: Sequence[dict[str, Any]], source_uris: Mapping[str, str]) -> dict[str, float | int]:
    """What the sample world's truth says of the triplets; the file is read here and nowhere else.

    Args:
        path: JSON lines {"path", "scene", ...}.
        triplets: rows of the table.
        source_uris: image id -> <source>:<path>.
    Raises:
        ConfigError: no such file.
    """
    from tasks.sample import truth
    from tasks.sample.scenes import Scene

    if not path.is_file():
        raise ConfigError(f"{path}: missing; 'evaluate.truth' names the sample world's truth file, leave it empty for any other source")
    scenes: dict[str, Scene] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("scene"):
            scenes[row["path"]] = Scene.from_record(row["scene"])
    return truth.measure(triplets, lambda image_id: scenes.get(source_uris.get(image_id, "").partition(":")[2]))


def benchmark_of(params: Params, store: Store) -> Benchmark:
    """The folder that params name, or the held-out split."""
    config: EvaluateConfig = params.evaluate
    if config.benchmark:
        return read_benchmark(Path(config.benchmark), config.template)
    triplets = store.read_table("triplets").sort_by("triplet_id").to_pylist()
    return held_out_benchmark(triplets, params.train.held_out_share, config.template, store.read_image)


def run(params: Params, store: Store) -> StageReport:
    """Score the models and write reports/evaluation.json.

    Raises:
        DataError: no candidate.
    """
    config = params.evaluate
    candidate, in_place = store.folder("models", "candidate"), store.folder("models", "promoted")
    if not candidate.is_dir():
        raise DataError(f"{candidate}: missing; run `python -m tasks train` first")
    benchmark = benchmark_of(params, store)
    models = {"base": params.train.base_model, "finetuned": str(candidate)} | ({"promoted": str(in_place)} if in_place.is_dir() else {})
    metrics: dict[str, Any] = {}
    revisions: dict[str, str] = {}
    for name, model in models.items():
        revision = params.train.revision if name == "base" else None
        retriever = Retriever(model, revision=revision, device=config.device, threads=max(2, params.open_run.threads))
        revisions[name] = retriever.revision
        metrics[name] = measure(retriever, benchmark, config.batch_images)
        log.info("evaluate: %s, composed mAP@5 %.4f", name, metrics[name]["composed"]["map_at_5"])
    evaluation: dict[str, Any] = {
        "benchmark": benchmark.name,
        "queries": len(benchmark.texts),
        "gallery": len(benchmark.gallery),
        "template": config.template,
        "protocol": "CIRCO: AP@K over all ground truths, divided by min(their number, K); Recall@K of the target; the reference picture stays in the gallery",
        "base_model": params.train.base_model,
        "revisions": revisions,
        "metrics": metrics,
    }
    if config.truth:
        images = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
        uris = dict(zip(images["image_id"], images["source_uri"], strict=True))
        found = truth_of(Path(config.truth), store.read_table("triplets").to_pylist(), uris)
        evaluation["truth"] = {name: value for name, value in found.items() if isinstance(value, float)}  # shares
        evaluation["truth_counts"] = {name: value for name, value in found.items() if isinstance(value, int)}
    store.write_bytes(store.folder("reports", "evaluation.json"), (json.dumps(evaluation, indent=1) + "\n").encode())
    figures = {f"{name}_{half}_map_at_5": scores[half]["map_at_5"] for name, scores in metrics.items() for half in scores}
    return StageReport("evaluate", read=len(benchmark.texts), written=1, new=len(models), done=len(models), figures=figures)
