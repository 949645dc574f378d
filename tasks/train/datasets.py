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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import MixedDatasetConfig, TrainConfig
from tasks.errors import ConfigError, DataError
from tasks.store import Store
from tasks.train.batches import Example, WeightedDataset, training_examples
from tasks.train.checks import check_images
from tasks.train.splits import held_out_images

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


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of a JSONL file, or of all in a folder, in order of name.

    Raises:
        ConfigError: nothing there.
        DataError: a line that is no JSON object.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise ConfigError(f"{path}: expected a JSONL file or a folder of them ('train.datasets')")
    for file in files:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{file}:{number}: not JSON ({error})") from error
                if not isinstance(record, dict):
                    raise DataError(f"{file}:{number}: expected an object, found {type(record).__name__}")
                yield f"{file}:{number}", record


def read_dataset(config: MixedDatasetConfig) -> tuple[list[Example], dict[str, Path], Counter[str]]:
    """Read one of `train.datasets`.

    Returns:
        Its examples, image id ("<dataset>:<path>") -> file, and how many records were left out, by reason.
    Raises:
        DataError: a record without its format's keys, an image that is not there, or no example at all.
        ConfigError: no such file.
    """
    root, parse = Path(config.images), PARSERS[config.format]
    examples: list[Example] = []
    files: dict[str, Path] = {}
    dropped: Counter[str] = Counter()

    def add_file(image: str, where: str) -> str:
        image_id = f"{config.name}:{image}"
        if image_id not in files:
            file = root / image
            if not file.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{where}: image {image!r} lies outside {root}")
            if not file.is_file():
                raise DataError(f"{where}: image {file} is missing; 'train.datasets' names the folder in `images`")
            files[image_id] = file
        return image_id

    for where, record in read_records(Path(config.path)):
        try:
            example = parse(record)
        except KeyError as error:
            raise DataError(
                f"{where}: key {error} is missing in a record of format '{config.format}'; found {sorted(record)}"
            ) from error
        if isinstance(example, str):
            dropped[example] += 1
            continue
        query, target, *negatives = (add_file(i, where) for i in (example.query, example.target, *example.negatives))
        examples.append(Example(query, target, tuple(negatives), example.instructions))
    if not examples:
        raise DataError(f"{config.path}: no record to train on; left out: {dict(dropped)}")
    return examples, files, dropped


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
            "train.held_out_share"
        )
    check_images(examples, store)
    more, files, dropped = [], dict[str, Path](), Counter({"held_out": len(triplets) - len(examples)})
    for dataset in config.datasets:
        other_examples, other_files, other_dropped = read_dataset(dataset)
        more.append(WeightedDataset(other_examples, dataset.weight))
        files |= other_files
        dropped.update(other_dropped)
    version = WeightedDataset(examples, config.version_weight)
    return TrainingSet(version, more, files, len(triplets), len(held_out), dropped)
