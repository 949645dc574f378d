"""Ingest: take in the new images of the sources; each file is kept, or dropped with a reason.

Reads the sources of `ingest.sources` (tasks/sources/), the takedown list, the blocklists and the benchmark hashes;
writes data/images/<batch>-<nnnnn>.tar, data/dropped/ingest/<batch>.parquet and data/images/<batch>.parquet (last: the
marker).

A file's bytes are read under a limit, its header's pixels looked at before anything is decoded, and it is decoded in a
worker process with limits of its own (tasks/ingest/workers.py); what is stored, tasks/ingest/normalize.py says. Then,
in this order: licence, exact copy, lists, quality flags, classifiers, near copy (tasks/ingest/dedup.py, against the
whole corpus). Files are taken in order of source and path, so neither the file system's order
nor the number of workers shows in the tables. A file that an earlier batch has kept or dropped, with the same bytes, is
not looked at again; one that could not be reached is.

Every file ends as one row: kept + dropped = seen, checked before the table is written. A dropped row keeps the source
URI and, as JSON, why, the sha256, and of copies whose copy. What was found: docs/decisions/0020 and 0021. Reasons,
closed: REASONS, in words in tasks/reasons.py.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks import sources
from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.ingest.dedup import Corpus
from tasks.ingest.inspect import Looked, filtered, in_order, lists_of, look_at, refusal_of, workers_of
from tasks.ingest.normalize import NormalizedImage, Refusal
from tasks.ingest.progress import Progress, tell
from tasks.ingest.seen import Seen, new_files
from tasks.ingest.shards import ShardWriter
from tasks.names import batch_name, run_date
from tasks.reasons import COPY_REASONS, UNREADABLE_REASONS
from tasks.records import StageReport
from tasks.sources import SourceFile
from tasks.store import Store
from tasks.store.tables import TableWriter

log = logging.getLogger(__name__)

REASONS = (
    *("undecodable", "too_small", "too_costly", "duplicate", "near_duplicate", "licence"),
    *("blocked", "taken_down", "benchmark", "low_quality", "filtered"),
    *sources.REASONS,
)
REMOTE_THREADS = 32  # that wait for a network; hosts have limits of their own (tasks/sources/web/fetcher.py)


# --- one file ---------------------------------------------------------------------------------------------------------


# --- what an image may be refused for --------------------------------------------------------------------------------


# --- shards -----------------------------------------------------------------------------------------------------------


# --- the stage --------------------------------------------------------------------------------------------------------


def changes_path(store: Store, batch: str) -> Path:
    """Where a run keeps what it noticed about captions: of this run alone, never versioned."""
    return store.folder(".run", "ingest", f"{batch}.json")


def report_of(store: Store, batch: str) -> StageReport:
    """The batch's report, from what lies on the disk alone: the same after a crash as without one."""
    flags = ("is_blurry", "is_near_empty", "has_extreme_ratio", "is_text_heavy")
    images = store.read_table("images", ["caption", *flags], batch)
    new = images.num_rows
    reasons = Counter(
        store.read(store.dropped_path("ingest", batch), "dropped", ["reason"]).column("reason").to_pylist()
    )
    seen = new + reasons.total()
    report = StageReport(
        "ingest",
        read=seen,
        written=new,
        new=seen,
        done=seen,
        reused=store.read_table("images", ["batch"]).num_rows - new,
    )
    for reason, count in reasons.items():
        report.drop(reason, count)
    if seen:
        report.figures["duplicate_share"] = sum(reasons[r] for r in COPY_REASONS) / seen
        report.figures["unreadable_share"] = sum(reasons[r] for r in UNREADABLE_REASONS) / seen
    if new:
        report.figures["caption_share"] = sum(map(bool, images.column("caption").to_pylist())) / new
    for column in flags:
        if count := sum(map(bool, images.column(column).to_pylist())):
            report.figures[f"{column}_share"] = count / new
    if (path := changes_path(store, batch)).exists():
        changed = json.loads(path.read_text())
        report.figures["captions_changed"] = float(changed["count"])
        report.notes.append(changed_captions_text(changed["count"], changed["first"]))
    return report


def changed_captions_text(count: int, first: dict[str, str]) -> str:
    """What is said about captions that their source has changed."""
    names = ", ".join(f"{uri} ('{caption[:60]}')" for uri, caption in first.items())
    return (
        f"{count} images of earlier batches have another caption in their source now: {names}{' ...' if count > len(first) else ''}. "
        "They keep the one that they were published with: vectors, pairs and texts were made from it. A new dataset takes the new ones"
    )


def run(params: Params, store: Store) -> StageReport:
    """Take in what is new in the sources.

    Raises:
        ConfigError: a source that is not there, or two of one name; a list that cannot be read.
        DataError: a source's table that cannot be read.
        TransientError: a store that fails.
    """
    config, batch = params.ingest, batch_name(params)
    if not store.table_path("images", batch).exists():
        names = [s.name for s in config.sources]
        if len(set(names)) != len(names):
            raise ConfigError(f"ingest.sources: names {names}; expected each once, for they make the ids of files")
        seen = Seen.before(store, batch)
        listed = (
            f for s in sorted(config.sources, key=lambda s: s.name) for f in sources.listing(s, seen.has_fingerprint)
        )
        taken = new_files(listed, seen, min(4, os.cpu_count() or 1))
        take(itertools.islice(taken, params.open_run.limit), params, store, batch, seen)
    return report_of(store, batch)


