"""Image-text retrieval in the sample world: the gallery's images, and captions of them as the web writes them.

What a model that is fine-tuned on triplets still knows of what it was trained for. A caption says less than the scene
shows, so that some captions fit several images: no model finds all.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.config import Params
from tasks.models.retrievers.clip import ClipRetriever
from tasks.sample.phrases import web_caption
from tasks.sample.scenes import Scene

DRAWS = 3  # captions of an image
DIRECTIONS = ("text_to_image", "image_to_text")


def captioned_gallery(benchmark: Path, truth: Path) -> tuple[list[Path], list[list[str]]]:
    """Image files of a gallery's different scenes, and `DRAWS` lists of a caption each.

    Args:
        benchmark: folder, in CIRCO's format, of a benchmark of the sample world.
        truth: of its images, as `make_benchmark` writes it.
    """
    files: dict[Scene, Path] = {}
    for line in truth.read_text().splitlines():
        row = json.loads(line)
        files.setdefault(Scene.from_record(row["scene"]), benchmark / "images" / f"{row['id']}.jpg")
    rngs = [random.Random(f"captions of the gallery {draw}") for draw in range(DRAWS)]
    return list(files.values()), [[web_caption(scene, rng) for scene in files] for rng in rngs]


def answer_places(model: str, benchmark: Path, truth: Path, params: Params) -> dict[str, np.ndarray]:
    """Direction -> (DRAWS, n) how many candidates a query's answer has before it, counts."""
    from PIL import Image

    files, captions = captioned_gallery(benchmark, truth)
    retriever = ClipRetriever(model, device="cpu", threads=params.open_run.threads)
    images = retriever.encode(images=[Image.open(file) for file in files])
    similarities = [retriever.encode(texts=texts) @ images.T for texts in captions]
    return {
        "text_to_image": np.stack([places_of_answers(s) for s in similarities]),
        "image_to_text": np.stack([places_of_answers(s.T) for s in similarities]),
    }


def places_of_answers(similarity: np.ndarray) -> np.ndarray:
    """(n,) counts, of (n, n) similarities; the answer of query n is candidate n."""
    return (similarity > np.diag(similarity)[:, None]).sum(1)


def recalls(places: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Recall at 1 and 5 of each direction, in points."""
    return {f"{name}_recall_at_{k}": 100 * float((places[name] < k).mean()) for name in DIRECTIONS for k in (1, 5)}


def changes(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Direction -> by how much recall at 1 has risen, and the standard error of that over the images, in points."""
    out = {}
    for name in DIRECTIONS:
        each = 100 * ((after[name] < 1).mean(0) - (before[name] < 1).mean(0))  # (n,), of an image's captions
        out[name] = float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)
    return out


def change_texts(changed: Mapping[str, Sequence[float]]) -> str:
    """The changes of `changes` in words."""
    parts = [f"{name.replace('_', ' ')} {rise:+.1f} ± {error:.1f}" for name, (rise, error) in changed.items()]
    return f"image-text R@1, fine-tuned minus base, with its standard error: {', '.join(parts)}"
