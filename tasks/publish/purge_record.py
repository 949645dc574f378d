"""The record of purges: purges.jsonl beside the deployment's clone, one JSON object a purge. It never names an image.

It says when, why, which versions were replaced by which, which objects were deleted where, how many replies of models
went, and which models had been trained on the images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.publish.git import common_dir
from tasks.store.atomic import write_bytes


def record_path(clone: Path) -> Path:
    """Where a deployment keeps the record."""
    return common_dir(clone).parent.parent / "purges.jsonl"


def add_record(clone: Path, record: Mapping[str, Any]) -> Path:
    """Append a purge; returns the record's path."""
    path = record_path(clone)
    before = path.read_bytes() if path.exists() else b""
    write_bytes(path, before + json.dumps(record, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return path


def purged_objects(clone: Path) -> set[str]:
    """Objects that purges deleted: a tag of an affected model may still name one."""
    path = record_path(clone)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name for line in lines for name in json.loads(line)["objects"]}
