"""Embed: one encoder's unit vectors of this batch's images, or of their captions.

Reads data/images, data/shards, data/captions; writes data/embeddings/<encoder>/<shard>.npy and .parquet (the completion
marker), and data/dropped/embed-<encoder>/<batch>-<nnnnn>.parquet. Parameters: `embed`, `open_run.threads`. Source:
MegaPairs, arXiv:2412.14475, section 3.1 (three similarity models: image semantics, image pattern, caption).

The unit of work is a shard: a finished one is skipped, and parts share the shards. Within a shard batches follow the
order of the images table, so equal shards give equal bytes. `embed.readers` threads decode the next batches' images
while the model works on one; with `embed.preprocess: fast` they prepare them, too.

The revision that is stored with the vectors says how they were made, where that is not the default (`+fast`, `+int8`,
`+bfloat16`): vectors made in different ways are not mixed in one index.

Drop reasons: no_caption (text encoder), bad_vector (zero, not finite, or not as wide as the others). Vectors are
float16. Takedown: vectors of images on the takedown list are removed (tasks/embed/withdraw.py).

With `embed.next` this batch's shards are also encoded with the encoder that is to follow, and earlier shards within its
budget, the oldest first, into an index beside the one in use (tasks/renewal/encoders.py, docs/decisions/0154).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tasks.config import EncoderConfig, Params
from tasks.embed.batches import LazyImages, encode_in_batches
from tasks.embed.next_index import FIRST_DROPPED, plan_shards, remove_other_revisions, sentence
from tasks.embed.renewed_captions import encode_again, shards_to_follow
from tasks.embed.withdraw import withdraw_vectors
from tasks.errors import ConfigError, DataError
from tasks.fingerprints.takedown import taken_down, withdraw_dropped
from tasks.models.encoders.base import Encoder, PreparingEncoder
from tasks.models.encoders.load import load_encoder
from tasks.names import batch_name
from tasks.progress import Progress
from tasks.records import StageReport
from tasks.renewal.encoders import next_of, next_spec, settled
from tasks.store import Store

log = logging.getLogger(__name__)


def group_by_shard(images: Mapping[str, Sequence[Any]], batch: str) -> dict[str, list[str]]:
    """Shard file name -> image ids in the table's order; this batch's shards, by name."""
    shards: dict[str, list[str]] = {}
    for image_id, shard, image_batch in zip(images["image_id"], images["shard"], images["batch"], strict=True):
        if image_batch == batch:
            shards.setdefault(shard, []).append(image_id)
    return dict(sorted(shards.items()))


def dropped_rows(encoder: str, batch: str, ids: Sequence[str], reason: str) -> list[dict[str, str]]:
    """Rows of table `dropped`."""
    return [{"stage": "embed", "batch": batch, "key": i, "reason": reason, "detail": encoder} for i in ids]


class _Embedder:
    """One encoder, which is loaded when the first shard needs it.

    Attributes:
        index: what the store calls its vectors: the role, or that of the next encoder.
    """

    def __init__(self, params: Params, store: Store, role: str, spec: EncoderConfig | None = None) -> None:
        """`spec`: of the next encoder; None: the one in use. Raises ConfigError where no such encoder is configured."""
        encoders = params.embed.encoders
        if role not in encoders:
            raise ConfigError(
                f"embed: no encoder '{role}' in embed.encoders; known: {sorted(encoders)}; name one of them"
            )
        self.params, self.store, self.role = params, store, role
        self.spec: EncoderConfig = spec or encoders[role]  # type: ignore[index]
        self.index = next_of(role) if spec else role
        self.captions = store.captions() if self.spec.kind != "image" else {}
        self.model: Encoder | None = None
        self.revision = ""
        self.width: int | None = None

    def usable(self, ids: Sequence[str]) -> list[str]:
        """The images that have what the encoder takes."""
        return [i for i in ids if i in self.captions] if self.spec.kind != "image" else list(ids)

    def encode(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (n, d) float16 of images or of their captions, and (n,) bool, which are usable."""
        model, config = self._load(), self.params.embed
        items: Sequence[Any]
        encode: Callable[[Any], np.ndarray]
        if self.spec.kind != "image":
            items, encode = [self.captions[i] for i in ids], model.encode_texts
            return encode_in_batches(items, encode, config.batch_images, self.width)
        if isinstance(model, PreparingEncoder) and self._is_fast(model):
            prepare = model.preparation.prepare  # type: ignore[union-attr]
            items = LazyImages(ids, lambda i: prepare(self.store.read_image_bytes(i)))
            encode = model.encode_prepared
        else:
            items, encode = LazyImages(ids, self.store.read_image), model.encode_images
        return encode_in_batches(items, encode, config.batch_images, self.width, config.readers)

    def _load(self) -> Encoder:
        if self.model is None:
            model = load_encoder(self.spec, self.params.embed.device, self.params.open_run.threads)
            self.revision = model.revision + ("+fast" if self._is_fast(model) else "")
            if self.index != self.role:
                remove_other_revisions(self.store, self.role, self.revision)
            self.width = stored_width(self.store, self.index, self.revision)
            self.model = model
        return self.model

    def _is_fast(self, model: Encoder) -> bool:
        is_preparing = isinstance(model, PreparingEncoder) and model.preparation is not None
        return self.spec.kind == "image" and self.params.embed.preprocess == "fast" and is_preparing


