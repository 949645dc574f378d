"""Ingest: take in the new pictures of the source folders; each is kept, or dropped with a reason.

Reads the folders of `ingest.sources` and their captions.csv or captions.parquet (columns path, caption, licence, source);
writes data/images/<batch>-<nnnnn>.tar, data/images/<batch>.parquet (last: the marker) and data/dropped/ingest/<batch>.parquet.

A file's size and its header's pixels are looked at before anything is decoded. What is kept is turned upright, RGB, at most
`max_side_px`, without metadata, encoded once as JPEG 4:4:4. Exact copies are found by the sha256 of the source's and of the
stored bytes, near-copies by tasks/near_duplicates.py, against the whole corpus. Files are taken in order of source and path,
so neither the file system's order nor the number of threads shows in the tables. A file that an earlier batch has kept or
dropped, with the same bytes, is not looked at again.

Reasons: undecodable, too_small, too_large, duplicate, near_duplicate, licence, not_a_picture.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import sources
from tasks.batch import batch_of, date_of
from tasks.config import IngestConfig, Params
from tasks.errors import ConfigError
from tasks.near_duplicates import hash_hits, perceptual_hash, thumbnail, thumbnail_distance
from tasks.records import StageReport
from tasks.sources import Refused, SourceFile
from tasks.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

REASONS = ("undecodable", "too_small", "duplicate", "near_duplicate", "licence", *sources.REASONS)
FORMATS = ("JPEG", "PNG", "WEBP")
BLOCK_FILES = 256  # files in memory at a time
# What Pillow's decoders raise on bytes that are not what they claim to be.
BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError),
    *(ZeroDivisionError, MemoryError, struct.error, zlib.error),
)


# --- one file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A file that is a good picture, as it will be stored."""

    content: bytes  # JPEG
    width_px: int
    height_px: int
    phash: int
    thumbnail: bytes


@dataclass(frozen=True)
class Refusal:
    """Why a file is not kept."""

    reason: str
    detail: str = ""


def to_rgb(image: Image) -> Image:
    """RGB, 8 bits: transparency over white, palettes resolved, 16 bits scaled down (not clipped), CMYK converted."""
    from PIL import Image as Pillow

    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion clips at 255
        values = np.asarray(image).astype(np.int64)
        return Pillow.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", over.size, (255, 255, 255, 255)), over).convert("RGB")
    return image.convert("RGB")


