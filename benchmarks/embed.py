"""Decoding and preparing pictures for an encoder: our fast preparation against the stock Hugging Face processor, one core.

    python -m benchmarks.embed [--photos ../shared/photos] [--images 400] [--side 224] [--model tasks/sample/checkpoints/clip] [--max-side 512] [--enlarge]

Pictures: photographs of a folder, stored as ingest stores them (JPEG, quality 95, at most --max-side px), else scenes of the sample world, enlarged.
Speed: JPEG bytes to the tower's float pixels, CPU-seconds of one thread - Pillow and the processor (CLIP's defaults at --side) against
tasks/models/preprocess.py - best of three turns each. Fidelity, on the trained weights of --model with its own processor: the cosine of both ways'
embeddings picture by picture, beside it that of unrelated pictures, and how many of a picture's ten nearest are the same.

The last line is JSON: n, pictures, side_px, stored_px, stock_images_per_cpu_s, ours_images_per_cpu_s, ratio, model, cosine_min, cosine_mean, unrelated_cosine,
top10_overlap, is_equal (cosine_min >= 0.999 and top10_overlap >= 0.95), rss_mib.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.mine import fair_environment, peak_mib

BATCH = 32
TURNS = 3


def stored_photographs(folder: Path, count: int, max_side: int, enlarge: bool = False) -> list[bytes]:
    """JPEG bytes of at most `count` photographs, drawn evenly over the folder, no side above `max_side` px; all of that size with `enlarge`."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    return [_stored(Image.open(files[n]).convert("RGB"), max_side, enlarge) for n in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]


def stored_scenes(count: int, max_side: int, seed: int = 0) -> list[bytes]:
    """JPEG bytes of scenes of the sample world, their longer side `max_side` px."""
    from tasks.sample.scenes import family, picture_of

    rng = random.Random(seed)
    pictures: list[Image.Image] = []
    while len(pictures) < count:
        pictures += [picture_of(scene, rendering=rng.randrange(1 << 30)) for scene in family(rng, "corpus", 6)]
    return [_stored(p, max_side, enlarge=True) for p in pictures[:count]]


def _stored(picture: Image.Image, max_side: int, enlarge: bool = False) -> bytes:
    scale = max_side / max(picture.size)
    if scale < 1 or enlarge:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95)
    return out.getvalue()


def opened(content: bytes) -> Image.Image:
    """As the store opens a picture."""
    return Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")).convert("RGB")


def images_per_cpu_s(contents: Sequence[bytes], prepare: Callable[[Sequence[bytes]], Any]) -> float:
    """Of the fastest of three turns, a batch at a time."""
    prepare(contents[:BATCH])
    took = []
    for _ in range(TURNS):
        start = time.process_time()
        for first in range(0, len(contents), BATCH):
            prepare(contents[first : first + BATCH])
        took.append(time.process_time() - start)
    return len(contents) / min(took)


def speeds(contents: Sequence[bytes], side: int) -> tuple[float, float]:
    """Images per CPU-second, stock and ours, for CLIP's processor at `side` px."""
    from transformers import AutoImageProcessor

    from tasks.models.preprocess import preparation_of

    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    stock = AutoImageProcessor.from_pretrained("tasks/sample/checkpoints/clip", **size)
    preparation = preparation_of(stock)
    assert preparation is not None
    return (
        images_per_cpu_s(contents, lambda some: stock(images=[opened(c) for c in some], return_tensors="pt")["pixel_values"]),
        images_per_cpu_s(contents, lambda some: preparation.normalised([preparation.prepare(c) for c in some], "cpu")),
    )


def nearest(vectors: np.ndarray, count: int) -> list[set[int]]:
    """Per row the `count` rows of highest cosine beside itself."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2)
    return [set(row.tolist()) for row in np.argsort(-scores, axis=1, kind="stable")[:, :count]]


def fidelity(contents: Sequence[bytes], model: str) -> dict[str, float]:
    """How far the fast preparation moves the embeddings of trained weights."""
    from tasks.config import EncoderConfig
    from tasks.models.encoders import TransformersEncoder

    encoder = TransformersEncoder(EncoderConfig(model=model, kind="image"), "cpu", 1)
    assert encoder.preparation is not None
    blocks = [contents[s : s + BATCH] for s in range(0, len(contents), BATCH)]
    stock = np.concatenate([encoder.encode_images([opened(c) for c in b]) for b in blocks]).astype(np.float64)
    ours = np.concatenate([encoder.encode_prepared([encoder.preparation.prepare(c) for c in b]) for b in blocks]).astype(np.float64)
    same = (stock * ours).sum(axis=1)
    k = min(10, len(contents) - 1)
    overlap = [len(a & b) / k for a, b in zip(nearest(stock, k), nearest(ours, k), strict=True)]
    strangers = (stock * np.roll(stock, len(stock) // 2, axis=0)).sum(axis=1)
    return {
        "cosine_min": round(float(same.min()), 5),
        "cosine_mean": round(float(same.mean()), 5),
        "unrelated_cosine": round(float(strangers.mean()), 4),
        "top10_overlap": round(float(np.mean(overlap)), 4),
    }


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print, return the last line's object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/photos"))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--side", type=int, default=224, help="of the tower's input, px")
    parser.add_argument("--max-side", type=int, default=512, help="of a stored picture, px (ingest.max_side_px)")
    parser.add_argument("--enlarge", action="store_true", help="photographs that are smaller, too: what another corpus's sizes would cost")
    parser.add_argument("--model", default="tasks/sample/checkpoints/clip", help="trained weights that the fidelity is shown on")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    is_real = args.photos.is_dir()
    contents = stored_photographs(args.photos, args.images, args.max_side, args.enlarge) if is_real else stored_scenes(args.images, args.max_side)
    size = sum(map(len, contents)) / len(contents) / 1024
    print(f"{len(contents)} {'photographs' if is_real else 'scenes'}, {size:.0f} KiB each, {opened(contents[0]).size[0]} px wide the first", flush=True)
    stock, ours = speeds(contents, args.side)
    print(f"stock {stock:.1f}, ours {ours:.1f} images per CPU-second", flush=True)
    found = fidelity(contents, args.model)
    figures: dict[str, object] = {
        "n": len(contents),
        "pictures": "photographs" if is_real else "scenes",
        "side_px": args.side,
        "stored_px": args.max_side,
        "stock_images_per_cpu_s": round(stock, 1),
        "ours_images_per_cpu_s": round(ours, 1),
        "ratio": round(ours / stock, 2),
        "model": args.model,
        **found,
        "is_equal": found["cosine_min"] >= 0.999 and found["top10_overlap"] >= 0.95,
        "rss_mib": peak_mib(),
    }
    print(json.dumps(figures), flush=True)
    return figures


if __name__ == "__main__":
    fair_environment("embed")
    sys.exit(0 if main()["is_equal"] else 1)
