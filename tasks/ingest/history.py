"""Which source files earlier batches have taken or dropped, so that they are neither decoded nor downloaded again.

A name, a fingerprint or a caption is 16 bytes here, in sorted arrays: a million files with captions take 31 MiB, and 71
while they are loaded, measured with tracemalloc.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from tasks.ingest.inspect import BLOCK_FILES
from tasks.ingest.rows import SOURCE_REFUSED, short_hash
from tasks.sources.counts import ListingCounts
from tasks.sources.files import SourceFile
from tasks.store import Store

LISTED_CHANGES = 10  # changed captions that are listed by name; the rest are counted
NO_BYTES = hashlib.sha256().hexdigest()  # of a file that could not be read
CHUNK = 1 << 16  # hashes gathered in a list before they become an array


class HashMap:
    """From 63-bit hashes to integers of 8 bytes, in sorted arrays; filled first, read afterwards."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, int]] = []
        self._chunks: list[np.ndarray] = []  # (n, 2) int64 each
        self._keys, self._values = np.empty(0, np.int64), np.empty(0, np.int64)

    def add(self, key: int, value: int = 1) -> None:
        """Add a key; of one that comes again, `seal` decides what stays."""
        self._pending.append((key, value))
        if len(self._pending) == CHUNK:
            self._chunks.append(np.array(self._pending, np.int64))
            self._pending = []

    def seal(self, *, add_up: bool = False) -> None:
        """Sort what was added; of equal keys the last value stays, or where `add_up` is set, their sum."""
        pairs = np.concatenate([*self._chunks, np.array(self._pending, np.int64).reshape(-1, 2)])
        self._pending, self._chunks = [], []
        pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
        if not len(pairs):
            return
        starts = np.flatnonzero(np.r_[True, pairs[1:, 0] != pairs[:-1, 0]])
        ends = np.r_[starts[1:], len(pairs)]
        self._keys = pairs[starts, 0].copy()
        self._values = np.add.reduceat(pairs[:, 1], starts) if add_up else pairs[ends - 1, 1].copy()

    def get(self, key: int, default: int = 0) -> int:
        """The key's value; only after `seal`."""
        place = int(np.searchsorted(self._keys, key))
        return int(self._values[place]) if place < len(self._keys) and self._keys[place] == key else default

    def __contains__(self, key: int) -> bool:
        place = int(np.searchsorted(self._keys, key))
        return place < len(self._keys) and bool(self._keys[place] == key)

    def __len__(self) -> int:
        return len(self._keys)


