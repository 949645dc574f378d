"""The examples to train on: the version's triplets, and further datasets in MegaPairs' or VLM2Vec's (MMEB) format.

    megapairs   {"q_img": path, "q_text": [texts], "t_img": path, "hns": [paths]}; hns[0] is the query image
    mmeb        {"qry": text, "qry_image_path": path, "pos_text": text, "pos_image_path": path, "neg_text": ...,
                "neg_image_path": path or [paths]}

The retriever ranks images for a query of image and text. So of MMEB-style records only those are used whose query has
both and whose candidates are images; the others are counted by reason. Sources: VectorSpaceLab/MegaPairs, README;
TIGER-AI-Lab/VLM2Vec, data format of its issue 8.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.config import MixedDatasetConfig, TrainConfig
from tasks.errors import ConfigError, DataError
from tasks.store import Store
from tasks.train.batches import Example, WeightedDataset, training_examples
from tasks.train.checks import check_images
from tasks.train.splits import held_out_images

FAULTS = ("damaged_record", "missing_image", "broken_image", "unsafe_path")  # why a record cannot be used
FREE_RECORDS = 3  # records that may be faulty whatever their share
IMAGE_TOKEN = re.compile(r"<\|image_\d+\|>|<image>|<\|image_pad\|>")


def strip_image_tokens(text: Any) -> str:
    """A text without image tokens, with single blanks."""
    return " ".join(IMAGE_TOKEN.sub(" ", str(text or "")).split())


def as_list(value: Any) -> list[str]:
    """One path, several or none, as a list without empty ones."""
    return [str(v) for v in (value if isinstance(value, list) else [value]) if v]


def megapairs_example(record: Mapping[str, Any]) -> Example | str:
    """An example, or the reason why the record is left out: no_text, no_target."""
    texts = tuple(t for t in map(strip_image_tokens, as_list(record.get("q_text"))) if t)
    query, target = str(record["q_img"]), record.get("t_img")
    if not texts:
        return "no_text"
    if not target:
        return "no_target"
    negatives = tuple(i for i in dict.fromkeys(as_list(record.get("hns"))) if i not in (query, target))
    return Example(query, str(target), negatives, texts)


def mmeb_example(record: Mapping[str, Any]) -> Example | str:
    """An example, or the reason why the record is left out: no_query_image, no_text, text_candidate."""
    queries, text = as_list(record.get("qry_image_path")), strip_image_tokens(record.get("qry"))
    targets = as_list(record.get("pos_image_path"))
    if not queries:
        return "no_query_image"
    if not text:
        return "no_text"
    candidate_texts = [record.get("pos_text"), *as_list(record.get("neg_text"))]
    if not targets or any(strip_image_tokens(t) for t in candidate_texts):
        return "text_candidate"
    query, target = queries[0], targets[0]
    negatives = tuple(i for i in dict.fromkeys(as_list(record.get("neg_image_path"))) if i not in (query, target))
    return Example(query, target, negatives, (text,))


PARSERS = {"megapairs": megapairs_example, "mmeb": mmeb_example}


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(file:line, record) of a JSONL file, or of all in a folder, in order of name; of a damaged line, what is wrong.

    Raises:
        ConfigError: nothing there.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise ConfigError(f"{path}: expected a JSONL file or a folder of them ('train.datasets')")
    for file in files:
        with open(file, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield f"{file}:{number}", f"not JSON ({error})"
                    continue
                is_record = isinstance(record, dict)
                yield f"{file}:{number}", record if is_record else f"expected an object, found {type(record).__name__}"


class RecordImages:
    """The images that a dataset's records name; each file is looked at once."""

    def __init__(self, config: MixedDatasetConfig) -> None:
        self.name, self.root = config.name, Path(config.images)
        self.files: dict[str, Path] = {}
        self._faults: dict[str, tuple[str, str] | None] = {}

    def fault(self, image: str) -> tuple[str, str] | None:
        """Why an image cannot be used: (reason, a sentence); None where it can."""
        if image not in self._faults:
            self._faults[image] = self._look(image)
            if self._faults[image] is None:
                self.files[self.image_id(image)] = self.root / image
        return self._faults[image]

    def image_id(self, image: str) -> str:
        """Its id in examples."""
        return f"{self.name}:{image}"

    def _look(self, image: str) -> tuple[str, str] | None:
        file = self.root / image
        if "\0" in image or not file.resolve().is_relative_to(self.root.resolve()):
            return "unsafe_path", f"image {image!r} lies outside {self.root}"
        if not file.is_file():
            return "missing_image", f"image {file} is missing; 'train.datasets' names the folder in `images`"
        return None if is_readable(file) else ("broken_image", f"image {file} cannot be decoded")


