"""Compare triplets with the sample world's truth file."""

from __future__ import annotations

from pathlib import Path

from tasks.pages.week_figures import scenes_by_id
from tasks.sample import truth
from tasks.store import Store


def truth_report(path: Path, store: Store) -> dict[str, dict[str, float | int]]:
    """The two sections of reports/evaluation.json on a version's triplets: "truth" (shares), "truth_counts".

    Both are of all weeks together; each week's figures stand in version.json (tasks/pages/week_figures.py).

    Args:
        path: JSON lines {"path", "scene", ...}.
        store: with the version's images and triplets.
    Raises:
        ConfigError: no such file.
    """
    values = truth.measure(store.read_table("triplets").to_pylist(), scenes_by_id(store, path).get)
    return {
        "truth": {name: value for name, value in values.items() if isinstance(value, float)},
        "truth_counts": {name: value for name, value in values.items() if isinstance(value, int)},
    }
