"""Decoding, preparing and encoding images: ours against the stock Hugging Face way, one core or one GPU.

    python -m benchmarks.embed [--photos ../shared/photos] [--images 400] [--side 224] [--model
    tasks/sample/checkpoints/clip]
                               [--max-side 512 0 1024] [--arithmetic float32 bfloat16 int8] [--shape clip-b32]
                               [--no-preparation] [--no-towers]
    python -m benchmarks.embed --device cuda --shape clip-l14 dinov2-l [--readers 14] [--images 4096]

Preparation: JPEG bytes to the tower's float pixels, CPU-seconds of one thread - Pillow and the processor (CLIP's
defaults at --side) against tasks/models/encoders/preprocess.py - the two in turns, best of five each. Images:
photographs of a folder, stored as ingest stores them (JPEG, quality 95, at most --max-side px; the photographs' own
size for 0, enlarged to it where it is larger), else scenes of the sample world, enlarged; one row a size.
Fidelity, on the trained weights of --model with its own processor: the cosine of both ways' embeddings image by image,
beside it that of unrelated images, and how many of an image's ten nearest are the same.

Towers on a CPU: a ViT-B/32 with random weights, float pixels to vectors, images per CPU-second of transformers' plain
loop (as it comes: float32, sdpa, batches of 32) against `cpu_dtype`; the cosine is to the plain loop's, beside it the
same on --model's trained weights with its images, with the overlap of ten nearest.

On a GPU: stored JPEGs to vectors, wall-clock seconds, loading included: a plain loop (open, processor, model, one after
another) against
`encode_in_batches` with `preprocess: fast` and --readers threads; random weights of the shape, both in bfloat16.

The last line is JSON. Of the first size: n, images, side_px, stored_px, decode_images_per_cpu_s (the floor: JPEG
decoding alone), stock_images_per_cpu_s, ours_images_per_cpu_s, ratio, model, cosine_min, cosine_mean, unrelated_cosine,
top10_overlap, is_equal (cosine_min >= 0.999 and top10_overlap >= 0.95); `sizes`: the same of every size; `towers`:
shape, arithmetic, plain_images_per_s, ours_images_per_s, ratio, cosine_min, trained_cosine_min, trained_top10_overlap;
`gpu`: shape, plain_images_per_s, ours_images_per_s, ratio, cosine_min; rss_mib.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import fair_environment, parse_arguments, peak_mib
from benchmarks.stored_images import stored_photographs, stored_scenes

BATCH = 32
TURNS = 5


def opened(content: bytes) -> Image.Image:
    """As the store opens an image."""
    return Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")).convert("RGB")


def cpu_seconds(ways: Sequence[Callable[[], Any]]) -> list[float]:
    """Of each way's fastest turn; in turns, so that a busy machine slows all of them."""
    took: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way()
    for _ in range(TURNS):
        for way, times in zip(ways, took, strict=True):
            start = time.process_time()
            way()
            times.append(time.process_time() - start)
    return [min(times) for times in took]


def in_batches(contents: Sequence[bytes], prepare: Callable[[Sequence[bytes]], Any]) -> Callable[[], Any]:
    """Prepares everything, a batch at a time, and keeps nothing."""

    def way() -> None:
        for first in range(0, len(contents), BATCH):
            prepare(contents[first : first + BATCH])

    return way


def speeds(contents: Sequence[bytes], side: int) -> tuple[float, float, float]:
    """Images per CPU-second, decoding alone, stock and ours, for CLIP's processor at `side` px."""
    import cv2
    from transformers import AutoImageProcessor

    from tasks.models.encoders.preprocess import preparation_from_processor

    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    stock = AutoImageProcessor.from_pretrained("tasks/sample/checkpoints/clip", **size)
    preparation = preparation_from_processor(stock)
    assert preparation is not None
    seconds = cpu_seconds(
        [
            in_batches(
                contents, lambda some: [cv2.imdecode(np.frombuffer(c, np.uint8), cv2.IMREAD_COLOR_RGB) for c in some]
            ),
            in_batches(
                contents, lambda some: stock(images=[opened(c) for c in some], return_tensors="pt")["pixel_values"]
            ),
            in_batches(contents, lambda some: preparation.normalize([preparation.prepare(c) for c in some], "cpu")),
        ]
    )
    decode, plain, ours = (len(contents) / s for s in seconds)
    return decode, plain, ours


