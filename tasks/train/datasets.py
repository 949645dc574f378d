"""The examples to train on: the version's triplets, and further datasets in MegaPairs' or VLM2Vec's (MMEB) format, or
the version's own rows for other tasks (tasks/train/version_rows.py).

A dataset of up to `train.stream_records` records is read as a whole before the first step, every image looked at; its
examples come in batches of neighbours. A larger one is streamed (tasks/train/stream.py). Formats:
tasks/train/record_formats.py; files: tasks/train/record_files.py.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tasks.config import LOCKED_TASKS, MixedDatasetConfig, TrainConfig
from tasks.errors import DataError
from tasks.store import Store
from tasks.train.batches import Example, WeightedDataset, training_examples
from tasks.train.checks import check_images
from tasks.train.record_files import Records, open_records
from tasks.train.record_formats import megapairs_example, mmeb_example
from tasks.train.record_images import DroppedRecords, ImageFiles, RecordImages, checked_example
from tasks.train.splits import held_out_images
from tasks.train.stream import RecordStream
from tasks.train.version_rows import read_version_rows

SAMPLED_RECORDS = 20_000  # of a streamed dataset, where its images are looked at
log = logging.getLogger(__name__)

__all__ = ["TrainingSet", "image_files", "megapairs_example", "mmeb_example", "read_dataset", "read_training_set"]


def read_dataset(
    config: MixedDatasetConfig, faulty_share_max: float = 0.05
) -> tuple[list[Example], dict[str, Path], Counter[str]]:
    """Read one of `train.datasets` as a whole; a record that cannot be used is left out and counted.

    Args:
        config: the dataset.
        faulty_share_max: largest share of records of FAULTS, 0 to 1.
    Returns:
        Its examples, image id ("<dataset>:<path>") -> file, and how many records were left out, by reason.
    Raises:
        DataError: too large a share of faulty records, or no example at all.
        ConfigError: no such file, or columns that the format does not know.
    """
    return read_all(config, open_records(config), faulty_share_max)


def read_all(
    config: MixedDatasetConfig, records: Records, faulty_share_max: float
) -> tuple[list[Example], dict[str, Path], Counter[str]]:
    """As `read_dataset`, of records that are open."""
    images, dropped = RecordImages(config), DroppedRecords()
    checked = [checked_example(records, n, config.format, images, dropped) for n in range(len(records))]
    examples = [example for example in checked if example is not None]
    dropped.require_some(config.path, len(examples))
    dropped.require_few(config.path, len(records), faulty_share_max)
    return examples, images.files, dropped.counts


def image_files(config: MixedDatasetConfig, stream_records: int) -> dict[str, Path]:
    """Files of a dataset's images, by id; of a dataset that is streamed, those of a fixed sample of its records."""
    if config.format == "rows":
        return {}  # the version's own images
    records = open_records(config)
    if len(records) <= stream_records:
        return read_all(config, records, 1.0)[1]
    sample = min(SAMPLED_RECORDS, len(records))
    log.warning("%s is streamed: the images of %d of its records are looked at", config.path, sample)
    images, dropped = RecordImages(config), DroppedRecords()
    for number in random.Random("images").sample(range(len(records)), sample):
        checked_example(records, number, config.format, images, dropped)
    return images.files


@dataclass(frozen=True)
class TrainingSet:
    """Everything that a run trains on.

    Attributes:
        version: the version's own examples, with their weight.
        more: the further datasets, in the order of `train.datasets`.
        files: image id -> file, of the further datasets.
        triplets: rows of the version's table, a count; those that are no example are held out.
        held_out_images: a count.
        dropped: records that are not trained on, by reason.
        validation: the version's examples to evaluate on while training; empty where `train.validation` is.
    """

    version: WeightedDataset
    more: list[WeightedDataset]
    files: ImageFiles
    triplets: int
    held_out_images: int
    dropped: Counter[str]
    validation: list[Example]

    @property
    def streams(self) -> list[RecordStream]:
        """The datasets that are read as they are needed."""
        return [m.examples for m in self.more if isinstance(m.examples, RecordStream)]

    @property
    def all(self) -> list[WeightedDataset]:
        """The version's examples first."""
        return [self.version, *self.more]


def read_training_set(config: TrainConfig, store: Store) -> TrainingSet:
    """Read the version's triplets and `train.datasets`, and check that every image is there.

    Raises:
        DataError: no triplet to train on, an image that is missing, a dataset that cannot be read.
        ConfigError: no such dataset.
    """
    triplets = store.read_table("triplets").sort_by("triplet_id").to_pylist()
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], config.held_out_share)
    examples = training_examples(triplets, held_out)
    validation: list[Example] = []
    kept: set[str] = set()
    if config.validation is not None:
        kept = held_out_images([e.link for e in examples], config.validation.share)
        validation = [e for e in examples if e.query in kept]
        examples = training_examples(triplets, held_out | kept)
    if not examples:
        raise DataError(
            f"train: no triplet to train on among {len(triplets)}; run the dataset's stages first, or lower "
            "train.held_out_share. Where they ran and no triplet was accepted, data/dropped/caption and "
            "data/dropped/judge say why: widen the windows (`python -m tasks calibrate`), or take more images"
        )
    if config.validation is not None and not validation:
        raise DataError(
            f"train: no triplet to evaluate on among {len(triplets)}: groups that share images are larger than the "
            "share; raise train.validation.share, or leave train.validation empty"
        )
    check_images([*examples, *validation], store)
    more, files, dropped = [], ImageFiles(), Counter({"held_out": len(triplets) - len(examples) - len(validation)})
    if validation:
        dropped["validation"] = len(triplets) - len(examples) - dropped["held_out"]
    for dataset in config.datasets:
        if dataset.format == "rows":
            own_rows, left_out = read_version_rows(dataset, store, held_out | kept)
            is_locked = dataset.path in LOCKED_TASKS
            beside = (dataset.held_beside, dataset.held_spliced)
            more.append(WeightedDataset(own_rows, dataset.weight, is_locked, *beside))
            dropped.update(left_out)
            continue
        records = open_records(dataset, store.folder(".run", "records", dataset.name))
        if len(records) > config.stream_records:
            stream = RecordStream(dataset, records)
            stream.require_usable(config.faulty_records_share_max)
            files.roots[dataset.name] = Path(dataset.images)
            more.append(WeightedDataset(stream, dataset.weight))
            continue
        other_examples, other_files, other_dropped = read_all(dataset, records, config.faulty_records_share_max)
        more.append(WeightedDataset(other_examples, dataset.weight))
        files.known |= other_files
        dropped.update(other_dropped)
    version = WeightedDataset(examples, config.version_weight)
    return TrainingSet(version, more, files, len(triplets), len(held_out), dropped, validation)
