"""The record of purges: purges.jsonl beside the deployment's clone, one JSON object a purge. It never names an image.

It says when, why, which versions were replaced by which, which objects were deleted where, how many replies of models
went, and which models had been trained on the images.

While a purge is under way, purge-under-way-<entries>.json beside it says what it has done and what it is about to
delete: once the tags are gone, nothing else would tell which objects held the images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.fingerprints.takedown_list import Entry
from tasks.publish.git import common_dir
from tasks.store.atomic import write_bytes

UNDER_WAY = "purge-under-way-"  # and the first digits of the entries' SHA-256


def record_path(clone: Path) -> Path:
    """Where a deployment keeps the record."""
    return common_dir(clone).parent.parent / "purges.jsonl"


def add_record(clone: Path, record: Mapping[str, Any]) -> Path:
    """Append a purge, unless one of its key `purge` stands there; returns the record's path."""
    path = record_path(clone)
    before = path.read_bytes() if path.exists() else b""
    if any(json.loads(line).get("purge") == record["purge"] for line in before.splitlines()):
        return path
    write_bytes(path, before + json.dumps(record, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return path


def purged_objects(clone: Path) -> set[str]:
    """Objects that purges deleted, or have begun to: a tag of an affected model may still name one."""
    path = record_path(clone)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    lines += [begun.read_text(encoding="utf-8") for begun in path.parent.glob(f"{UNDER_WAY}*.json")]
    return {name for line in lines for name in json.loads(line)["objects"]}


@dataclass
class UnderWay:
    """What a purge has done so far, and what it deletes at its end; kept in a file until then.

    Attributes:
        path: of the file, one for each set of entries that name images.
        begun_at: time of the first try, UTC, ISO 8601.
        begun: tag of an affected version -> the tag that is being published in its place.
        replaced: tag of an affected version -> the version in its place; None for none.
        marked: tag of the promoted model whose card says what happened; None where none is needed.
        objects, replies: what is to be deleted: objects, files of the request cache.
        present: where objects were found -> how many, before any was deleted.
        texts: lines of people that name the images, a count; None before they are counted.
        models: affected models, tags.
        images: a count.
    """

    path: Path = field(repr=False)
    begun_at: str = ""
    begun: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str | None] = field(default_factory=dict)
    marked: str | None = None
    present: dict[str, int] = field(default_factory=dict)
    texts: int | None = None
    objects: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    images: int = 0

    @classmethod
    def read(cls, clone: Path, entries: Sequence[Entry]) -> UnderWay:
        """What an earlier try of this purge noted; nothing where there was none."""
        named = json.dumps(sorted((entry.kind, entry.value) for entry in entries)).encode()
        path = record_path(clone).with_name(f"{UNDER_WAY}{hashlib.sha256(named).hexdigest()[:16]}.json")
        return cls(path, **(json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}))

    @property
    def key(self) -> str:
        """Digits that stand for the entries: in the ids of this purge's runs, so that none goes on with another's."""
        return self.path.stem.removeprefix(UNDER_WAY)

    def start(self, now: str) -> None:
        """Note when the purge began, the first time alone."""
        if not self.begun_at:
            self.begun_at = now
            self._write()

    def begin(self, tag: str, other: str) -> None:
        """Note the tag that is about to be published in place of an affected one."""
        self.begun[tag] = other
        self._write()

    def mark(self, tag: str) -> None:
        """Note the tag under which the promoted model is about to be published with a sentence in its card."""
        self.marked = tag
        self._write()

    def count_texts(self, count: int) -> None:
        """Note how many lines of people are about to be removed, the first time alone."""
        if self.texts is None:
            self.texts = count
            self._write()

    def replace(self, tag: str, other: str | None) -> None:
        """Note the version in place of an affected one."""
        self.replaced[tag] = other
        self._write()

    def add(
        self,
        objects: Iterable[str],
        replies: Iterable[Path],
        models: Iterable[str],
        images: int,
        present: Mapping[str, int] | None = None,
    ) -> None:
        """Note what is to be deleted, beside what an earlier try noted."""
        self.present = self.present or dict(present or {})
        self.objects = sorted({*self.objects, *objects})
        self.replies = sorted({*self.replies, *map(str, replies)})
        self.models = sorted({*self.models, *models})
        self.images = max(self.images, images)
        self._write()

    def remove(self) -> None:
        """The purge is over."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        write_bytes(self.path, json.dumps(values, sort_keys=True).encode())