def nearest(vectors: np.ndarray, count: int) -> list[set[int]]:
    """Per row the `count` rows of highest cosine beside itself."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    return [set(row.tolist()) for row in np.argsort(-scores, axis=1, kind="stable")[:, :count]]


def compared(exact: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Two ways' unit rows of the same images."""
    exact, ours = exact.astype(np.float64), ours.astype(np.float64)
    same = (exact * ours).sum(axis=1)
    k = min(10, len(exact) - 1)
    overlap = [len(a & b) / k for a, b in zip(nearest(exact, k), nearest(ours, k), strict=True)]
    strangers = (exact * np.roll(exact, len(exact) // 2, axis=0)).sum(axis=1)
    return {
        "cosine_min": round(float(same.min()), 5),
        "cosine_mean": round(float(same.mean()), 5),
        "unrelated_cosine": round(float(strangers.mean()), 4),
        "top10_overlap": round(float(np.mean(overlap)), 4),
    }


def encoded(items: Sequence[Any], encode: Callable[[Sequence[Any]], np.ndarray]) -> np.ndarray:
    """(n, d) float32, a batch at a time."""
    return np.concatenate([encode(items[s : s + BATCH]) for s in range(0, len(items), BATCH)])


def fidelity(contents: Sequence[bytes], model: str) -> dict[str, float]:
    """How far the fast preparation moves the embeddings of trained weights."""
    encoder = loaded(model)
    prepare = encoder.preparation.prepare
    return compared(
        encoded(contents, lambda some: encoder.encode_images([opened(c) for c in some])),
        encoded(contents, lambda some: encoder.encode_prepared([prepare(c) for c in some])),
    )


def loaded(model: str, **settings: Any) -> Any:
    """The product's own encoder of images."""
    from tasks.config import EncoderConfig
    from tasks.models.encoders.transformers_encoder import TransformersEncoder

    device = settings.pop("device", "cpu")
    return TransformersEncoder(EncoderConfig(model=model, kind="image", **settings), device, 1)


def random_tower(shape: str, folder: Path) -> str:
    """A folder with random weights of a shape and its usual processor, as a hub's repository has them."""
    import transformers

    transformers.set_seed(0)
    clip = {
        "clip-b32": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 32,
            "projection_dim": 512,
        },
        "clip-l14": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
            "projection_dim": 768,
        },
        "tiny": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 56,
            "projection_dim": 32,
        },
    }
    side = {"height": 224, "width": 224}
    if shape == "dinov2-l":
        config = transformers.Dinov2Config(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518, patch_size=14
        )
        transformers.Dinov2Model(config).save_pretrained(folder)
        transformers.BitImageProcessor(size={"shortest_edge": 256}, crop_size=side).save_pretrained(folder)
    else:
        vision = {k: v for k, v in clip[shape].items() if k != "projection_dim"}
        # not asked
        text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = transformers.CLIPConfig(
            text_config=text, vision_config={**vision, "image_size": 224}, projection_dim=clip[shape]["projection_dim"]
        )
        transformers.CLIPModel(config).save_pretrained(folder)
        transformers.AutoImageProcessor.from_pretrained(
            "tasks/sample/checkpoints/clip", size={"shortest_edge": 224}, crop_size=side
        ).save_pretrained(folder)
    return str(folder)


