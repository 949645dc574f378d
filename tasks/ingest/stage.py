"""Ingest: take in the new pictures of the sources; each file is kept, or dropped with a reason.

Reads the sources of `ingest.sources` (tasks/sources/), the takedown ledger, the blocklists and the benchmark hashes; writes data/images/<batch>-<nnnnn>.tar,
data/dropped/ingest/<batch>.parquet and data/images/<batch>.parquet (last: the marker).

A file's bytes are read under a limit, its header's pixels looked at before anything is decoded, and it is decoded in a worker process with limits of
its own (tasks/ingest/workers.py); what is stored, tasks/ingest/normalize.py says. Then, in this order: licence, exact copy, lists, quality flags,
classifiers, near copy (tasks/ingest/dedup.py, against the whole corpus). Files are taken in order of source and path, so neither the file system's order
nor the number of workers shows in the tables. A file that an earlier batch has kept or dropped, with the same bytes, is not looked at again; one that
could not be reached is.

Every file ends as one row: kept + dropped = seen, checked before the table is written. A dropped row keeps the source URI and, as JSON, why, the
sha256, and of copies whose copy. What was found: docs/decisions/0020 and 0021. Reasons, closed: REASONS, in words in tasks/reasons.py.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import os
import sys
import tarfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tasks import sources
from tasks.config import IngestConfig, Params
from tasks.errors import ConfigError, DataError
from tasks.fingerprints.hash_lists import HashList, read_lists
from tasks.ingest.dedup import Corpus
from tasks.ingest.normalize import Picture, Refusal, Rules
from tasks.ingest.workers import PictureWorkers
from tasks.names import batch_of, date_of
from tasks.records import StageReport
from tasks.sources import Refused, SourceFile
from tasks.store import Store
from tasks.store.store import TableWriter

log = logging.getLogger(__name__)

REASONS = (
    *("undecodable", "too_small", "too_costly", "duplicate", "near_duplicate", "licence"),
    *("blocked", "taken_down", "benchmark", "low_quality", "filtered"),
    *sources.REASONS,
)
BLOCK_FILES = 256  # files under way at a time
REMOTE_THREADS = 32  # that wait for a network; hosts have limits of their own (tasks/sources/web/fetcher.py)
LOG_EVERY_S = 60
SHOWN_CHANGES = 10  # of captions that a source has changed, by name


# --- one file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """What was found out about one file, on its own."""

    file: SourceFile
    sha256: str
    result: Picture | Refusal
    robots: str = ""
    is_lasting: bool = True


def rules_of(config: IngestConfig) -> Rules:
    """What decides how one picture is stored."""
    return Rules(
        max_side_px=config.max_side_px,
        min_side_px=config.min_side_px,
        max_pixels=config.max_pixels,
        jpeg_quality=config.jpeg_quality,
        jpeg_subsampling=config.jpeg_subsampling,
        has_grid=config.crop_margin > 0,
        resampler=config.resampler,
    )


def workers_of(config: IngestConfig) -> PictureWorkers:
    """The processes that decode; none is started yet."""
    count = config.workers or os.cpu_count() or 1
    return PictureWorkers(rules_of(config), count=count, memory_mib=config.worker_memory_mib, cpu_s=config.worker_cpu_s)


def look_at(file: SourceFile, config: IngestConfig, workers: PictureWorkers, known_sha256: Iterable[str] = ()) -> Looked:
    """Read one file and make a picture of it. Bytes in `known_sha256` are only hashed: they are a copy of a kept file."""
    if config.allowed_licenses and file.license_code not in config.allowed_licenses:
        return Looked(file, file.sha256(), Refusal("licence", file.license_code))
    try:
        content = file.read(config.max_size_bytes)
    except Refused as refused:
        return Looked(file, file.sha256(), Refusal(refused.reason, refused.detail), refused.robots, refused.is_lasting)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 in known_sha256:
        return Looked(file, sha256, Refusal("duplicate"), content.robots)
    return Looked(file, sha256, workers.read(content, is_named_picture=file.is_named_picture), content.robots)


def in_order(files: Iterable[SourceFile], look: Callable[[SourceFile], Looked], threads: int) -> Iterator[Looked]:
    """`look` for all files, some at a time in threads, in the files' order and in constant memory."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Looked]] = deque()
        try:
            for file in files:
                waiting.append(pool.submit(look, file))
                if len(waiting) >= BLOCK_FILES:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# --- what a picture may be refused for --------------------------------------------------------------------------------


