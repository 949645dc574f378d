"""Embed: one encoder's unit vectors for this batch's images, or for their captions.

Reads data/images, data/captions; writes data/embeddings/<encoder>/<shard>.npy and .parquet (the marker), and
data/dropped/embed-<encoder>/<batch>-<nnnnn>.parquet. Source: MegaPairs, arXiv:2412.14475, section 3.1 (three similarity
models: image semantics, image pattern, caption).

Works shard by shard: a finished one is skipped, parts share them. Within a shard batches follow the table's order, so
equal shards give equal bytes. The next batches' images are decoded by `embed.readers` threads while the model works on
this one; with `embed.preprocess: fast` they are prepared there, too. The revision that is stored says how vectors were
made where that is not the default (`+fast`, `+int8`, `+bfloat16`): another way is another index. Dropped: no_caption
(text encoder), bad_vector (zero, not finite, or not as wide as the rest).
Vectors are float16.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.fingerprints.takedown import taken_down
from tasks.knn.unit_rows import are_unit_rows
from tasks.models.encoders.base import Encoder
from tasks.models.encoders.load import load_encoder
from tasks.names import batch_name
from tasks.records import StageReport
from tasks.store import Store

log = logging.getLogger(__name__)


def encode_in_batches(
    items: Sequence[Any],
    encode: Callable[[Sequence[Any]], np.ndarray],
    batch: int,
    width: int | None = None,
    readers: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of all items, a fixed batch at a time; the next batches' items are read while this one is encoded.

    Args:
        items: (n) what `encode` takes; other threads slice it.
        encode: items -> (b, d) float32, unit rows.
        batch: items in one call, a count.
        width: d of the vectors that are stored already; the first batch's when None.
        readers: threads, each with a batch ahead: so many are in memory beside the one that is encoded.
    Returns:
        vectors (n, d) float16 and which of them are good, (n,) bool: of unit length, and as wide as the others.
    """
    starts = range(0, len(items), batch)
    if not starts:
        return np.zeros((0, width or 1), np.float16), np.zeros(0, bool)
    blocks, good = [], []
    with ThreadPoolExecutor(readers) as ahead:
        coming = deque(ahead.submit(items.__getitem__, slice(start, start + batch)) for start in starts[:readers])
        for start in starts:
            here = coming.popleft().result()
            if (later := start + readers * batch) < len(items):
                coming.append(ahead.submit(items.__getitem__, slice(later, later + batch)))
            block = encode(here).astype(np.float16)
            width = block.shape[1] if width is None else width
            is_good = are_unit_rows(block) if block.shape[1] == width else np.zeros(len(block), bool)
            blocks.append(block if block.shape[1] == width else np.zeros((len(block), width), np.float16))
            good.append(is_good)
    return np.concatenate(blocks), np.concatenate(good)


def shards_of(images: Mapping[str, Sequence[Any]], batch: str) -> dict[str, list[str]]:
    """Shard file name -> image ids in the table's order, this batch's shards by name."""
    shards: dict[str, list[str]] = {}
    for image_id, shard, of in zip(images["image_id"], images["shard"], images["batch"], strict=True):
        if of == batch:
            shards.setdefault(shard, []).append(image_id)
    return dict(sorted(shards.items()))


def _dropped(encoder: str, batch: str, ids: Sequence[str], reason: str) -> list[dict[str, str]]:
    return [{"stage": "embed", "batch": batch, "key": i, "reason": reason, "detail": encoder} for i in ids]


class _Images(Sequence[Any]):
    """A shard's images, opened a slice at a time, so that two batches are in memory: one encoded, one read ahead."""

    def __init__(self, ids: Sequence[str], opened: Callable[[str], Any]) -> None:
        """`opened`: image id -> what the encoder takes."""
        self.ids, self.opened = ids, opened

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return [self.opened(i) for i in self.ids[index]]


