"""Shortcuts: triplets whose target is found by the text alone, or by the query image alone; what composing adds.

A triplet teaches composition only where neither modality is enough. Each is looked for among the corpus' images, by the
CLIP that embedded them (encoder `semantic`): its texts alone, its query image alone, and both summed as BGE-VL does
(arXiv:2412.14475, eq. 2); the query image is taken out, as in CIRR's protocol. Found means: first of all. Pure
functions of vectors; `judge` tags triplets with them (column `found_by`), limits shortcuts to
`judge.shortcut_share_max` of a chunk, and the version
keeps the composition gap: how much oftener both find the target than the better of the two alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.config import Params
from tasks.judge import shortcuts
from tasks.knn.unit_rows import unit_rows
from tasks.names import seeded_hash
from tasks.store import Store

MODES = ("text", "image", "composed")


def drawn(image_ids: Sequence[str], most: int, seed: int) -> list[str]:
    """At most `most` different ids, drawn by seed and id alone, in order of id."""
    known = sorted(set(image_ids))
    if len(known) <= most:
        return known
    return sorted(sorted(known, key=lambda i: seeded_hash(seed, i))[:most])


def is_first(
    queries: np.ndarray, targets: np.ndarray, gallery: np.ndarray, left_out: Sequence[Sequence[int]]
) -> np.ndarray:
    """Whether each query is nearer to its own target than to every image of the gallery that counts; a tie is not
    nearer.

    Args:
        queries: (n, d) rows.
        targets: (n, d) rows.
        gallery: (g, d) rows.
        left_out: per query the gallery's rows that do not count: its own image, and its target.
    Returns:
        (n,) bool.
    """
    scores = queries.astype(np.float32) @ gallery.astype(np.float32).T  # (n, g)
    for row, columns in enumerate(left_out):
        scores[row, list(columns)] = -np.inf
    own = np.einsum("nd,nd->n", queries.astype(np.float32), targets.astype(np.float32))
    return own > scores.max(axis=1, initial=-np.inf)


def found_by(
    triplets: Sequence[Mapping[str, Any]],
    texts: np.ndarray,
    vectors: Mapping[str, np.ndarray],
    gallery_ids: Sequence[str],
) -> list[list[str]]:
    """Per triplet which of MODES find its target: text and composed where more than half of its texts do.

    Args:
        triplets: rows with query_image_id, target_image_id, instructions.
        texts: (m, d), a unit row per instruction, triplet by triplet.
        vectors: image_id -> (d,) unit row; must hold every image named here.
        gallery_ids: images among which the target is looked for.
    """
    if not triplets:
        return []
    place = {image_id: n for n, image_id in enumerate(gallery_ids)}
    gallery = np.stack([vectors[i] for i in gallery_ids])
    owners = [n for n, t in enumerate(triplets) for _ in t["instructions"]]
    query = unit_rows(np.stack([vectors[t["query_image_id"]] for t in triplets]))
    target = unit_rows(np.stack([vectors[t["target_image_id"]] for t in triplets]))
    out = [[place[i] for i in {t["query_image_id"], t["target_image_id"]} if i in place] for t in triplets]
    by_image = is_first(query, target, gallery, out)
    each_out = [out[n] for n in owners]
    by_text = is_first(texts, target[owners], gallery, each_out)
    by_both = is_first(unit_rows(texts + query[owners]), target[owners], gallery, each_out)
    found: list[list[str]] = []
    end = 0
    for n, triplet in enumerate(triplets):
        mine = slice(end, end + len(triplet["instructions"]))
        end = mine.stop
        flags = (by_text[mine].mean() > 0.5, bool(by_image[n]), by_both[mine].mean() > 0.5)
        found.append([mode for mode, flag in zip(MODES, flags, strict=True) if flag])
    return found


def is_shortcut(found: Sequence[str] | None) -> bool:
    """Whether one modality is enough."""
    return found is not None and ("text" in found or "image" in found)


def beyond_share(found: Sequence[Sequence[str] | None], share: float) -> list[int]:
    """Positions to drop so that shortcuts are at most `share` of what is left: those that the text alone solves first,
    then in order.
    """
    solved = [n for n, f in enumerate(found) if is_shortcut(f)]
    others = len(found) - len(solved)
    most = len(solved) if share >= 1 else int(share / (1 - share) * others + 1e-9)
    solved.sort(key=lambda n: ("text" not in (found[n] or ()), n))
    return sorted(solved[: max(0, len(solved) - most)])


def figures(found: Sequence[Sequence[str] | None]) -> dict[str, float]:
    """Shares of triplets found by text, by image and by both, the share of shortcuts, and the composition gap; empty
    where none was looked at.
    """
    looked = [f for f in found if f is not None]
    if not looked:
        return {}
    share = {mode: sum(mode in f for f in looked) / len(looked) for mode in MODES}
    return {
        "found_by_text": share["text"],
        "found_by_image": share["image"],
        "found_by_both": share["composed"],
        "shortcut_share": sum(map(is_shortcut, looked)) / len(looked),
        "composition_gap": share["composed"] - max(share["text"], share["image"]),
    }


class Finder:
    """Finds out what finds a triplet's target among the corpus' images; None for all where the batch's CLIP cannot
    tell.
    """

    def __init__(self, params: Params, store: Store, image_ids: Sequence[str]) -> None:
        """`image_ids` are the batch's queries and targets, which are looked up whatever is drawn; nothing is read
        before the first call.
        """
        self.params, self.store, self.image_ids = params, store, image_ids
        self._ready: tuple[dict[str, Any], list[str], Any] | None = None

    def _prepare(self) -> tuple[dict[str, Any], list[str], Any] | None:
        from tasks.models.encoders.load import load_encoder

        spec = self.params.embed.encoders.get("semantic")
        if spec is None or not self.store.embedded_shards("semantic"):
            return None
        ids, stored, _ = self.store.read_embeddings("semantic")
        # a target is looked for where a user would: among all images, not among the few that end a pair of this week
        gallery = shortcuts.drawn(ids, self.params.judge.shortcut_pictures, self.params.open_run.seed)
        wanted = {*self.image_ids, *gallery}
        vectors = {i: stored[n].astype("float32") for n, i in enumerate(ids) if i in wanted}
        if wanted - set(vectors):
            return None
        encoder = load_encoder(
            spec.model_copy(update={"kind": "text"}), self.params.judge.device, self.params.open_run.threads
        )
        # a text tower of its own lies in another space
        is_joint = hasattr(getattr(encoder, "model", None), "get_text_features")
        return (vectors, gallery, encoder) if is_joint else None

    def __call__(self, triplets: Sequence[Mapping[str, Any]]) -> list[list[str] | None]:
        """Per triplet the modes that find its target."""
        import numpy as np

        if not triplets:
            return []
        self._ready = self._ready or self._prepare()
        if self._ready is None:
            return [None] * len(triplets)
        vectors, gallery, encoder = self._ready
        texts = [text for t in triplets for text in t["instructions"]]
        size = self.params.embed.batch_images
        rows = np.concatenate(
            [encoder.encode_texts(texts[start : start + size]) for start in range(0, len(texts), size)]
        )
        return list(shortcuts.found_by(triplets, rows, vectors, gallery))