def lists_of(config: IngestConfig, store: Store) -> list[HashList]:
    """Takedown ledger, blocklists and benchmark hashes, in the order in which they refuse."""
    named = {
        "taken_down": ("ingest.takedown", [config.takedown] if config.takedown else []),
        "blocked": ("ingest.blocklists", config.blocklists),
        "benchmark": ("ingest.benchmark_hashes", config.benchmark_hashes),
    }
    return [read_lists(reason, parameter, [store.folder(p) for p in paths]) for reason, (parameter, paths) in named.items() if paths]


def refusal_of(looked: Looked, image_id: str, lists: Sequence[HashList], config: IngestConfig) -> Refusal | None:
    """Why a good picture is not wanted: a list names it or what it is a copy of, or it has a flag that drops."""
    picture = looked.result
    assert isinstance(picture, Picture)
    for of in lists:
        why = of.names(
            (looked.sha256, image_id),
            picture.phash,
            picture.thumbnail,
            confirmed_bits=config.hash_distance_bits,
            thumbnail_max=config.thumbnail_distance,
            alone_bits=config.blocked_distance_bits,
        )
        if why is not None:
            return Refusal(of.reason, why)
    if flags := [flag for flag in picture.flags if flag in config.drop_flags]:
        return Refusal("low_quality", ", ".join(flags))
    return None


def filtered(found: Iterable[Looked], config: IngestConfig) -> Iterator[Looked]:
    """The same files in the same order; pictures that a classifier of `ingest.filters` refuses are refusals."""
    for name, of in sorted(config.filters.items()):
        from tasks.ingest.filters import ImageFilter

        found = ImageFilter(name, of).apply(found, lambda looked: looked.result, lambda looked, refusal: replace(looked, result=refusal))
    yield from found


# --- shards -----------------------------------------------------------------------------------------------------------


