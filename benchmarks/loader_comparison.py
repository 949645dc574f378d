"""Shared by the loader's and the trainer's benchmarks: our loader and webdataset deliver the same triplets."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tasks.config import load_params
from tasks.store import Store
from tasks.train.batches import BatchPlan, WeightedDataset, plan_steps
from tasks.train.loader import ImageLoader

SIDE_PX = 224


class Processor:
    """What the loader asks of a retriever: images as the tower takes them."""

    def __init__(self, side: int) -> None:
        from transformers import AutoImageProcessor

        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        self.processor: Any = AutoImageProcessor.from_pretrained("tasks/sample/checkpoints/clip", **size)

    def preprocess(self, images: Sequence[Any]) -> Any:
        """(n, 3, side, side) float32."""
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"]

    @staticmethod
    def together(images: Sequence[Any]) -> Any:
        """(n, 3, side, side) of single ones."""
        import torch

        return torch.stack(list(images))


def members(plan: BatchPlan, n: int) -> list[str]:
    """Images of a batch's n-th triplet: query, target, mined negatives."""
    target, query, *mined = (plan.images[position] for position in plan.own_candidates[n])
    return [query, target, *mined]


def write_samples(found: Sequence[BatchPlan], store: Store, path: Path) -> int:
    """The triplets as webdataset reads them, in order; returns the tar's bytes."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for b, plan in enumerate(found):
            for n, text in enumerate(plan.texts):
                parts = {f"{k}.jpg": store.read_image_bytes(i) for k, i in enumerate(members(plan, n))} | {
                    "json": json.dumps({"text": text}).encode()
                }
                for name, content in parts.items():
                    info = tarfile.TarInfo(f"{b:05d}_{n:05d}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return path.stat().st_size


def samples(path: Path, images: int) -> Iterator[list[Any]]:
    """The decoded images of each triplet, by webdataset."""
    os.environ["WDS_SECURE"] = "1"  # else it unpickles what a tar calls .pkl
    import webdataset as wds

    for sample in wds.WebDataset(str(path), shardshuffle=False, empty_check=False).decode("pil"):
        yield [sample[f"{k}.jpg"] for k in range(images)]


def seconds_of(work: Callable[[], Any]) -> float:
    """CPU-seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(dataset: Path, side: int, *, batch: int, negatives: int, batches: int, turns: int = 3) -> dict[str, Any]:
    """The figures of the last line."""
    import torch

    from benchmarks.triplets import examples_of

    torch.set_num_threads(1)
    config = load_params("params.yaml").train.model_copy(update={"batch_triplets": batch, "negatives": negatives})
    examples, store, processor = examples_of(dataset, negatives), Store(dataset), Processor(side)
    images = 2 + negatives

    def ours_plans() -> list[BatchPlan]:
        return list(islice(plan_steps([WeightedDataset(examples, 1.0)], config, random.Random(0)), batches))

    found = ours_plans()
    for plan in found:
        store.read_image_bytes(plan.images[0])  # the index and the tars are open, as webdataset's tar is warm
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "triplets.tar"
        size = write_samples(found, store, path)

        def ours() -> None:
            load_images = ImageLoader(store, processor.preprocess, cache_bytes=0)
            for plan in ours_plans():
                load_images(plan.images)

        def ours_decode() -> None:
            for plan in ours_plans():
                for image_id in plan.images:
                    store.read_image(image_id)

        def theirs() -> None:
            waiting = []
            for sample in samples(path, images):
                waiting.append(processor.preprocess(sample))
                if len(waiting) == batch:
                    torch.stack(waiting)
                    waiting = []

        def theirs_decode() -> None:
            for _ in samples(path, images):
                pass

        took: dict[str, list[float]] = {"prepared_ours": [], "prepared_webdataset": [], "ours": [], "webdataset": []}
        for _ in range(turns):
            for name, work_of in zip(took, (ours, theirs, ours_decode, theirs_decode), strict=True):
                took[name].append(seconds_of(work_of))
        first, stream = found[0], samples(path, images)
        load_images = ImageLoader(store, processor.preprocess, cache_bytes=0)
        shown = dict(zip(first.images, load_images(first.images), strict=True))
        equal = all(
            torch.equal(torch.stack([shown[i] for i in members(first, n)]), processor.preprocess(next(stream)))
            for n in range(len(first.texts))
        )
    triplets = sum(len(p.texts) for p in found)
    best = {name: min(x) for name, x in took.items()}
    return {
        "batch": batch,
        "triplets": triplets,
        "ours": round(triplets / best["ours"], 1),
        "webdataset": round(triplets / best["webdataset"], 1),
        "ratio": round(best["webdataset"] / best["ours"], 2),
        "prepared_ours": round(triplets / best["prepared_ours"], 1),
        "prepared_webdataset": round(triplets / best["prepared_webdataset"], 1),
        "prepared_ratio": round(best["prepared_webdataset"] / best["prepared_ours"], 2),
        "images_ours": sum(len(p.images) for p in found),
        "images_webdataset": triplets * images,
        "ours_bytes": sum(len(store.read_image_bytes(i)) for i in {i for p in found for i in p.images}),
        "webdataset_bytes": size,
        "is_equal": equal,
    }