def read_picture(content: bytes, *, is_named_picture: bool, config: IngestConfig) -> Picture | Refusal:
    """Check a file's header, then decode, turn, shrink and encode it; never raises on any bytes.

    Args:
        content: the file.
        is_named_picture: its name says that it is one: then bytes of no known format are damage, not a stray file.
        config: limits and the encoding.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        image: Image = Pillow.open(io.BytesIO(content), formats=FORMATS)
    except Pillow.DecompressionBombError as error:
        return Refusal("too_large", str(error))
    except BROKEN as error:
        return Refusal("undecodable" if is_named_picture else "not_a_picture", f"no header of {', '.join(FORMATS)} ({type(error).__name__})")
    width, height = image.size
    if width * height > config.max_pixels:
        return Refusal("too_large", f"{width}x{height} px, at most {config.max_pixels} px in all")
    if min(width, height) < config.min_side_px:
        return Refusal("too_small", f"{width}x{height} px, at least {config.min_side_px} px a side")
    try:
        image.seek(0)
        box = (config.max_side_px, config.max_side_px)
        if image.mode in ("RGB", "L") and "transparency" not in image.info:
            image.thumbnail(box, Pillow.Resampling.LANCZOS, reducing_gap=3.0)  # a large JPEG is decoded at a fraction of its size
            image = ImageOps.exif_transpose(image).convert("RGB")
        else:
            image.load()
            image = ImageOps.exif_transpose(image)
            image = to_rgb(image)
            image.thumbnail(box, Pillow.Resampling.LANCZOS)
    except (*BROKEN, Pillow.DecompressionBombError) as error:
        return Refusal("undecodable", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    clean = Pillow.frombytes("RGB", image.size, image.tobytes())  # pixels alone: no EXIF, no profile, no text
    out = io.BytesIO()
    clean.save(out, "JPEG", quality=config.jpeg_quality, subsampling=0)
    return Picture(out.getvalue(), *clean.size, perceptual_hash(clean), thumbnail(clean))


@dataclass(frozen=True)
class Looked:
    """What was found out about one file, on its own."""

    file: SourceFile
    sha256: str
    result: Picture | Refusal


def look_at(file: SourceFile, config: IngestConfig, known_sha256: Iterable[str] = ()) -> Looked:
    """Read one file and make a picture of it. Bytes in `known_sha256` are only hashed: they are a copy of a kept file."""
    try:
        content = file.read(config.max_size_bytes)
    except Refused as refused:
        return Looked(file, file.sha256(), Refusal(refused.reason, refused.detail))
    sha256 = hashlib.sha256(content).hexdigest()
    if config.allowed_licenses and file.license_code not in config.allowed_licenses:
        return Looked(file, sha256, Refusal("licence", file.license_code))
    if sha256 in known_sha256:
        return Looked(file, sha256, Refusal("duplicate"))
    return Looked(file, sha256, read_picture(content, is_named_picture=file.is_named_picture, config=config))


# --- among all files --------------------------------------------------------------------------------------------------


class Corpus:
    """The pictures kept so far, this batch's and all earlier ones': who is a copy of whom."""

    def __init__(self, known: Mapping[str, Sequence[Any]], config: IngestConfig) -> None:
        """`known`: columns image_id, source_sha256, phash (hex) and thumbnail of the earlier batches."""
        self.config = config
        self.by_source = dict(zip(known["source_sha256"], known["image_id"], strict=True))
        self.ids: list[str] = list(known["image_id"])
        self.by_id = set(self.ids)
        self._hashes = np.array([int(h, 16) for h in known["phash"]], np.uint64)
        self._thumbnails: list[bytes] = list(known["thumbnail"])

    def copy_of(self, sha256: str, image_id: str, picture: Picture) -> tuple[str, str] | None:
        """(reason, image_id of the kept picture) when this one is its copy; the earliest such picture."""
        if sha256 in self.by_source:
            return "duplicate", self.by_source[sha256]
        if image_id in self.by_id:
            return "duplicate", image_id
        count = len(self.ids)
        wanted = np.array([picture.phash], np.uint64)
        _, hits = next(hash_hits(wanted, self._hashes[:count], distance_bits=self.config.hash_distance_bits))
        if len(hits):
            others = np.frombuffer(b"".join(self._thumbnails[i] for i in hits), np.uint8).reshape(len(hits), -1)
            near = hits[thumbnail_distance(picture.thumbnail, others) <= self.config.thumbnail_distance]
            if len(near):
                return "near_duplicate", self.ids[near[0]]
        return None

    def add(self, sha256: str, image_id: str, picture: Picture) -> None:
        """A kept picture joins."""
        if len(self.ids) == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros(max(1024, len(self._hashes)), np.uint64)])
        self._hashes[len(self.ids)] = picture.phash
        self._thumbnails.append(picture.thumbnail)
        self.ids.append(image_id)
        self.by_id.add(image_id)
        self.by_source[sha256] = image_id


def looked_in_order(files: Sequence[SourceFile], config: IngestConfig, known_sha256: set[str], threads: int) -> Iterator[Looked]:
    """`look_at` for all files, a few at a time in threads (Pillow works outside Python's lock), in their order."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), BLOCK_FILES):
            yield from pool.map(lambda f: look_at(f, config, known_sha256), files[start : start + BLOCK_FILES])


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


def new_files(files: Sequence[SourceFile], seen: Mapping[str, set[str]], threads: int) -> list[SourceFile]:
    """Files that no earlier batch has seen with these bytes. Only files whose name was seen are hashed.

    Args:
        files: all files of the sources.
        seen: source_uri -> sha256 of the bytes it had in earlier batches.
    """
    known = [f for f in files if f.uri in seen]
    with ThreadPoolExecutor(threads) as pool:
        same = {f.uri for f, digest in zip(known, pool.map(lambda f: f.sha256(), known), strict=True) if digest in seen[f.uri]}
    return [f for f in files if f.uri not in same]


def seen_before(store: Store, batch: str) -> dict[str, set[str]]:
    """source_uri -> sha256s, of all that earlier batches kept or dropped."""
    seen: dict[str, set[str]] = {}
    images = store.read_table("images", ["source_uri", "source_sha256", "batch"]).to_pydict()
    for uri, sha256, of in zip(images["source_uri"], images["source_sha256"], images["batch"], strict=True):
        if of != batch:
            seen.setdefault(uri, set()).add(sha256)
    dropped = store.read_dropped("ingest").to_pydict()
    for uri, detail, of in zip(dropped["key"], dropped["detail"], dropped["batch"], strict=True):
        if of != batch:
            seen.setdefault(uri, set()).add(json.loads(detail).get("sha256", ""))
    return seen


def report_of(store: Store, batch: str) -> StageReport:
    """The batch's report, from its tables alone: the same after a crash as without one."""
    images = store.read_table("images", ["batch", "caption"]).to_pydict()
    kept = [bool(c) for b, c in zip(images["batch"], images["caption"], strict=True) if b == batch]
    reasons = store.read(store.dropped_path("ingest", batch), "dropped").column("reason").to_pylist()
    seen = len(kept) + len(reasons)
    report = StageReport("ingest", read=seen, written=len(kept), new=seen, done=seen, reused=len(images["batch"]) - len(kept))
    for reason in reasons:
        report.drop(reason)
    if seen:
        report.figures["duplicate_share"] = (reasons.count("duplicate") + reasons.count("near_duplicate")) / seen
        report.figures["unreadable_share"] = (reasons.count("undecodable") + reasons.count("too_large")) / seen
    if kept:
        report.figures["caption_share"] = sum(kept) / len(kept)
    return report


def run(params: Params, store: Store) -> StageReport:
    """Take in what is new in the sources."""
    config, batch = params.ingest, batch_of(params)
    path = store.table_path("images", batch)
    if not path.exists():
        names = [s.name for s in config.sources]
        if len(set(names)) != len(names):
            raise ConfigError(f"ingest.sources: names {names}; expected each once, for they make the ids of files")
        threads = min(4, os.cpu_count() or 1)
        listed = [f for source in sorted(config.sources, key=lambda s: s.name) for f in sources.listing(source)]
        taken = new_files(listed, seen_before(store, batch), threads)
        waiting = len(taken)
        if params.open_run.limit is not None:
            taken = taken[: params.open_run.limit]
        log.info("ingest: %d files, %d new, %d taken", len(listed), waiting, len(taken))
        take(taken, params, store, batch, threads)
    return report_of(store, batch)


def take(files: Sequence[SourceFile], params: Params, store: Store, batch: str, threads: int) -> None:
    """Take in these files: write the shards, the dropped rows, then the table."""
    config = params.ingest
    known = store.read_table("images", ["image_id", "source_sha256", "phash", "thumbnail"]).to_pydict()
    corpus = Corpus(known, config)
    shards = ShardWriter(store, batch, config.shard_images)
    rows: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    for looked in looked_in_order(files, config, set(corpus.by_source), threads):
        file, result = looked.file, looked.result
        image_id = hashlib.sha256(result.content).hexdigest() if isinstance(result, Picture) else ""
        refusal = result if isinstance(result, Refusal) else None
        copied = corpus.by_source.get(looked.sha256, "")
        if isinstance(result, Picture) and (found := corpus.copy_of(looked.sha256, image_id, result)):
            refusal, copied = Refusal(found[0]), found[1]
        if refusal is not None:
            detail = {"sha256": looked.sha256, "why": refusal.detail}
            if refusal.reason in ("duplicate", "near_duplicate"):
                detail["copy_of"] = copied
            text = json.dumps(detail, ensure_ascii=False, sort_keys=True)
            dropped.append({"stage": "ingest", "batch": batch, "key": file.uri, "reason": refusal.reason, "detail": text})
            continue
        assert isinstance(result, Picture)
        facts = {
            "image_id": image_id,
            "caption": file.label.caption or "",
            "license": file.license_code,
            "attribution": file.attribution,
            "source_uri": file.uri,
        }
        shard, offset = shards.add(image_id, result.content, facts)
        corpus.add(looked.sha256, image_id, result)
        rows.append(
            {
                "image_id": image_id,
                "source_uri": file.uri,
                "source_sha256": looked.sha256,
                "batch": batch,
                "shard": shard,
                "width_px": result.width_px,
                "height_px": result.height_px,
                "caption": file.label.caption,
                "caption_source": "source" if file.label.caption else None,
                "license_code": file.license_code,
                "attribution": file.attribution,
                "fetched_at": date_of(params),
                "phash": f"{result.phash:016x}",
                "thumbnail": result.thumbnail,
                "offset_bytes": offset,
                "size_bytes": len(result.content),
            }
        )
    shards.close()
    store.write(store.dropped_path("ingest", batch), dropped, "dropped")
    store.write(path := store.table_path("images", batch), rows, "images")  # last: the batch's marker
    log.info("ingest: %d kept, %d dropped, %s", len(rows), len(dropped), path)