class ShardWriter:
    """WebDataset tars `<batch>-<nnnnn>.tar` of at most so many pictures; headers carry neither clock nor user."""

    def __init__(self, store: Store, batch: str, shard_images: int) -> None:
        self.store, self.batch, self.shard_images = store, batch, shard_images
        self._number, self._count = 0, 0
        self._tar: tarfile.TarFile | None = None
        self._aside = Path()

    def _name(self) -> str:
        return f"{self.batch}-{self._number:05d}.tar"

    def add(self, image_id: str, content: bytes, facts: dict[str, str]) -> tuple[str, int]:
        """Append a picture and its facts; returns (shard, offset of the picture's bytes)."""
        if self._count == self.shard_images:
            self.close()
        if self._tar is None:
            folder = self.store.folder("data", "images")
            folder.mkdir(parents=True, exist_ok=True)
            self._aside = folder / f".{self._name()}.tmp"
            self._tar = tarfile.open(self._aside, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by close()
        offset = self._member(f"{image_id}.jpg", content)
        self._member(f"{image_id}.json", json.dumps(facts, ensure_ascii=False, sort_keys=True).encode())
        self._count += 1
        return self._name(), offset

    def _member(self, name: str, content: bytes) -> int:
        assert self._tar is not None
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o644
        self._tar.addfile(entry, io.BytesIO(content))
        return int(self._tar.offset) - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    def close(self) -> None:
        """Finish the shard: flushed, then renamed."""
        if self._tar is None:
            return
        self._tar.close()
        with open(self._aside, "rb") as f:
            os.fsync(f.fileno())
        os.replace(self._aside, self.store.folder("data", "images", self._name()))
        self._tar, self._count, self._number = None, 0, self._number + 1


# --- the stage --------------------------------------------------------------------------------------------------------


def short_hash(text: str) -> int:
    """63 bits of a text, for sets of a million."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


@dataclass
class Seen:
    """What earlier batches have looked at; names, fingerprints and captions as `short_hash`, so that a million take some 200 MB.

    Attributes:
        sha256s: source_uri -> of the bytes that it had, of files without a fingerprint.
        fingerprints: of the others.
        captions: source_uri -> caption that a kept picture was published with ('' where the source said nothing).
        changed: files seen again whose source tells another caption now: uri -> that caption; the first few.
        changed_count: how many there were.
    """

    sha256s: dict[str, set[str]] = field(default_factory=dict)
    fingerprints: set[int] = field(default_factory=set)
    captions: dict[int, int] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    changed_count: int = 0

    @classmethod
    def before(cls, store: Store, batch: str) -> Seen:
        """All that earlier batches kept or dropped, but what a later batch is to try again."""
        seen = cls()
        images = store.read_table("images", ["source_uri", "source_sha256", "batch", "source_fingerprint", "caption", "caption_source"])
        for block in images.to_batches(max_chunksize=10_000):
            for uri, sha256, of, fingerprint, caption, caption_source in zip(*block.to_pydict().values(), strict=True):
                if of != batch:
                    seen.add(uri, sha256, fingerprint or "")
                    seen.captions[short_hash(uri)] = short_hash(caption or "" if caption_source == "source" else "")
        for block in store.read_dropped("ingest").select(["key", "detail", "batch"]).to_batches(max_chunksize=10_000):
            for uri, detail, of in zip(*block.to_pydict().values(), strict=True):
                if of != batch and (found := json.loads(detail)).get("is_lasting", True):
                    seen.add(uri, found.get("sha256", ""), found.get("fingerprint", ""))
        return seen

    def add(self, uri: str, sha256: str, fingerprint: str) -> None:
        """One row."""
        if fingerprint:
            self.fingerprints.add(short_hash(fingerprint))
        else:
            self.sha256s.setdefault(uri, set()).add(sha256)

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a row of an earlier batch has this fingerprint."""
        return short_hash(fingerprint) in self.fingerprints

    def has(self, file: SourceFile) -> bool:
        """Whether the file was seen with the bytes that it has now. Only a file whose name was seen is hashed."""
        if file.fingerprint:
            return self.has_fingerprint(file.fingerprint)
        return file.uri in self.sha256s and file.sha256() in self.sha256s[file.uri]

    def note_caption(self, file: SourceFile) -> None:
        """Count a file that is seen again, the same but for a caption that its source did not tell, or told otherwise, when it was published."""
        if file.label.caption and self.captions.get(short_hash(file.uri), known := short_hash(file.label.caption)) != known:
            self.changed_count += 1
            if len(self.changed) < SHOWN_CHANGES:
                self.changed[file.uri] = file.label.caption


def new_files(listed: Iterable[SourceFile], seen: Seen, threads: int) -> Iterator[SourceFile]:
    """Files that no earlier batch has seen with these bytes, in their order and in constant memory."""
    with ThreadPoolExecutor(threads) as pool:
        listing = iter(listed)
        while block := list(itertools.islice(listing, BLOCK_FILES)):
            asked = [seen.has(file) if file.fingerprint or file.uri not in seen.sha256s else pool.submit(seen.has, file) for file in block]
            for file, answer in zip(block, asked, strict=True):
                if answer.result() if isinstance(answer, Future) else answer:
                    seen.note_caption(file)
                else:
                    yield file


def changes_path(store: Store, batch: str) -> Path:
    """Where a run keeps what it noticed about captions: of this run alone, never versioned."""
    return store.folder(".run", "ingest", f"{batch}.json")


def report_of(store: Store, batch: str) -> StageReport:
    """The batch's report, from what lies on the disk alone: the same after a crash as without one."""
    flags = ("is_blurry", "is_near_empty", "has_extreme_ratio", "is_text_heavy")
    images = store.read_table("images", ["caption", *flags], batch)
    new = images.num_rows
    reasons = Counter(store.read(store.dropped_path("ingest", batch), "dropped", ["reason"]).column("reason").to_pylist())
    seen = new + reasons.total()
    report = StageReport("ingest", read=seen, written=new, new=seen, done=seen, reused=store.read_table("images", ["batch"]).num_rows - new)
    for reason, count in reasons.items():
        report.drop(reason, count)
    if seen:
        report.figures["duplicate_share"] = (reasons["duplicate"] + reasons["near_duplicate"]) / seen
        report.figures["unreadable_share"] = sum(reasons[r] for r in ("undecodable", "too_large", "too_costly")) / seen
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
        f"{count} pictures of earlier batches have another caption in their source now: {names}{' ...' if count > len(first) else ''}. "
        "They keep the one that they were published with: vectors, pairs and texts were made from it. A new dataset takes the new ones"
    )


def run(params: Params, store: Store) -> StageReport:
    """Take in what is new in the sources.

    Raises:
        ConfigError: a source that is not there, or two of one name; a list that cannot be read.
        DataError: a source's table that cannot be read.
        TransientError: a store that fails.
    """
    config, batch = params.ingest, batch_of(params)
    if not store.table_path("images", batch).exists():
        names = [s.name for s in config.sources]
        if len(set(names)) != len(names):
            raise ConfigError(f"ingest.sources: names {names}; expected each once, for they make the ids of files")
        seen = Seen.before(store, batch)
        listed = (f for s in sorted(config.sources, key=lambda s: s.name) for f in sources.listing(s, seen.has_fingerprint))
        taken = new_files(listed, seen, min(4, os.cpu_count() or 1))
        take(itertools.islice(taken, params.open_run.limit), params, store, batch, seen)
    return report_of(store, batch)


