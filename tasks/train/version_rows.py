"""The version's own rows for other tasks (data/rows) as training examples.

Two images of a query, or of a candidate, are shown side by side as one image (tasks/train/loader.py), so that any model
takes them. A query of images alone has no text. A row that names a held-out image as its query or its answer is left
out, such a negative too, as with triplets. The locked phase takes rows whose candidates are single images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

from tasks.config import MixedDatasetConfig
from tasks.errors import DataError
from tasks.store import Store
from tasks.train.batches import Candidate, CandidateId, Example, image_of
from tasks.train.loader import PAIR_MARK
from tasks.train.splits import held_out_images


def as_candidates(image_ids: Sequence[str], size: int) -> list[str]:
    """Image ids in groups of `size`, each group as one candidate."""
    groups = [image_ids[n : n + size] for n in range(0, len(image_ids), size)]
    return [PAIR_MARK.join(group) for group in groups]


def row_example(row: Mapping[str, Any], held_out: Set[str], config: MixedDatasetConfig) -> Example | str:
    """A row of table `further_rows` as an example, or the reason why it is left out: held_out, no_text.

    Args:
        row: of the table.
        held_out: image ids that are never trained on.
        config: the entry of `train.datasets`; its instruction takes the place of the row's own.
    """
    query_images, target_images = row["query_image_ids"], row["target_image_ids"]
    if not held_out.isdisjoint([*query_images, *target_images]):
        return "held_out"
    if not query_images and not row["query_text"]:
        return "no_text"
    query = as_candidates(query_images, len(query_images))[0] if query_images else None
    target: CandidateId
    negatives: list[CandidateId]
    if target_images:
        size = len(target_images)
        (target,) = as_candidates(target_images, size)
        ids = row["negative_image_ids"]
        groups = [ids[n : n + size] for n in range(0, len(ids), size)]
        negatives = [PAIR_MARK.join(group) for group in groups if held_out.isdisjoint(group)]
    else:
        target = Candidate(None, row["target_text"])
        negatives = [Candidate(None, text) for text in row["negative_texts"]]
    unlike = tuple(c for c in dict.fromkeys(negatives) if c not in (target, query))
    return Example(
        query,
        target,
        unlike,
        (row["query_text"],),
        task=row["instruction"] if config.instruction is None else config.instruction,
        is_symmetric=config.symmetric,
        is_contrasted=config.contrast,
        keep_base=config.keep_base,
    )


def read_version_rows(
    config: MixedDatasetConfig, store: Store, held_out: Set[str]
) -> tuple[list[Example], Counter[str]]:
    """The examples of a task, and how many rows were left out, by reason.

    Args:
        config: of format rows; `path` is the task.
        store: of the version.
        held_out: image ids that are never trained on.
    Raises:
        DataError: the version has no such rows, or none to train on.
    """
    paths = sorted(store.folder("data", "rows", config.path).glob("*.parquet"))
    if not paths:
        raise DataError(
            f"'train.datasets' {config.name}: this version has no rows of {config.path} in data/rows; publish one with "
            f"`version.further_rows` naming {config.path}, or take the dataset out"
        )
    parsed = [row_example(row, held_out, config) for row in store.read(paths, "further_rows").to_pylist()]
    dropped = Counter(reason for reason in parsed if isinstance(reason, str))
    examples = [example for example in parsed if isinstance(example, Example)]
    if not examples:
        raise DataError(
            f"'train.datasets' {config.name}: no row of {config.path} to train on; left out: {dict(dropped)}; lower "
            "train.held_out_share, or take the dataset out"
        )
    return examples, dropped


def row_image_ids(
    config: MixedDatasetConfig, store: Store, held_out_share: float, triplets: Sequence[Mapping[str, Any]]
) -> set[str]:
    """Ids of the images that training on a task's rows may use, without the held-out ones.

    Args:
        config, store: as of `read_version_rows`.
        held_out_share: of the training.
        triplets: of the version.
    """
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], held_out_share)
    examples, _ = read_version_rows(config, store, held_out)
    named = {image_of(c) for e in examples for c in (e.target, *e.negatives)} | {e.query for e in examples}
    return {image_id for ids in named if ids is not None for image_id in ids.split(PAIR_MARK)}
