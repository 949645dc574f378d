"""Examples to train on from other datasets: MegaPairs' own records and VLM2Vec's (MMEB-style).

    megapairs   {"q_img": path, "q_text": [texts], "t_img": path, "hns": [paths]}; hns[0] is the query image
    mmeb        {"qry": text, "qry_image_path": path, "pos_text": text, "pos_image_path": path, "neg_text": ..., "neg_image_path": path or [paths]}

The retriever ranks images for a query of image and text. So of MMEB-style records those count whose query has both and
whose candidates are images; the others are counted by reason, never trained on half. Sources: VectorSpaceLab/MegaPairs,
README; TIGER-AI-Lab/VLM2Vec, data format of its issue 8.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.config import MixedDatasetConfig
from tasks.errors import ConfigError, DataError
from tasks.train.batches import Example

IMAGE_TOKEN = re.compile(r"<\|image_\d+\|>|<image>|<\|image_pad\|>")


def text_of(text: Any) -> str:
    """A text without the places where images go."""
    return " ".join(IMAGE_TOKEN.sub(" ", str(text or "")).split())


def listed(value: Any) -> list[str]:
    """One path, several or none, as a list without empty ones."""
    return [str(v) for v in (value if isinstance(value, list) else [value]) if v]


def megapairs_example(record: Mapping[str, Any]) -> Example | str:
    """An example, or why not: no_text, no_target."""
    texts = tuple(t for t in map(text_of, listed(record.get("q_text"))) if t)
    query, target = str(record["q_img"]), record.get("t_img")
    if not texts:
        return "no_text"
    if not target:
        return "no_target"
    return Example(
        query,
        str(target),
        tuple(i for i in dict.fromkeys(listed(record.get("hns"))) if i not in (query, target)),
        texts,
    )


def mmeb_example(record: Mapping[str, Any]) -> Example | str:
    """An example, or why not: no_query_image, no_text, text_candidate."""
    query, text = listed(record.get("qry_image_path")), text_of(record.get("qry"))
    targets = listed(record.get("pos_image_path"))
    if not query:
        return "no_query_image"
    if not text:
        return "no_text"
    if not targets or text_of(record.get("pos_text")) or any(text_of(t) for t in listed(record.get("neg_text"))):
        return "text_candidate"
    return Example(
        query[0],
        targets[0],
        tuple(i for i in dict.fromkeys(listed(record.get("neg_image_path"))) if i not in (query[0], targets[0])),
        (text,),
    )


MAKE = {"megapairs": megapairs_example, "mmeb": mmeb_example}


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, record) of a JSONL file or of a folder's, in order of name.

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
    """Its examples, image ids -> files, and what was left out by reason.

    Raises:
        DataError: a record without its format's keys, an image that is not there, or no example at all.
        ConfigError: no such file.
    """
    root, make = Path(config.images), MAKE[config.format]
    examples: list[Example] = []
    files: dict[str, Path] = {}
    dropped: Counter[str] = Counter()

    def known(image: str) -> str:
        name = f"{config.name}:{image}"
        if name not in files:
            file = root / image
            if not file.resolve().is_relative_to(root.resolve()):
                raise DataError(f"{where}: image {image!r} lies outside {root}")
            if not file.is_file():
                raise DataError(f"{where}: image {file} is missing; 'train.datasets' names the folder in `images`")
            files[name] = file
        return name

    for where, record in records(Path(config.path)):
        try:
            found = make(record)
        except KeyError as error:
            raise DataError(
                f"{where}: key {error} is missing in a record of format '{config.format}'; found {sorted(record)}"
            ) from error
        if isinstance(found, str):
            dropped[found] += 1
            continue
        examples.append(
            Example(
                known(found.query), known(found.target), tuple(known(i) for i in found.negatives), found.instructions
            )
        )
    if not examples:
        raise DataError(f"{config.path}: no record to train on; left out: {dict(dropped)}")
    return examples, files, dropped