@dataclass
class SourceHistory:
    """Files of earlier batches, by `short_hash`.

    Attributes:
        max_tries: batches in which a file may be unreachable before it is no longer tried.
        fingerprints: of files that have one.
        names: source_uri of files without a fingerprint.
        contents: source_uri with the sha256 of the bytes that it had, of files without a fingerprint.
        captions: source_uri -> caption that a kept image was published with ('' where the source stated none).
        failures: fingerprint (source_uri without one) -> batches that did not reach the file, a count.
        refused: the same, where their source gave no file at all: they are tried again without end.
        failed_sources: names of sources with such files.
        failed_tars: fingerprints of tars with such members.
        known_sources: names of sources from which there is an image.
        changed_captions: known files whose source states another caption now: uri -> that caption; the first few.
        changed_count: how many such files there are.
        listing: what the listing of the sources counts beside its files.
    """

    max_tries: int = 5
    fingerprints: HashMap = field(default_factory=HashMap)
    names: HashMap = field(default_factory=HashMap)
    contents: HashMap = field(default_factory=HashMap)
    captions: HashMap = field(default_factory=HashMap)
    failures: HashMap = field(default_factory=HashMap)
    refused: HashMap = field(default_factory=HashMap)
    failed_sources: set[str] = field(default_factory=set)
    failed_tars: set[int] = field(default_factory=set)
    known_sources: set[str] = field(default_factory=set)
    changed_captions: dict[str, str] = field(default_factory=dict)
    changed_count: int = 0
    listing: ListingCounts = field(default_factory=ListingCounts)

    @classmethod
    def load(cls, store: Store, batch: str, max_tries: int = 5) -> SourceHistory:
        """All files that batches other than this one kept or dropped."""
        history = cls(max_tries)
        columns = ["source_uri", "source_sha256", "source_fingerprint", "caption", "caption_source"]
        files = sorted({*store.table_files("images"), *store.folder("data", "quarantine", "images", "rows").glob("*")})
        for path in files:
            if path.stem == batch:
                continue
            for block in store.read(path, "images", columns).to_batches(max_chunksize=10_000):
                for uri, sha256, fingerprint, caption, source in zip(*block.to_pydict().values(), strict=True):
                    history._add(uri, sha256, fingerprint or "")
                    history.known_sources.add(uri.partition(":")[0])
                    history.captions.add(short_hash(uri), short_hash(caption or "" if source == "source" else ""))
        for path in sorted(store.folder("data", "dropped", "ingest").glob("*.parquet")):
            if path.stem == batch:
                continue
            for block in store.read(path, "dropped", ["key", "detail"]).to_batches(max_chunksize=10_000):
                for uri, detail in zip(*block.to_pydict().values(), strict=True):
                    history._add_dropped(uri, json.loads(detail))
        history.seal()
        return history

    def _add(self, uri: str, sha256: str, fingerprint: str) -> None:
        """Add a file that was kept, or dropped for good; `fingerprint` is '' for files without one."""
        if fingerprint:
            self.fingerprints.add(short_hash(fingerprint))
        else:
            self.names.add(short_hash(uri))
            self.contents.add(short_hash(f"{uri}\0{sha256}"))

    def _add_dropped(self, uri: str, detail: dict[str, object]) -> None:
        withheld = detail.get("withheld")
        if isinstance(withheld, dict):  # taken down: hashes of its name and bytes are left
            known = {"fingerprint": self.fingerprints, "name": self.names, "content": self.contents}
            for what, value in withheld.items():
                known[what].add(value)
            return
        fingerprint = str(detail.get("fingerprint", ""))
        if detail.get("is_lasting", True):
            self._add(uri, str(detail.get("sha256", "")), fingerprint)
            return
        tried = self.refused if detail.get(SOURCE_REFUSED) else self.failures
        tried.add(short_hash(fingerprint or uri))
        self.failed_sources.add(uri.partition(":")[0])
        if fingerprint:
            self.failed_tars.add(short_hash(fingerprint.removesuffix("/end").rpartition("/")[0]))

    def seal(self) -> None:
        """End filling: from now on the history is read."""
        for hashes in (self.fingerprints, self.names, self.contents, self.captions, self.refused):
            hashes.seal()
        self.failures.seal(add_up=True)

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether an earlier batch is done with the file of this fingerprint; for a tar's last member, with the tar."""
        if fingerprint.endswith("/end") and self._tar_has_failures(fingerprint):
            return False
        return short_hash(fingerprint) in self.fingerprints or self._is_given_up(fingerprint)

    def _tar_has_failures(self, fingerprint: str) -> bool:
        return short_hash(fingerprint.removesuffix("/end")) in self.failed_tars

    def tries(self, file: SourceFile) -> int:
        """In how many batches the file was not reached, a count."""
        return self.failures.get(short_hash(file.fingerprint or file.uri))

    def has_failed(self, file: SourceFile) -> bool:
        """Whether an earlier batch did not reach the file."""
        return self.tries(file) > 0 or short_hash(file.fingerprint or file.uri) in self.refused

    def _is_given_up(self, name: str) -> bool:
        return self.failures.get(short_hash(name)) >= self.max_tries

    def needs_hash(self, file: SourceFile) -> bool:
        """Whether only the file's bytes tell if it is known."""
        return not file.fingerprint and (short_hash(file.uri) in self.names or self._is_given_up(file.uri))

    def has(self, file: SourceFile) -> bool:
        """Whether earlier batches are done with the file and its present bytes. Only files with a known URI are hashed.

        They are when one of them kept it or dropped it for good, or when `max_tries` of them did not reach it.
        """
        if file.fingerprint:
            return short_hash(file.fingerprint) in self.fingerprints or self._is_given_up(file.fingerprint)
        if not self.needs_hash(file):
            return False
        sha256 = file.sha256()
        is_given_up = sha256 == NO_BYTES and self._is_given_up(file.uri)
        return is_given_up or short_hash(f"{file.uri}\0{sha256}") in self.contents

    def note_caption(self, file: SourceFile) -> None:
        """Count a known file whose source now states another caption than the published one."""
        caption = file.metadata.caption
        if not caption:
            return
        current = short_hash(caption)
        if self.captions.get(short_hash(file.uri), current) != current:
            self.changed_count += 1
            if len(self.changed_captions) < LISTED_CHANGES:
                self.changed_captions[file.uri] = caption


def skip_known_files(
    listed: Iterable[SourceFile], history: SourceHistory, threads: int, *, failed_before: bool = False
) -> Iterator[SourceFile]:
    """Files that earlier batches are not done with, in their order and in constant memory.

    Args:
        listed: files of all sources.
        history: of earlier batches; changed captions are noted there.
        threads: in which local files are hashed, a count.
        failed_before: only files that an earlier batch did not reach, instead of only those that none has tried.
    """
    with ThreadPoolExecutor(threads) as pool:
        listing = iter(listed)
        while block := list(itertools.islice(listing, BLOCK_FILES)):
            answers: list[bool | Future[bool]] = [
                pool.submit(history.has, file) if history.needs_hash(file) else history.has(file) for file in block
            ]
            for file, answer in zip(block, answers, strict=True):
                if answer.result() if isinstance(answer, Future) else answer:
                    if not failed_before:
                        history.note_caption(file)
                elif history.has_failed(file) == failed_before:
                    yield file
