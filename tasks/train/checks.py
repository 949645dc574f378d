"""Checks before the first step: the base model's revision, and that every image is there."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.errors import ConfigError, DataError
from tasks.store import Store
from tasks.store.shards import SHARDS, shard_path
from tasks.train.batches import Example


def check_revision(pinned: str | None, loaded: str, model: str) -> None:
    """Fail where the base model is not the pinned one.

    Args:
        pinned: train.revision; a branch or tag cannot be checked here.
        loaded: of the loaded model: a commit, or the first 12 hex digits of a folder's weights.
        model: name or folder, for the error.
    Raises:
        ConfigError: another revision.
    """
    if pinned is None or not set(pinned) <= set("0123456789abcdef") or len(pinned) < 7:
        return
    if not (pinned.startswith(loaded) or loaded.startswith(pinned)):
        raise ConfigError(
            f"train: base model '{model}' has revision {loaded}, 'train.revision' pins {pinned}; bring the right "
            "weights, or change the pin"
        )


def check_images(examples: Sequence[Example], store: Store) -> None:
    """Fail fast if an image is missing: every image of the examples is in the table and in its shard.

    Raises:
        DataError: an image without a row, or whose shard is missing or too short.
    """
    rows = store.read_table("images", ["image_id", "shard", "offset_bytes", "size_bytes"]).to_pylist()
    shard = {r["image_id"]: r["shard"] for r in rows}
    end_byte = {r["image_id"]: r["offset_bytes"] + r["size_bytes"] for r in rows}
    files = {name: shard_path(store.root, name) for name in set(shard.values())}
    size_bytes = {name: file.stat().st_size for name, file in files.items() if file.is_file()}
    wanted = sorted({str(i) for e in examples for i in (e.query, e.target, *e.negatives)})
    missing = [i for i in wanted if i not in shard]
    if missing:
        raise DataError(
            f"train: {len(missing)} images of the triplets are not in the images table, the first is {missing[0]}; run "
            "`dvc pull`"
        )
    missing = [i for i in wanted if end_byte[i] > size_bytes.get(shard[i], 0)]
    if missing:
        name = shard[missing[0]]
        state = f"has {size_bytes[name]} bytes" if name in size_bytes else "is missing"
        raise DataError(
            f"train: {len(missing)} images are not in their shards, the first is {missing[0]}: data/{SHARDS}/{name} "
            f"{state}; run `dvc pull --force`"
        )
