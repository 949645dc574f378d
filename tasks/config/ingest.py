"""Parameters of stage ingest: what is taken in, how it is stored, what is refused."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.config.section import PART, REVISION, Section
from tasks.config.sources import SourceConfig


class FilterConfig(Section):
    """One classifier that refuses images, an entry of `ingest.filters`."""

    model: str = Field(
        description="Image classifier: a Hugging Face name or a folder that AutoModelForImageClassification loads."
    )
    revision: str | None = Field(None, description=REVISION)
    labels: tuple[str, ...] = Field(
        min_length=1, description="Labels of the classifier that mean an unwanted image. Their probabilities are added."
    )
    threshold: float = Field(
        0.5, ge=0, le=1, description="An image is dropped as `filtered` when that sum is at least this probability."
    )
    batch_images: int = Field(64, ge=1, description="Images in one call of the classifier, a count.")


class IngestConfig(Section):
    """Section `ingest`."""

    sources: tuple[SourceConfig, ...] = Field(description="Where new images come from.")
    max_side_px: int = Field(
        ge=32, description="Longer side of a stored image, pixels. Larger images are shrunk to it, smaller ones kept."
    )
    min_side_px: int = Field(
        ge=1, description="Images whose shorter side is below this are dropped as `too_small`, pixels."
    )
    min_stored_side_px: int = Field(
        8,
        ge=4,
        description="Images whose shorter side would be stored with less are dropped as `extreme_ratio`, pixels. Below "
        "4 pixels processors mistake rows for channels.",
    )
    max_aspect_ratio: float = Field(
        100.0,
        ge=1,
        le=200,
        description="Images whose longer side is more than this many times their shorter one are dropped as "
        "`extreme_ratio`. Qwen-VL's processors refuse more than 200.",
    )
    max_pixels: int = Field(
        ge=1,
        description="Images whose header states more pixels (width times height) are dropped as `too_large` before "
        "anything is decoded, pixels.",
    )
    max_size_bytes: int = Field(ge=1, description="Files larger than this are dropped as `too_large`, bytes.")
    jpeg_quality: int = Field(ge=1, le=100, description="JPEG quality of the stored images, 1 to 100.")
    jpeg_subsampling: Literal["4:4:4", "4:2:2", "4:2:0"] = Field(
        "4:4:4",
        description="Chroma subsampling of the stored JPEGs. 4:2:0 makes files about a third smaller and faster.",
    )
    hash_distance_bits: int = Field(
        ge=0,
        le=64,
        description="Two images whose perceptual hashes differ by at most this Hamming distance are candidates for "
        "near-duplicates, bits (0 to 64). `thumbnail_distance` then decides.",
    )
    thumbnail_distance: float = Field(
        ge=0,
        description="A candidate is a near-duplicate when no cell of the two 8x8 thumbnails differs by more than "
        "this, mean absolute RGB difference, 0 to 255.",
    )
    allowed_licenses: tuple[str, ...] = Field(
        description="Licence codes that are accepted; images with any other are dropped as `licence`. Empty: all."
    )
    resampler: Literal["pillow", "simd", "opencv"] = Field(
        "pillow",
        description="Library that shrinks images by a Lanczos filter: pillow, or simd (cykooz.resizer: two to three "
        "times as fast; other bytes than pillow's). opencv is simd's former name.",
    )
    crop_margin: float = Field(
        0.0,
        ge=0,
        le=0.1,
        description="Near-duplicates are also searched for among copies that are cropped or padded by up to this "
        "share of each side, 0 to 0.1. 0 switches this search off, which is faster.",
    )
    workers: int | None = Field(
        None, ge=1, description="Processes that decode images, a count. Empty: one per core. No effect on the result."
    )
    part_files: int = Field(
        100_000,
        ge=1,
        description="Files, URLs or table rows that are fetched and decoded as one part, a count: " + PART,
    )
    worker_memory_mib: int = Field(
        1280,
        ge=64,
        description="Memory that decoding one file may take, MiB. A file that needs more is dropped as `too_costly`. "
        "The default is enough for 50 megapixels of every format: JPEG 40 (progressive 400), PNG 610, WebP 1,050.",
    )
    worker_cpu_s: float = Field(
        20.0,
        gt=0,
        description="CPU time that decoding one file may take, seconds. A file that needs more is dropped as "
        "`too_costly`.",
    )
    max_tries: int = Field(
        5,
        ge=1,
        description="Batches in which a file may be unreachable, a count. Such files come after all others; after so "
        "many batches they are given up, which the report says.",
    )
    blocklists: tuple[str, ...] = Field(
        (),
        description="Files with hashes of images that must never be taken in; their images and copies of them are "
        "dropped as `blocked`. Format: tasks/fingerprints/hash_lists.py.",
    )
    benchmark_hashes: tuple[str, ...] = Field(
        (),
        description="Hash files made by `python -m tasks decontaminate build`; copies of a benchmark's images are "
        "dropped as `benchmark`.",
    )
    blocked_distance_bits: int = Field(
        6,
        ge=0,
        le=64,
        description="For list entries that hold a perceptual hash without a thumbnail: images within this Hamming "
        "distance are refused, bits (0 to 64).",
    )
    drop_flags: tuple[Literal["blurry", "near_empty", "extreme_ratio", "text_heavy"], ...] = Field(
        (),
        description="Quality flags for which an image is dropped as `low_quality`. All flags are columns of table "
        "images, whether or not they are listed here.",
    )
    filters: dict[str, FilterConfig] = Field(
        default_factory=dict,
        description="Image classifiers that refuse images, by a name of your choice, e.g. nsfw or faces. None by "
        "default.",
    )
    shard_images: int = Field(ge=1, description="Images in one tar shard of data/shards, a count.")
    takedown: str | None = Field(
        None,
        description="Takedown list: a text file that names images to withdraw, by SHA-256 (of the stored or the "
        "source's file), perceptual hash, source_uri, address or whole source. Format: "
        "tasks/fingerprints/takedown_list.py.",
    )
