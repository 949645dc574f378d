"""Compare triplets with the sample world's truth file; the one place in the factory that reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError
from tasks.sample import truth
from tasks.sample.scenes import Scene
from tasks.store import Store


def measure_triplets(
    path: Path, triplets: Sequence[dict[str, Any]], source_uris: Mapping[str, str]
) -> dict[str, float | int]:
    """What the sample world's truth says about the triplets: shares (float) and counts (int) by name.

    Args:
        path: JSON lines {"path", "scene", ...}.
        triplets: rows of the table.
        source_uris: image id -> <source>:<path>.
    Raises:
        ConfigError: no such file.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: missing; 'evaluate.truth' names the sample world's truth file, leave it empty for any other "
            "source"
        )
    scenes: dict[str, Scene] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("scene"):
            scenes[row["path"]] = Scene.from_record(row["scene"])
    return truth.measure(triplets, lambda image_id: scenes.get(source_uris.get(image_id, "").partition(":")[2]))


def truth_report(path: Path, store: Store) -> dict[str, dict[str, float | int]]:
    """The two sections of reports/evaluation.json on a version's triplets: "truth" (shares), "truth_counts"."""
    images = store.read_table("images", ["image_id", "source_uri"]).to_pydict()
    source_uris = dict(zip(images["image_id"], images["source_uri"], strict=True))
    values = measure_triplets(path, store.read_table("triplets").to_pylist(), source_uris)
    return {
        "truth": {name: value for name, value in values.items() if isinstance(value, float)},
        "truth_counts": {name: value for name, value in values.items() if isinstance(value, int)},
    }