def is_readable(file: Path) -> bool:
    """Whether an image decodes to its end; a JPEG at an eighth of its size, which reads all of it in little time."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.draft("RGB", (1, 1))
            image.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, MemoryError):
        return False
    return True


@dataclass
class DroppedRecords:
    """Records that are left out.

    Attributes:
        counts: by reason.
        faulty: those of FAULTS, a count.
        first: what is wrong with the first few of these, each with its place.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faulty: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, reason: str, where: str, detail: str = "") -> None:
        """Count one; `detail` is what is wrong with a faulty one."""
        self.counts[reason] += 1
        if reason in FAULTS:
            self.faulty += 1
            if len(self.first) < 3:
                self.first.append(f"{where}: {detail}")

    def require_few(self, path: str, records: int, share_max: float) -> None:
        """Raise where so many records are faulty that the dataset cannot be meant.

        Raises:
            DataError: more than FREE_RECORDS and more than this share.
        """
        if self.faulty > max(FREE_RECORDS, share_max * records):
            raise DataError(
                f"{path}: {self.faulty} of {records} records cannot be used, at most {share_max:g} of them may; "
                f"{'; '.join(self.first)}; correct `path` or `images` of 'train.datasets', or raise "
                "train.faulty_records_share_max"
            )


def read_dataset(
    config: MixedDatasetConfig, faulty_share_max: float = 0.05
) -> tuple[list[Example], dict[str, Path], Counter[str]]:
    """Read one of `train.datasets`; a record that cannot be used is left out and counted.

    Args:
        config: the dataset.
        faulty_share_max: largest share of records of FAULTS, 0 to 1.
    Returns:
        Its examples, image id ("<dataset>:<path>") -> file, and how many records were left out, by reason.
    Raises:
        DataError: too large a share of faulty records, or no example at all.
        ConfigError: no such file.
    """
    images, parse, dropped = RecordImages(config), PARSERS[config.format], DroppedRecords()
    examples: list[Example] = []
    records = 0
    for where, record in read_records(Path(config.path)):
        records += 1
        if isinstance(record, str):
            dropped.add("damaged_record", where, record)
            continue
        try:
            example = parse(record)
        except KeyError as error:
            found = f"key {error} is missing in a record of format '{config.format}'; found {sorted(record)}"
            dropped.add("damaged_record", where, found)
            continue
        if isinstance(example, str):
            dropped.add(example, where)
            continue
        named = (example.query, example.target, *example.negatives)
        faults = {image: fault for image in named if (fault := images.fault(image))}
        if essential := [faults[image] for image in named[:2] if image in faults]:
            dropped.add(*_at(where, essential[0]))
            continue
        for image in dict.fromkeys(example.negatives):
            if image in faults:  # the record stays, without this negative
                dropped.counts[f"negative_{faults[image][0]}"] += 1
        negatives = tuple(images.image_id(image) for image in example.negatives if image not in faults)
        query, target = images.image_id(example.query), images.image_id(example.target)
        examples.append(Example(query, target, negatives, example.instructions))
    if not examples:
        detail = "".join(f"; {first}" for first in dropped.first)
        raise DataError(f"{config.path}: no record to train on; left out: {dict(dropped.counts)}{detail}")
    dropped.require_few(config.path, records, faulty_share_max)
    return examples, images.files, dropped.counts


def _at(where: str, fault: tuple[str, str]) -> tuple[str, str, str]:
    """A fault as arguments of `DroppedRecords.add`."""
    return fault[0], where, fault[1]


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
    """

    version: WeightedDataset
    more: list[WeightedDataset]
    files: dict[str, Path]
    triplets: int
    held_out_images: int
    dropped: Counter[str]

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
    if not examples:
        raise DataError(
            f"train: no triplet to train on among {len(triplets)}; run the dataset's stages first, or lower "
            "train.held_out_share. Where they ran and no triplet was accepted, data/dropped/caption and "
            "data/dropped/judge say why: widen the windows (`python -m tasks calibrate`), or take more images"
        )
    check_images(examples, store)
    more, files, dropped = [], dict[str, Path](), Counter({"held_out": len(triplets) - len(examples)})
    for dataset in config.datasets:
        other_examples, other_files, other_dropped = read_dataset(dataset, config.faulty_records_share_max)
        more.append(WeightedDataset(other_examples, dataset.weight))
        files |= other_files
        dropped.update(other_dropped)
    version = WeightedDataset(examples, config.version_weight)
    return TrainingSet(version, more, files, len(triplets), len(held_out), dropped)
