"""Which source files earlier batches have taken or dropped, so that they are neither decoded nor downloaded again."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tasks.ingest.inspect import BLOCK_FILES
from tasks.sources.files import SourceFile
from tasks.store import Store

LISTED_CHANGES = 10  # changed captions that are listed by name; the rest are counted


def short_hash(text: str) -> int:
    """63 bits of a text's hash, for sets of a million."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


@dataclass
class SourceHistory:
    """Files of earlier batches; URIs, fingerprints and captions as `short_hash`: a million take some 200 MB.

    Attributes:
        sha256s: of files without a fingerprint: source_uri -> sha256 of the bytes that it had.
        fingerprints: of all other files.
        captions: source_uri -> caption that a kept image was published with ('' where the source stated none).
        changed_captions: known files whose source states another caption now: uri -> that caption; the first few.
        changed_count: how many such files there are.
    """

    sha256s: dict[str, set[str]] = field(default_factory=dict)
    fingerprints: set[int] = field(default_factory=set)
    captions: dict[int, int] = field(default_factory=dict)
    changed_captions: dict[str, str] = field(default_factory=dict)
    changed_count: int = 0

    @classmethod
    def load(cls, store: Store, batch: str) -> SourceHistory:
        """All files that batches other than this one kept or dropped, except drops that a later batch retries."""
        history = cls()
        images = store.read_table(
            "images", ["source_uri", "source_sha256", "batch", "source_fingerprint", "caption", "caption_source"]
        )
        for block in images.to_batches(max_chunksize=10_000):
            for uri, sha256, row_batch, fingerprint, caption, caption_source in zip(
                *block.to_pydict().values(), strict=True
            ):
                if row_batch != batch:
                    history.add(uri, sha256, fingerprint or "")
                    published = caption or "" if caption_source == "source" else ""
                    history.captions[short_hash(uri)] = short_hash(published)
        dropped = store.read_dropped("ingest").select(["key", "detail", "batch"])
        for block in dropped.to_batches(max_chunksize=10_000):
            for uri, detail_json, row_batch in zip(*block.to_pydict().values(), strict=True):
                if row_batch != batch and (detail := json.loads(detail_json)).get("is_lasting", True):
                    history.add(uri, detail.get("sha256", ""), detail.get("fingerprint", ""))
        return history

    def add(self, uri: str, sha256: str, fingerprint: str) -> None:
        """Add one row; `fingerprint` is '' for files without one."""
        if fingerprint:
            self.fingerprints.add(short_hash(fingerprint))
        else:
            self.sha256s.setdefault(uri, set()).add(sha256)

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a row of an earlier batch has this fingerprint."""
        return short_hash(fingerprint) in self.fingerprints

    def has(self, file: SourceFile) -> bool:
        """Whether an earlier batch took the file with its present bytes. Only files with a known URI are hashed."""
        if file.fingerprint:
            return self.has_fingerprint(file.fingerprint)
        return file.uri in self.sha256s and file.sha256() in self.sha256s[file.uri]

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


def skip_known_files(listed: Iterable[SourceFile], history: SourceHistory, threads: int) -> Iterator[SourceFile]:
    """Files that no earlier batch took with these bytes, in their order and in constant memory.

    Args:
        listed: files of all sources.
        history: of earlier batches; changed captions are noted there.
        threads: in which local files are hashed, a count.
    """
    with ThreadPoolExecutor(threads) as pool:
        listing = iter(listed)
        while block := list(itertools.islice(listing, BLOCK_FILES)):
            answers: list[bool | Future[bool]] = [
                pool.submit(history.has, file)
                if not file.fingerprint and file.uri in history.sha256s
                else history.has(file)
                for file in block
            ]
            for file, answer in zip(block, answers, strict=True):
                if answer.result() if isinstance(answer, Future) else answer:
                    history.note_caption(file)
                else:
                    yield file