def run(params: Params, store: Store, encoder: str, part: tuple[int, int] | None = None) -> StageReport:
    """Embed this batch's shards with one encoder, or the i-th of n parts of them.

    Raises:
        ConfigError: no such encoder in params.embed.encoders.
        DataError: earlier batches hold vectors of another revision of the model.
    """
    config, batch = params.embed, batch_name(params)
    spec = config.encoders.get(encoder)  # type: ignore[call-overload]
    if spec is None:
        raise ConfigError(f"embed: no encoder '{encoder}' in embed.encoders; known: {sorted(config.encoders)}")
    images = store.read_table("images", ["image_id", "shard", "batch"]).to_pydict()
    shards = shards_of(images, batch)
    if part is None or part[0] == 1:
        withdraw_vectors(store, encoder, taken_down(params, store))
    captions = store.captions() if spec.kind == "text" else {}
    report = StageReport("embed", reused=0 if part and part[0] > 1 else sum(b != batch for b in images["batch"]))
    model: Encoder | None = None
    revision, is_fast = "", False
    width: int | None = None
    store.folder("data", "embeddings", encoder).mkdir(parents=True, exist_ok=True)
    store.folder("data", "dropped", f"embed-{encoder}").mkdir(parents=True, exist_ok=True)
    for number, (shard, ids) in enumerate(shards.items()):
        if part is not None and number % part[1] != part[0] - 1:
            continue
        stem = Path(shard).stem
        marker, dropped_path = (
            store.folder("data", "embeddings", encoder, f"{stem}.parquet"),
            store.dropped_path(f"embed-{encoder}", batch, number),
        )
        usable = [i for i in ids if i in captions] if spec.kind == "text" else ids
        report.new += len(usable)
        if not marker.exists():
            if model is None:
                model = load_encoder(spec, config.device, params.open_run.threads)
                is_fast = (
                    spec.kind == "image"
                    and config.preprocess == "fast"
                    and getattr(model, "preparation", None) is not None
                )
                revision = model.revision + ("+fast" if is_fast else "")
                width = _check_revision(store, encoder, revision)
            if spec.kind == "text":
                vectors, is_good = encode_in_batches(
                    [captions[i] for i in usable], model.encode_texts, config.batch_images, width
                )
            elif is_fast:
                prepare = model.preparation.prepare  # type: ignore[attr-defined]
                prepared = _Images(usable, lambda i, prepare=prepare: prepare(store.read_image_bytes(i)))  # type: ignore[misc]
                vectors, is_good = encode_in_batches(
                    prepared,
                    model.encode_prepared,  # type: ignore[attr-defined]
                    config.batch_images,
                    width,
                    config.readers,
                )
            else:
                vectors, is_good = encode_in_batches(
                    _Images(usable, store.read_image), model.encode_images, config.batch_images, width, config.readers
                )
            kept = [i for i, good in zip(usable, is_good, strict=True) if good]
            rows = _dropped(encoder, batch, sorted(set(ids) - set(usable), key=ids.index), "no_caption")
            rows += _dropped(
                encoder, batch, [i for i, good in zip(usable, is_good, strict=True) if not good], "bad_vector"
            )
            store.write(dropped_path, rows, "dropped")
            store.write_embeddings(encoder, shard, revision, kept, vectors[is_good])  # last: the shard's marker
            report.written += len(kept)
            log.info("embed %s: %s, %d of %d", encoder, stem, len(kept), len(ids))
        report.read += len(ids)
        report.done += len(usable)
        for reason in store.read(dropped_path, "dropped").column("reason").to_pylist():
            report.drop(reason)
    return report


def _check_revision(store: Store, encoder: str, revision: str) -> int | None:
    """One index holds vectors of one model, as wide as each other. Returns their width; None when there are none yet."""
    import pyarrow.parquet as pq

    width: int | None = None
    for stem in store.embedded_shards(encoder):
        path = store.folder("data", "embeddings", encoder, f"{stem}.parquet")
        metadata = pq.read_schema(path).metadata or {}
        before = metadata.get(b"revision", b"").decode()
        if before and before != revision:
            raise DataError(
                f"embed {encoder}: {stem} was embedded with revision {before}, the model is now {revision}; pin the old one, "
                f"or remove data/embeddings/{encoder} and data/neighbours/{encoder} and embed all batches again"
            )
        vectors = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        if len(vectors):
            width = int(vectors.shape[1])
    return width


def withdraw_vectors(store: Store, encoder: str, ids: Iterable[str]) -> int:
    """Write an encoder's shards anew without the vectors of the ids; returns their count. A shard cut off between its
    two files is finished.
    """
    import numpy as np
    import pyarrow.parquet as pq

    count, gone = 0, set(ids)
    for stem in store.embedded_shards(encoder):
        folder = store.folder("data", "embeddings", encoder)
        table = pq.read_table(folder / f"{stem}.parquet")
        names = table.column("image_id").to_pylist()
        kept = [n for n, i in enumerate(names) if i not in gone]
        if len(kept) == len(names):
            continue
        vectors = np.load(folder / f"{stem}.npy", mmap_mode="r", allow_pickle=False)
        # the second time round its vectors are gone already
        vectors = vectors if len(vectors) == len(kept) else vectors[kept]
        revision = (table.schema.metadata or {}).get(b"revision", b"").decode()
        store.write_embeddings(encoder, f"{stem}.tar", revision, [names[n] for n in kept], vectors)
        count += len(names) - len(kept)
    return count