def tell(text: str, *, is_last: bool) -> None:
    """One line that replaces itself in a terminal."""
    print(f"\r\x1b[K{text}", end="\n" if is_last else "", file=sys.stderr, flush=True)


class Progress:
    """Counts while it runs: a line that moves in a terminal, one a minute in a log."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.kept = self.seen = 0
        self._start = self._told = time.monotonic()

    def count(self, reason: str | None) -> None:
        """One file ended: kept, or dropped for this."""
        self.seen += 1
        self.kept += reason is None
        if reason is not None:
            self.reasons[reason] += 1
        now, is_terminal = time.monotonic(), sys.stderr.isatty()
        if now - self._told >= (0.2 if is_terminal else LOG_EVERY_S):
            self._told = now
            text = f"{self}, {60 * self.seen / (now - self._start):.0f} a minute"
            tell(text, is_last=False) if is_terminal else log.info("%s", text)

    def __str__(self) -> str:
        dropped = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons.items())) or "none"
        return f"ingest: {self.seen} seen = {self.kept} kept + {sum(self.reasons.values())} dropped ({dropped})"


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
    """The row of a kept picture."""
    file, picture = looked.file, looked.result
    assert isinstance(picture, Picture)
    return {
        "image_id": image_id,
        "source_uri": file.uri,
        "source_sha256": looked.sha256,
        "batch": batch,
        "shard": shard,
        "width_px": picture.width_px,
        "height_px": picture.height_px,
        "caption": file.label.caption,
        "caption_source": "source" if file.label.caption else None,
        "license_code": file.license_code,
        "attribution": file.attribution,
        "fetched_at": date,
        "phash": f"{picture.phash:016x}",
        "thumbnail": picture.thumbnail,
        "offset_bytes": offset,
        "size_bytes": len(picture.content),
        "source_fingerprint": file.fingerprint,
        "robots": looked.robots,
        "sharpness": picture.sharpness,
        "is_blurry": "blurry" in picture.flags,
        "is_near_empty": "near_empty" in picture.flags,
        "has_extreme_ratio": "extreme_ratio" in picture.flags,
        "is_text_heavy": "text_heavy" in picture.flags,
    }


def take(files: Iterable[SourceFile], params: Params, store: Store, batch: str, seen: Seen | None = None) -> None:
    """Take in these files: write the shards, the dropped rows, then the table. Rows go to the disk as they come: a million of them take no memory.

    Raises:
        DataError: kept and dropped rows are not as many as the files (a bug; nothing is written).
    """
    config, date, seen = params.ingest, date_of(params), seen or Seen()
    lists = lists_of(config, store)
    known = store.read_table("images", ["image_id", "source_sha256", "phash", "thumbnail"]).to_pydict()
    corpus = Corpus(known, hash_distance_bits=config.hash_distance_bits, thumbnail_max=config.thumbnail_distance, crop_margin=config.crop_margin)
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
            for looked in filtered(in_order(counted(), lambda f: look_at(f, config, workers, known_sha256), threads), config):
                result = looked.result
                image_id = hashlib.sha256(result.content).hexdigest() if isinstance(result, Picture) else ""
                refusal = result if isinstance(result, Refusal) else refusal_of(looked, image_id, lists, config)
                copied = corpus.by_source.get(looked.sha256, "") if refusal and refusal.reason == "duplicate" else ""
                also: tuple[str, ...] = ()
                if refusal is None and isinstance(result, Picture) and (found := corpus.copy_of(looked.sha256, image_id, result)):
                    refusal, copied, also = Refusal(found.reason), found.image_id, found.also
                progress.count(refusal.reason if refusal else None)
                if refusal is not None:
                    if refusal.reason == "duplicate":
                        seen.note_caption(looked.file)
                    dropped.add(dropped_row(looked, batch, refusal, copied, also))
                    continue
                assert isinstance(result, Picture)
                shard, offset = shards.add(image_id, result.content, facts_of(looked.file, image_id))
                corpus.add(looked.sha256, image_id, result)
                held[shard] += 1
                rows.add(image_row(looked, image_id, batch, date, shard, offset))
        if rows.count + dropped.count != read:
            raise DataError(f"ingest: {read} files read, {rows.count} kept and {dropped.count} dropped; expected every file as one row")
        shards.close()
        if seen.changed_count:
            store.write_bytes(changes_path(store, batch), json.dumps({"count": seen.changed_count, "first": seen.changed}).encode())
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
    """What stands beside the picture in its tar."""
    return {
        "image_id": image_id,
        "caption": file.label.caption or "",
        "license": file.license_code,
        "attribution": file.attribution,
        "source_uri": file.uri,
    }
