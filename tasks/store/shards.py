"""Where the tars of images lie below a root: data/shards; in versions published before it, beside their table.

A folder of Parquet files alone is read by its name, `pandas.read_parquet("data/images")`; with tars in it none is.
"""

from __future__ import annotations

from pathlib import Path

SHARDS = "shards"  # folder below data
OLD_FOLDER = "images"  # below data, of older versions


def shard_path(root: Path, shard: str) -> Path:
    """Where a tar of images lies, or is to be written.

    Args:
        root: of a run's worktree or a clone.
        shard: file name of the tar.
    """
    path, old = root / "data" / SHARDS / shard, root / "data" / OLD_FOLDER / shard
    return old if old.exists() and not path.exists() else path


def shard_files(root: Path) -> list[Path]:
    """All tars of images, by name."""
    folders = (root / "data" / SHARDS, root / "data" / OLD_FOLDER)
    return sorted((path for folder in folders for path in folder.glob("*.tar")), key=lambda path: path.name)


def move_old_shards(root: Path) -> int:
    """Move the tars of an older version into their own folder; returns how many. Repeatable after a crash."""
    old = [path for path in shard_files(root) if path.parent.name == OLD_FOLDER]
    (root / "data" / SHARDS).mkdir(parents=True, exist_ok=True)
    for path in old:
        path.replace(root / "data" / SHARDS / path.name)
    return len(old)