def stored_width(store: Store, encoder: str, revision: str) -> int | None:
    """The width of the vectors that are stored already; None where there are none.

    Raises:
        DataError: they are of another revision of the model.
    """
    width: int | None = None
    for stem in store.embedded_shards(encoder):
        path = store.folder("data", "embeddings", encoder, f"{stem}.parquet")
        stored = (pq.read_schema(path).metadata or {}).get(b"revision", b"").decode()
        if stored and stored != revision:
            raise DataError(
                f"embed {encoder}: {stem} was embedded with revision {stored}, the model is now {revision}; "
                f"pin the old one in embed.encoders.{encoder}, and name the new one in embed.next.{encoder}: its index "
                "grows beside the old one and takes over once it is whole"
            )
        vectors = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        if len(vectors):
            width = int(vectors.shape[1])
    return width


def _embed_shard(store: Store, embedder: _Embedder, batch: str, shard: str, ids: Sequence[str], dropped: Path) -> int:
    """Write a shard's vectors and dropped rows. Returns the vectors written, a count."""
    encoder, usable = embedder.index, embedder.usable(ids)
    vectors, is_usable = embedder.encode(usable)
    embedded = [i for i, good in zip(usable, is_usable, strict=True) if good]
    with_caption = set(usable)
    # what has no caption is dropped once, by the encoder in use
    without = [i for i in ids if i not in with_caption] if encoder == embedder.role else []
    rows = dropped_rows(encoder, batch, without, "no_caption")
    bad = [i for i, good in zip(usable, is_usable, strict=True) if not good]
    store.write(dropped, rows + dropped_rows(encoder, batch, bad, "bad_vector"), "dropped")
    store.write_embeddings(encoder, shard, embedder.revision, embedded, vectors[is_usable])  # last: the shard's marker
    log.info("embed %s: %s, %d of %d", encoder, Path(shard).stem, len(embedded), len(ids))
    return len(embedded)


