"""Inspect source files in worker processes: decode, normalise, hash; in the order of the sources."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from tasks.config import IngestConfig
from tasks.fingerprints.hash_lists import HashList, read_lists
from tasks.ingest.normalize import NormalizedImage, Refusal, Rules
from tasks.ingest.workers import ImageWorkers
from tasks.sources import Refused, SourceFile
from tasks.store import Store

BLOCK_FILES = 256  # files under way at a time


@dataclass(frozen=True)
class Looked:
    """What was found out about one file, on its own."""

    file: SourceFile
    sha256: str
    result: NormalizedImage | Refusal
    robots: str = ""
    is_lasting: bool = True


def rules_of(config: IngestConfig) -> Rules:
    """What decides how one image is stored."""
    return Rules(
        max_side_px=config.max_side_px,
        min_side_px=config.min_side_px,
        max_pixels=config.max_pixels,
        jpeg_quality=config.jpeg_quality,
        jpeg_subsampling=config.jpeg_subsampling,
        has_grid=config.crop_margin > 0,
        resampler=config.resampler,
    )


def workers_of(config: IngestConfig) -> ImageWorkers:
    """The processes that decode; none is started yet."""
    count = config.workers or os.cpu_count() or 1
    return ImageWorkers(rules_of(config), count=count, memory_mib=config.worker_memory_mib, cpu_s=config.worker_cpu_s)


def look_at(file: SourceFile, config: IngestConfig, workers: ImageWorkers, known_sha256: Iterable[str] = ()) -> Looked:
    """Read one file and make an image of it. Bytes in `known_sha256` are only hashed: they are a copy of a kept file."""
    if config.allowed_licenses and file.license_code not in config.allowed_licenses:
        return Looked(file, file.sha256(), Refusal("licence", file.license_code))
    try:
        content = file.read(config.max_size_bytes)
    except Refused as refused:
        return Looked(file, file.sha256(), Refusal(refused.reason, refused.detail), refused.robots, refused.is_lasting)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 in known_sha256:
        return Looked(file, sha256, Refusal("duplicate"), content.robots)
    return Looked(file, sha256, workers.read(content, is_named_image=file.is_named_image), content.robots)


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


def lists_of(config: IngestConfig, store: Store) -> list[HashList]:
    """Takedown list, blocklists and benchmark hashes, in the order in which they refuse."""
    named = {
        "taken_down": ("ingest.takedown", [config.takedown] if config.takedown else []),
        "blocked": ("ingest.blocklists", config.blocklists),
        "benchmark": ("ingest.benchmark_hashes", config.benchmark_hashes),
    }
    return [
        read_lists(reason, parameter, [store.folder(p) for p in paths])
        for reason, (parameter, paths) in named.items()
        if paths
    ]


def refusal_of(looked: Looked, image_id: str, lists: Sequence[HashList], config: IngestConfig) -> Refusal | None:
    """Why a good image is not wanted: a list names it or what it is a copy of, or it has a flag that drops."""
    image = looked.result
    assert isinstance(image, NormalizedImage)
    for of in lists:
        why = of.find_match(
            (looked.sha256, image_id),
            image.phash,
            image.thumbnail,
            confirmed_bits=config.hash_distance_bits,
            thumbnail_max=config.thumbnail_distance,
            alone_bits=config.blocked_distance_bits,
        )
        if why is not None:
            return Refusal(of.reason, why)
    if flags := [flag for flag in image.flags if flag in config.drop_flags]:
        return Refusal("low_quality", ", ".join(flags))
    return None


def filtered(found: Iterable[Looked], config: IngestConfig) -> Iterator[Looked]:
    """The same files in the same order; images that a classifier of `ingest.filters` refuses are refusals."""
    for name, of in sorted(config.filters.items()):
        from tasks.ingest.filters import ImageFilter

        found = ImageFilter(name, of).apply(
            found, lambda looked: looked.result, lambda looked, refusal: replace(looked, result=refusal)
        )
    yield from found
