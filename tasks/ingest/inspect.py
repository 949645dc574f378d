"""Inspect source files in worker processes: read, hash, decode, normalise (in threads: tasks/ingest/parallel.py)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tasks.config import IngestConfig
from tasks.fingerprints.hash_lists import HashList, read_lists
from tasks.ingest.filters import ImageFilter
from tasks.ingest.rules import NormalizationRules, NormalizedImage, Rejection
from tasks.ingest.workers import ImageWorkers
from tasks.sources.files import FileRejected, SourceFile
from tasks.sources.licences import normalize_license
from tasks.store import Store

BLOCK_FILES = 256  # files under way at a time


@dataclass(frozen=True)
class InspectedFile:
    """One file and what became of it, without regard to other files.

    Attributes:
        file: as its source listed it.
        sha256: of its bytes.
        result: its stored form, or why it is rejected.
        robots: the site's robots state, see tasks.sources.files.Content.
        is_lasting: False for a rejection that a later batch retries.
        is_decoded: whether its bytes were read and given to a decoder.
    """

    file: SourceFile
    sha256: str
    result: NormalizedImage | Rejection
    robots: str = ""
    is_lasting: bool = True
    is_decoded: bool = False


def normalization_rules(config: IngestConfig) -> NormalizationRules:
    """The rules by which one image is stored."""
    return NormalizationRules(
        max_side_px=config.max_side_px,
        min_side_px=config.min_side_px,
        max_pixels=config.max_pixels,
        jpeg_quality=config.jpeg_quality,
        jpeg_subsampling=config.jpeg_subsampling,
        has_grid=config.crop_margin > 0,
        resampler=config.resampler,
        min_stored_side_px=config.min_stored_side_px,
        max_aspect_ratio=config.max_aspect_ratio,
    )


def make_workers(config: IngestConfig) -> ImageWorkers:
    """The pool of decoding processes; none is started yet."""
    count = config.workers or os.cpu_count() or 1
    rules = normalization_rules(config)
    return ImageWorkers(rules, count=count, memory_mib=config.worker_memory_mib, cpu_s=config.worker_cpu_s)


def inspect_file(
    file: SourceFile, config: IngestConfig, workers: ImageWorkers, known_sha256s: Container[str] = ()
) -> InspectedFile:
    """Read one file and normalise it.

    Args:
        file: to be read.
        config: limits and allowed licences.
        workers: which decode it.
        known_sha256s: source bytes of kept images: such a file is a duplicate, and is not decoded.
    """
    allowed = set(map(normalize_license, config.allowed_licenses))
    if allowed and file.license_code not in allowed:
        return InspectedFile(file, file.sha256(), Rejection("licence", file.license_code))
    try:
        content = file.read(config.max_size_bytes)
    except FileRejected as error:
        rejection = Rejection(error.reason, error.detail)
        return InspectedFile(file, file.sha256(), rejection, error.robots, error.is_lasting)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 in known_sha256s:
        return InspectedFile(file, sha256, Rejection("duplicate"), content.robots)
    result = workers.read(content, is_named_image=file.is_named_image)
    return InspectedFile(file, sha256, result, content.robots, is_decoded=True)


def reject_known(inspected: InspectedFile, known_sha256s: Container[str]) -> InspectedFile:
    """The same file, a duplicate where its bytes are those of a kept image; as `inspect_file` says with these sums."""
    if inspected.is_decoded and inspected.sha256 in known_sha256s:
        return replace(inspected, result=Rejection("duplicate"), is_decoded=False)
    return inspected


def read_exclusion_lists(config: IngestConfig, store: Store) -> list[HashList]:
    """Blocklists and benchmark hashes, in the order in which they are applied (the takedown list comes before them).

    Raises:
        ConfigError: a list is unreadable.
    """
    lists = {
        "blocked": ("ingest.blocklists", config.blocklists),
        "benchmark": ("ingest.benchmark_hashes", config.benchmark_hashes),
    }
    return [
        read_lists(reason, parameter, [store.folder(p) for p in paths])
        for reason, (parameter, paths) in lists.items()
        if paths
    ]


def exclusion_reason(
    inspected: InspectedFile, image_id: str, lists: Sequence[HashList], config: IngestConfig
) -> Rejection | None:
    """Why a decoded image is excluded: a list names it or what it is a copy of, or it has a flag of `drop_flags`."""
    image = inspected.result
    assert isinstance(image, NormalizedImage)
    for hash_list in lists:
        match = hash_list.find_match(
            (inspected.sha256, image_id),
            image.phash,
            image.thumbnail,
            confirmed_bits=config.hash_distance_bits,
            thumbnail_max=config.thumbnail_distance,
            alone_bits=config.blocked_distance_bits,
        )
        if match is not None:
            return Rejection(hash_list.reason, match)
    if flags := [flag for flag in image.flags if flag in config.drop_flags]:
        return Rejection("low_quality", ", ".join(flags))
    return None


def apply_filters(inspected: Iterable[InspectedFile], config: IngestConfig) -> Iterator[InspectedFile]:
    """The same files in the same order; images that a classifier of `ingest.filters` rejects become rejections."""
    for name, filter_config in sorted(config.filters.items()):
        image_filter = ImageFilter(name, filter_config)
        inspected = image_filter.apply(inspected, lambda item: item.result, _with_rejection)
    yield from inspected


def _with_rejection(item: InspectedFile, rejection: Rejection) -> InspectedFile:
    return replace(item, result=rejection)
