"""Shortcuts: triplets whose target can be found by the text alone, or by the query image alone.

A triplet teaches composition only where neither modality is enough. Each target is searched for among the images of the
corpus with the CLIP that embedded them (encoder `semantic`), in three modes: by the triplet's texts alone, by its query
image alone, and by the sum of both vectors as in BGE-VL (arXiv:2412.14475, eq. 2). The query image is left out of the
gallery, as in CIRR's protocol. A mode finds the target if the target comes first.

Stage judge stores the modes in column `found_by` and limits shortcuts to `judge.shortcut_share_max` of a chunk. A
version reports the composition gap: how much more often both modalities together find the target than the better of the
two alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tasks.config import Params
from tasks.knn.unit_rows import unit_rows
from tasks.names import seeded_hash
from tasks.store import Store

MODES = ("text", "image", "composed")


def sample_ids(image_ids: Sequence[str], max_ids: int, seed: int) -> list[str]:
    """At most `max_ids` different ids, drawn by seed and id alone, sorted."""
    distinct = sorted(set(image_ids))
    if len(distinct) <= max_ids:
        return distinct
    return sorted(sorted(distinct, key=lambda image_id: seeded_hash(seed, image_id))[:max_ids])


def is_first(
    queries: np.ndarray, targets: np.ndarray, gallery: np.ndarray, excluded: Sequence[Sequence[int]]
) -> np.ndarray:
    """Whether each query is nearer to its own target than to every image of the gallery; a tie is not nearer.

    Args:
        queries: (n, d) rows.
        targets: (n, d) rows.
        gallery: (g, d) rows.
        excluded: per query the gallery's rows that do not count: its own image, and its target.
    Returns:
        (n,) bool.
    """
    scores = queries.astype(np.float32) @ gallery.astype(np.float32).T  # (n, g)
    for row, columns in enumerate(excluded):
        scores[row, list(columns)] = -np.inf
    target_scores = np.einsum("nd,nd->n", queries.astype(np.float32), targets.astype(np.float32))
    return target_scores > scores.max(axis=1, initial=-np.inf)


def find_targets(
    triplets: Sequence[Mapping[str, Any]],
    texts: np.ndarray,
    vectors: Mapping[str, np.ndarray],
    gallery_ids: Sequence[str],
) -> list[list[str]]:
    """Per triplet which of MODES find its target; text and composed where more than half of its texts do.

    Args:
        triplets: rows with query_image_id, target_image_id, instructions.
        texts: (m, d), a unit row per instruction, triplet by triplet.
        vectors: image_id -> (d,) unit row, of every image named in triplets and gallery.
        gallery_ids: images among which the target is searched for.
    """
    if not triplets:
        return []
    gallery_rows = {image_id: n for n, image_id in enumerate(gallery_ids)}
    gallery = np.stack([vectors[image_id] for image_id in gallery_ids])
    query = unit_rows(np.stack([vectors[t["query_image_id"]] for t in triplets]))
    target = unit_rows(np.stack([vectors[t["target_image_id"]] for t in triplets]))
    ends = [{t["query_image_id"], t["target_image_id"]} for t in triplets]
    excluded = [[gallery_rows[image_id] for image_id in pair if image_id in gallery_rows] for pair in ends]
    owners = [n for n, t in enumerate(triplets) for _ in t["instructions"]]
    excluded_by_text = [excluded[n] for n in owners]
    by_image = is_first(query, target, gallery, excluded)
    by_text = is_first(texts, target[owners], gallery, excluded_by_text)
    by_both = is_first(unit_rows(texts + query[owners]), target[owners], gallery, excluded_by_text)
    modes: list[list[str]] = []
    end = 0
    for n, triplet in enumerate(triplets):
        own = slice(end, end + len(triplet["instructions"]))
        end = own.stop
        flags = (by_text[own].mean() > 0.5, bool(by_image[n]), by_both[own].mean() > 0.5)
        modes.append([mode for mode, is_found in zip(MODES, flags, strict=True) if is_found])
    return modes


def is_shortcut(modes: Sequence[str] | None) -> bool:
    """Whether one modality alone finds the target; False where that is unknown (None)."""
    return modes is not None and ("text" in modes or "image" in modes)


def excess_shortcuts(found_by: Sequence[Sequence[str] | None], share_max: float) -> list[int]:
    """Positions to drop so that shortcuts are at most `share_max` of what is left.

    Triplets that the text alone solves are dropped first, then in order.
    """
    shortcuts = [n for n, modes in enumerate(found_by) if is_shortcut(modes)]
    others = len(found_by) - len(shortcuts)
    allowed = len(shortcuts) if share_max >= 1 else int(share_max / (1 - share_max) * others + 1e-9)
    shortcuts.sort(key=lambda n: ("text" not in (found_by[n] or ()), n))
    return sorted(shortcuts[: max(0, len(shortcuts) - allowed)])


def shortcut_figures(found_by: Sequence[Sequence[str] | None]) -> dict[str, float]:
    """Figures of the report, shares of the triplets whose modes are known; empty without any.

    Returns:
        found_by_text, found_by_image, found_by_both: of each mode; shortcut_share; composition_gap: found_by_both less
        the greater of the other two.
    """
    known = [modes for modes in found_by if modes is not None]
    if not known:
        return {}
    share = {mode: sum(mode in modes for modes in known) / len(known) for mode in MODES}
    return {
        "found_by_text": share["text"],
        "found_by_image": share["image"],
        "found_by_both": share["composed"],
        "shortcut_share": sum(map(is_shortcut, known)) / len(known),
        "composition_gap": share["composed"] - max(share["text"], share["image"]),
    }


class _Index(NamedTuple):
    vectors: dict[str, np.ndarray]
    gallery_ids: list[str]
    encoder: Any


class ShortcutDetector:
    """Finds the modes that find a triplet's target, with the encoder `semantic` and its stored vectors."""

    def __init__(self, params: Params, store: Store, image_ids: Sequence[str]) -> None:
        """Nothing is read before the first call of `find`.

        Args:
            params: the run's.
            store: of the worktree.
            image_ids: the batch's queries and targets, whose vectors are kept whatever gallery is drawn.
        """
        self.params, self.store, self.image_ids = params, store, image_ids
        self._index: _Index | None = None

    def find(self, triplets: Sequence[Mapping[str, Any]]) -> list[list[str] | None]:
        """Per triplet the modes that find its target; None where they cannot be known.

        That is, for all: no encoder `semantic`, or its text tower has a vector space of its own; for one triplet: its
        query or its target has no vector.
        """
        if not triplets:
            return []
        self._index = self._index or self._load()
        if self._index is None:
            return [None] * len(triplets)
        vectors = self._index.vectors
        known = [t for t in triplets if t["query_image_id"] in vectors and t["target_image_id"] in vectors]
        found = iter(self._find(known, self._index) if known else [])
        ids = {id(t) for t in known}
        return [next(found) if id(t) in ids else None for t in triplets]

    def _find(self, triplets: Sequence[Mapping[str, Any]], index: _Index) -> list[list[str]]:
        texts = [text for t in triplets for text in t["instructions"]]
        size = self.params.embed.batch_images
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        rows = np.concatenate([index.encoder.encode_texts(batch) for batch in batches])
        return find_targets(triplets, rows, index.vectors, index.gallery_ids)

    def _load(self) -> _Index | None:
        from tasks.models.encoders.load import load_encoder

        spec = self.params.embed.encoders.get("semantic")
        if spec is None or not self.store.embedded_shards("semantic"):
            return None
        image_ids, stored, _ = self.store.read_embeddings("semantic")
        # among all images, as a user would search, not among the few that end a pair of this batch
        gallery_ids = sample_ids(image_ids, self.params.judge.shortcut_pictures, self.params.open_run.seed)
        needed = {*self.image_ids, *gallery_ids}
        vectors = {i: stored[n].astype("float32") for n, i in enumerate(image_ids) if i in needed}
        text_spec = spec.model_copy(update={"kind": "text"})
        encoder = load_encoder(text_spec, self.params.judge.device, self.params.open_run.threads)
        # a CLIP has image and text in one space; a text encoder of its own does not
        is_joint = hasattr(getattr(encoder, "model", None), "get_text_features")
        return _Index(vectors, gallery_ids, encoder) if is_joint else None