def run(params: Params, store: Store, encoder: str, part: tuple[int, int] | None = None) -> StageReport:
    """Embed this batch's shards with one encoder, or the i-th of n parts of them.

    Raises:
        ConfigError: no such encoder in params.embed.encoders.
        DataError: earlier batches hold vectors of another revision of the model.
    """
    params, batch, is_first_part = settled(params, store, encoder), batch_name(params), part is None or part[0] == 1
    embedder = _Embedder(params, store, encoder)
    images = store.read_table("images", ["image_id", "shard", "batch"]).to_pydict()
    if is_first_part:
        for index in (encoder, next_of(encoder)):
            withdraw_vectors(store, index, taken_down(params, store))
        withdraw_dropped(params, store, f"embed-{encoder}")
    report = StageReport("embed", reused=sum(b != batch for b in images["batch"]) if is_first_part else 0)
    folder = store.folder("data", "embeddings", encoder)
    folder.mkdir(parents=True, exist_ok=True)
    store.folder("data", "dropped", f"embed-{encoder}").mkdir(parents=True, exist_ok=True)
    shards = [
        (number, shard, ids)
        for number, (shard, ids) in enumerate(group_by_shard(images, batch).items())
        if part is None or number % part[1] == part[0] - 1
    ]
    progress = Progress(f"embed {encoder}", sum(len(ids) for _, _, ids in shards), "images")
    for number, shard, ids in shards:
        dropped = store.dropped_path(f"embed-{encoder}", batch, number)
        if not (folder / f"{Path(shard).stem}.parquet").exists():
            report.written += _embed_shard(store, embedder, batch, shard, ids, dropped)
            progress.advance(len(ids))
        else:
            progress.skip(len(ids))
        report.read += len(ids)
        usable = len(embedder.usable(ids))
        report.new += usable
        report.done += usable
        for reason in store.read(dropped, "dropped").column("reason").to_pylist():
            report.drop(reason)
    progress.finish()
    report.notes += _follow_and_prepare(params, store, embedder, images, part)
    return report


def _follow_and_prepare(
    params: Params,
    store: Store,
    embedder: _Embedder,
    images: Mapping[str, Sequence[Any]],
    part: tuple[int, int] | None,
) -> list[str]:
    """Encode what this run renewed of earlier batches, and for the encoder that is to follow; notes for the report."""
    _follow_captions(store, embedder, images, batch_name(params), part)
    return _embed_next(params, store, embedder.role, images, part)


def _follow_captions(
    store: Store, embedder: _Embedder, images: Mapping[str, Sequence[Any]], batch: str, part: tuple[int, int] | None
) -> None:
    """Encode captions that this run renewed, in the shards of earlier batches; a part does its share of the shards."""
    if embedder.spec.kind != "image":
        shards = shards_to_follow(store, embedder.index, images, batch)
        for number, (stem, ids) in enumerate(shards.items()):
            if part is None or number % part[1] == part[0] - 1:
                encode_again(store, embedder.index, stem, ids, embedder.usable(ids), embedder.encode)


def _embed_next(
    params: Params, store: Store, role: str, images: Mapping[str, Sequence[Any]], part: tuple[int, int] | None
) -> list[str]:
    """Encode with the encoder that is to follow, where there is one: this batch's shards, and earlier ones within its
    budget. Returns a sentence for the report of the first part.
    """
    spec, batch = next_spec(params, role), batch_name(params)
    if spec is None or params.open_run.takedown:  # a takedown by hand asks no model
        return []
    of_batch = [Path(shard).stem for shard in group_by_shard(images, batch)]
    ids_by_stem: dict[str, list[str]] = {}
    for image_id, shard in zip(images["image_id"], images["shard"], strict=True):
        ids_by_stem.setdefault(Path(shard).stem, []).append(image_id)
    stems = plan_shards(store, role, spec, of_batch, {stem: len(ids) for stem, ids in ids_by_stem.items()})
    embedder = _Embedder(params, store, role, spec)
    _follow_captions(store, embedder, images, batch, part)
    folder = store.folder("data", "embeddings", embedder.index)
    for number, stem in enumerate(stems):
        is_own = part is None or number % part[1] == part[0] - 1
        if is_own and not (folder / f"{stem}.parquet").exists():
            dropped = store.dropped_path(f"embed-{role}", batch, FIRST_DROPPED + number)
            _embed_shard(store, embedder, batch, f"{stem}.tar", ids_by_stem.get(stem, []), dropped)
    return [sentence(store, role, spec.budget)] if part is None or part[0] == 1 else []