def plain_vectors(model: Any, pixels: Any) -> Any:
    """What a plain loop calls: the tower as transformers has it."""
    out = (
        model.get_image_features(pixel_values=pixels)
        if hasattr(model, "get_image_features")
        else model(pixel_values=pixels).last_hidden_state[:, 0]
    )
    return getattr(out, "pooler_output", out)


def cpu_towers(shape: str, arithmetics: Sequence[str], contents: Sequence[bytes], model: str) -> list[dict[str, Any]]:
    """Pixels to vectors on one core, transformers' plain loop against each arithmetic; then the same on trained
    weights.
    """
    import torch
    from transformers import AutoModel

    from tasks.knn.unit_rows import unit_rows

    rows = []
    images = [opened(c) for c in contents]
    trained = encoded(images, loaded(model).encode_images)
    with tempfile.TemporaryDirectory() as folder:
        name = random_tower(shape, Path(folder))
        stock = AutoModel.from_pretrained(name).eval()
        pixels = loaded(name).processor(images=images[:BATCH], return_tensors="pt")["pixel_values"]

        def plain() -> np.ndarray:
            with torch.inference_mode():
                return unit_rows(plain_vectors(stock, pixels).numpy())

        for arithmetic in arithmetics:
            encoder = loaded(name, cpu_dtype=arithmetic)

            def ours(encoder: Any = encoder) -> np.ndarray:
                return np.asarray(encoder.precision.encode_checked(encoder._encode_pixels, pixels, name))

            stock_s, ours_s = cpu_seconds([plain, ours])
            same = compared(trained, encoded(images, loaded(model, cpu_dtype=arithmetic).encode_images))
            row = {
                "shape": shape,
                "arithmetic": arithmetic,
                "plain_images_per_s": round(len(pixels) / stock_s, 1),
                "ours_images_per_s": round(len(pixels) / ours_s, 1),
                "ratio": round(stock_s / ours_s, 2),
                "cosine_min": round(float((plain() * ours()).sum(axis=1).min()), 5),
                "trained_cosine_min": same["cosine_min"],
                "trained_unrelated_cosine": same["unrelated_cosine"],
                "trained_top10_overlap": same["top10_overlap"],
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


def whole_way(shape: str, contents: Sequence[bytes], device: str, readers: int, batch: int) -> dict[str, Any]:
    """Stored bytes to vectors, seconds by the clock: a plain loop against the stage's own way, bfloat16 where the
    device is a GPU.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModel

    from tasks.embed.batches import LazyImages, encode_in_batches
    from tasks.knn.unit_rows import unit_rows

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        name = random_tower(shape, Path(folder))
        stock, processor = (
            AutoModel.from_pretrained(name, dtype=dtype).eval().to(device),
            AutoImageProcessor.from_pretrained(name),
        )
        encoder = loaded(name, dtype=str(dtype).rpartition(".")[2], device=device)

    def plain(some: Sequence[bytes]) -> np.ndarray:
        found = []
        for first in range(0, len(some), batch):
            pixels = processor(images=[opened(c) for c in some[first : first + batch]], return_tensors="pt")[
                "pixel_values"
            ].to(device, dtype)
            with torch.inference_mode():
                found.append(unit_rows(plain_vectors(stock, pixels).float().cpu().numpy()))
        return np.concatenate(found)

    def ours(some: Sequence[bytes]) -> np.ndarray:
        index = [str(n) for n in range(len(some))]
        return encode_in_batches(
            LazyImages(index, lambda n: encoder.preparation.prepare(some[int(n)])),
            encoder.encode_prepared,
            batch,
            None,
            readers,
        )[0]

    seconds, vectors = [], []
    for way in (plain, ours):
        way(contents[: 2 * batch])  # kernels are chosen
        start = time.perf_counter()
        vectors.append(way(contents).astype(np.float64))
        seconds.append(time.perf_counter() - start)
    row = {
        "shape": shape,
        "device": device,
        "readers": readers,
        "batch": batch,
        "plain_images_per_s": round(len(contents) / seconds[0], 1),
        "ours_images_per_s": round(len(contents) / seconds[1], 1),
        "ratio": round(seconds[0] / seconds[1], 2),
        "cosine_min": round(float((vectors[0] * vectors[1]).sum(axis=1).min()), 5),
    }
    print(json.dumps(row), flush=True)
    return row


def preparation_row(args: argparse.Namespace, max_side: int) -> tuple[dict[str, Any], list[bytes]]:
    """One size's speed and fidelity, and its images."""
    is_real = args.photos.is_dir()
    contents = (
        stored_photographs(args.photos, args.images, max_side, max_side > 512)
        if is_real
        else stored_scenes(args.images, max_side or 512)
    )
    if args.no_preparation:
        return {}, contents
    decode, stock, ours = speeds(contents, args.side)
    found = fidelity(contents, args.model)
    row = {
        "n": len(contents),
        "images": "photographs" if is_real else "scenes",
        "side_px": args.side,
        "stored_px": max_side or max(opened(contents[0]).size),
        "stored_kib": round(sum(map(len, contents)) / len(contents) / 1024, 1),
        "decode_images_per_cpu_s": round(decode, 1),
        "stock_images_per_cpu_s": round(stock, 1),
        "ours_images_per_cpu_s": round(ours, 1),
        "ratio": round(ours / stock, 2),
        "model": args.model,
        **found,
        "is_equal": found["cosine_min"] >= 0.999 and found["top10_overlap"] >= 0.95,
    }
    print(json.dumps(row), flush=True)
    return row, contents


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos"))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=224, help="of the tower's input, px")
    parser.add_argument(
        "--max-side", type=int, nargs="+", default=[512, 1024], help="of a stored image, px (ingest.max_side_px)"
    )
    parser.add_argument(
        "--model", default="tasks/sample/checkpoints/clip", help="trained weights that the fidelity is shown on"
    )
    parser.add_argument("--arithmetic", nargs="+", default=["int8"], choices=["float32", "bfloat16", "int8"])
    parser.add_argument(
        "--shape", nargs="+", default=["clip-b32"], choices=["clip-b32", "clip-l14", "dinov2-l", "tiny"]
    )
    parser.add_argument("--device", default="cpu", help="cuda: the whole way on a GPU")
    parser.add_argument("--readers", type=int, default=1, help="threads that prepare images, with --device")
    parser.add_argument("--batch", type=int, default=256, help="images in one call, with --device")
    parser.add_argument(
        "--whole-way", action="store_true", help="stored bytes to vectors, as with --device cuda, on a CPU"
    )
    parser.add_argument("--no-preparation", action="store_true")
    parser.add_argument("--no-towers", action="store_true")
    args = parse_arguments(parser, argv, {"images": 12, "side": 64, "shape": ["tiny"], "max_side": [160]})
    import torch

    torch.set_num_threads(1)
    sizes: list[dict[str, Any]] = []
    contents: list[bytes] = []
    for max_side in args.max_side:
        row, images = preparation_row(args, max_side)
        sizes += [row] if row else []
        contents = contents or images
    figures: dict[str, object] = {**(sizes[0] if sizes else {}), "sizes": sizes}
    if args.device != "cpu" or args.whole_way:
        while len(contents) < args.images:  # the folder has fewer: they come again
            contents += contents[: args.images - len(contents)]
        figures["gpu"] = [whole_way(shape, contents, args.device, args.readers, args.batch) for shape in args.shape]
    elif not args.no_towers:
        figures["towers"] = [
            row for shape in args.shape for row in cpu_towers(shape, args.arithmetic, contents[:200], args.model)
        ]
    figures["is_equal"] = all(row["is_equal"] for row in sizes)
    figures["rss_mib"] = peak_mib()
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("embed")
    sys.exit(0 if main()["is_equal"] else 1)
