"""Checks before a training starts: revision, images, places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.errors import ConfigError, DataError
from tasks.store import Store
from tasks.train.batches import Example


def check_revision(wanted: str | None, found: str, model: str) -> None:
    """The base is the pinned one.

    Args:
        wanted: train.revision; a branch or tag says nothing that can be checked here.
        found: of the loaded model: a commit, or the first 12 hex digits of a folder's weights.
    Raises:
        ConfigError: another one.
    """
    if wanted is None or not set(wanted) <= set("0123456789abcdef") or len(wanted) < 7:
        return
    if not (wanted.startswith(found) or found.startswith(wanted)):
        raise ConfigError(
            f"train: base model '{model}' has revision {found}, 'train.revision' pins {wanted}; bring the right weights, or change the pin"
        )


def check_images(examples: Sequence[Example], places: Mapping[str, tuple[str, int]], sizes: Mapping[str, int]) -> None:
    """Every image that training will ask for is there: said in the first second, not in the last hour.

    Args:
        examples: of the version.
        places: image id -> shard and the byte behind its last.
        sizes: shard -> bytes on disk; without those that are not there.
    Raises:
        DataError: an image without a row, or whose shard is missing or too short.
    """
    wanted = sorted({i for e in examples for i in (e.query, e.target, *e.negatives)})
    missing = [i for i in wanted if i not in places]
    if missing:
        raise DataError(
            f"train: {len(missing)} images of the triplets are not in the images table, the first is {missing[0]}; run `dvc pull`"
        )
    missing = [i for i in wanted if places[i][1] > sizes.get(places[i][0], 0)]
    if missing:
        shard = places[missing[0]][0]
        found = f"has {sizes[shard]} bytes" if shard in sizes else "is missing"
        raise DataError(
            f"train: {len(missing)} images are not in their shards, the first is {missing[0]}: data/images/{shard} {found}; run `dvc pull --force`"
        )


def places_of(store: Store) -> tuple[dict[str, tuple[str, int]], dict[str, int]]:
    """Image id -> shard and the byte behind its last; shard -> bytes on disk."""
    rows = store.read_table("images", ["image_id", "shard", "offset_bytes", "size_bytes"]).to_pylist()
    files = {shard: store.folder("data", "images", shard) for shard in {r["shard"] for r in rows}}
    return {r["image_id"]: (r["shard"], r["offset_bytes"] + r["size_bytes"]) for r in rows}, {
        k: f.stat().st_size for k, f in files.items() if f.is_file()
    }
