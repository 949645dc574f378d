"""Examples that show a person whether a window is right: near-copies of a corpus' images, pairs from all over it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tasks.calibrate.page import PairImages, band_pairs
from tasks.config import Params, Window
from tasks.knn.search import neighbours_in_window
from tasks.knn.spec import SearchSpec
from tasks.models.encoders.load import load_encoder
from tasks.store import Store

COPIED_IMAGES = 60  # images that near-copies are made of
QUERIES, TOP_K = 500, 200  # what the pairs are drawn from


def near_copies(image: Image.Image) -> list[Image.Image]:
    """Three near-copies: re-encoded at JPEG quality 50, scaled to 0.6, cropped by 3% on every side."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=50)
    width, height = image.size
    scaled = image.resize((max(1, round(0.6 * width)), max(1, round(0.6 * height))))
    left, top = round(0.03 * width), round(0.03 * height)
    cropped = image.crop((left, top, width - left, height - top))
    return [Image.open(io.BytesIO(encoded.getvalue())).convert("RGB"), scaled, cropped]


def copy_cosines(params: Params, store: Store, role: str, ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Cosines of stored images and near-copies made of them, sorted; none for a text encoder.

    Args:
        role: the encoder's.
        ids: (n) of the corpus.
        vectors: (n, d) float16, theirs.
    """
    spec = params.embed.encoders[role]  # type: ignore[index]
    if spec.kind != "image":
        return np.zeros(0)
    rows = np.sort(np.random.default_rng(params.open_run.seed).permutation(len(ids))[:COPIED_IMAGES])
    encoder = load_encoder(spec, params.embed.device, params.open_run.threads)
    copies = [near_copies(store.read_image(ids[n])) for n in rows]
    originals = np.repeat(rows, [len(some) for some in copies])
    copy_vectors = encoder.encode_images([copy for some in copies for copy in some])
    return np.sort(np.einsum("md,md->m", vectors[originals].astype(np.float32), copy_vectors))


def pairs_in_bands(
    store: Store, ids: Sequence[str], vectors: np.ndarray, window: Window, seed: int, *, with_captions: bool = True
) -> list[list[PairImages]]:
    """Pairs from three bands of a window, with images and, where wanted, captions.

    They are drawn from all pairs that a sample of the queries has inside the window.

    Args:
        ids: (n) of the corpus.
        vectors: (n, d) float16, theirs.
        seed: of the sample.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(ids))[:QUERIES])
    query, target, similarity, _ = neighbours_in_window(
        vectors[rows], vectors, [ids[n] for n in rows], ids, SearchSpec(window, TOP_K)
    )
    captions = store.captions() if with_captions else {}

    def pair(n: int) -> PairImages:
        a, b = ids[rows[query[n]]], ids[target[n]]
        images = store.read_image(a), store.read_image(b)
        return PairImages(float(similarity[n]), *images, captions.get(a, ""), captions.get(b, ""))

    return [[pair(n) for n in band] for band in band_pairs(rows[query], target, similarity, window, seed=seed)]