def dropped_row(looked: Looked, batch: str, refusal: Refusal, copy_of: str, also: Sequence[str]) -> dict[str, Any]:
    """The row of a file that is not kept; `detail` is JSON."""
    detail: dict[str, Any] = {"sha256": looked.sha256, "why": refusal.detail}
    optional = {"copy_of": copy_of, "also": list(also), "fingerprint": looked.file.fingerprint, "robots": looked.robots}
    detail |= {k: v for k, v in optional.items() if v}
    if not looked.is_lasting:
        detail["is_lasting"] = False
    text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
    return {"stage": "ingest", "batch": batch, "key": looked.file.uri, "reason": refusal.reason, "detail": text}


def image_row(looked: Looked, image_id: str, batch: str, date: str, shard: str, offset: int) -> dict[str, Any]:
    """The row of a kept image."""
    file, image = looked.file, looked.result
    assert isinstance(image, NormalizedImage)
    return {
        "image_id": image_id,
        "source_uri": file.uri,
        "source_sha256": looked.sha256,
        "batch": batch,
        "shard": shard,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "caption": file.label.caption,
        "caption_source": "source" if file.label.caption else None,
        "license_code": file.license_code,
        "attribution": file.attribution,
        "fetched_at": date,
        "phash": f"{image.phash:016x}",
        "thumbnail": image.thumbnail,
        "offset_bytes": offset,
        "size_bytes": len(image.content),
        "source_fingerprint": file.fingerprint,
        "robots": looked.robots,
        "sharpness": image.sharpness,
        "is_blurry": "blurry" in image.flags,
        "is_near_empty": "near_empty" in image.flags,
        "has_extreme_ratio": "extreme_ratio" in image.flags,
        "is_text_heavy": "text_heavy" in image.flags,
    }


def take(files: Iterable[SourceFile], params: Params, store: Store, batch: str, seen: Seen | None = None) -> None:
    """Take in these files: write the shards, the dropped rows, then the table. Rows go to the disk as they come: a
    million of them take no memory.

    Raises:
        DataError: kept and dropped rows are not as many as the files (a bug; nothing is written).
    """
    config, date, seen = params.ingest, run_date(params), seen or Seen()
    lists = lists_of(config, store)
    known = store.read_table("images", ["image_id", "source_sha256", "phash", "thumbnail"]).to_pydict()
    corpus = Corpus(
        known,
        hash_distance_bits=config.hash_distance_bits,
        thumbnail_max=config.thumbnail_distance,
        crop_margin=config.crop_margin,
    )
    del known
    shards, progress = ShardWriter(store, batch, config.shard_images), Progress()
    rows = TableWriter(path := store.table_path("images", batch), "images")
    dropped = TableWriter(store.dropped_path("ingest", batch), "dropped")
    held: Counter[str] = Counter()
    is_remote = any("://" in s.path for s in config.sources)
    threads = max(REMOTE_THREADS if is_remote else 1, config.workers or os.cpu_count() or 1)
    read = 0

    def counted() -> Iterator[SourceFile]:
        nonlocal read
        for file in files:
            read += 1
            yield file

    try:
        with workers_of(config) as workers:
            known_sha256 = set(corpus.by_source)
            for looked in filtered(
                in_order(counted(), lambda f: look_at(f, config, workers, known_sha256), threads), config
            ):
                result = looked.result
                image_id = hashlib.sha256(result.content).hexdigest() if isinstance(result, NormalizedImage) else ""
                refusal = result if isinstance(result, Refusal) else refusal_of(looked, image_id, lists, config)
                copied = corpus.by_source.get(looked.sha256, "") if refusal and refusal.reason == "duplicate" else ""
                also: tuple[str, ...] = ()
                if (
                    refusal is None
                    and isinstance(result, NormalizedImage)
                    and (found := corpus.copy_of(looked.sha256, image_id, result))
                ):
                    refusal, copied, also = Refusal(found.reason), found.image_id, found.also
                progress.count(refusal.reason if refusal else None)
                if refusal is not None:
                    if refusal.reason == "duplicate":
                        seen.note_caption(looked.file)
                    dropped.add(dropped_row(looked, batch, refusal, copied, also))
                    continue
                assert isinstance(result, NormalizedImage)
                shard, offset = shards.add(image_id, result.content, facts_of(looked.file, image_id))
                corpus.add(looked.sha256, image_id, result)
                held[shard] += 1
                rows.add(image_row(looked, image_id, batch, date, shard, offset))
        if rows.count + dropped.count != read:
            raise DataError(
                f"ingest: {read} files read, {rows.count} kept and {dropped.count} dropped; expected every file as one row"
            )
        shards.close()
        if seen.changed_count:
            store.write_bytes(
                changes_path(store, batch), json.dumps({"count": seen.changed_count, "first": seen.changed}).encode()
            )
            log.warning("ingest: %s", changed_captions_text(seen.changed_count, seen.changed))
        dropped.close()
        rows.close()  # last: the batch's marker
    except BaseException:
        dropped.discard()
        rows.discard()
        raise
    if sys.stderr.isatty():
        tell(str(progress), is_last=True)
    log.info("%s, %s", progress, path)
    for name, count in held.items():
        log.info("ingest: %s holds %d", name, count)


def facts_of(file: SourceFile, image_id: str) -> dict[str, str]:
    """What stands beside the image in its tar."""
    return {
        "image_id": image_id,
        "caption": file.label.caption or "",
        "license": file.license_code,
        "attribution": file.attribution,
        "source_uri": file.uri,
    }
