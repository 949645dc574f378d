"""Which source files earlier batches have seen, so that they are neither decoded nor fetched again."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tasks.ingest.inspect import BLOCK_FILES
from tasks.sources import SourceFile
from tasks.store import Store

SHOWN_CHANGES = 10  # of captions that a source has changed, by name


def short_hash(text: str) -> int:
    """63 bits of a text, for sets of a million."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


@dataclass
class Seen:
    """What earlier batches have looked at; names, fingerprints and captions as `short_hash`, so that a million take
    some 200 MB.

    Attributes:
        sha256s: source_uri -> of the bytes that it had, of files without a fingerprint.
        fingerprints: of the others.
        captions: source_uri -> caption that a kept image was published with ('' where the source said nothing).
        changed: files seen again whose source tells another caption now: uri -> that caption; the first few.
        changed_count: how many there were.
    """

    sha256s: dict[str, set[str]] = field(default_factory=dict)
    fingerprints: set[int] = field(default_factory=set)
    captions: dict[int, int] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    changed_count: int = 0

    @classmethod
    def before(cls, store: Store, batch: str) -> Seen:
        """All that earlier batches kept or dropped, but what a later batch is to try again."""
        seen = cls()
        images = store.read_table(
            "images", ["source_uri", "source_sha256", "batch", "source_fingerprint", "caption", "caption_source"]
        )
        for block in images.to_batches(max_chunksize=10_000):
            for uri, sha256, of, fingerprint, caption, caption_source in zip(*block.to_pydict().values(), strict=True):
                if of != batch:
                    seen.add(uri, sha256, fingerprint or "")
                    seen.captions[short_hash(uri)] = short_hash(caption or "" if caption_source == "source" else "")
        for block in store.read_dropped("ingest").select(["key", "detail", "batch"]).to_batches(max_chunksize=10_000):
            for uri, detail, of in zip(*block.to_pydict().values(), strict=True):
                if of != batch and (found := json.loads(detail)).get("is_lasting", True):
                    seen.add(uri, found.get("sha256", ""), found.get("fingerprint", ""))
        return seen

    def add(self, uri: str, sha256: str, fingerprint: str) -> None:
        """One row."""
        if fingerprint:
            self.fingerprints.add(short_hash(fingerprint))
        else:
            self.sha256s.setdefault(uri, set()).add(sha256)

    def has_fingerprint(self, fingerprint: str) -> bool:
        """Whether a row of an earlier batch has this fingerprint."""
        return short_hash(fingerprint) in self.fingerprints

    def has(self, file: SourceFile) -> bool:
        """Whether the file was seen with the bytes that it has now. Only a file whose name was seen is hashed."""
        if file.fingerprint:
            return self.has_fingerprint(file.fingerprint)
        return file.uri in self.sha256s and file.sha256() in self.sha256s[file.uri]

    def note_caption(self, file: SourceFile) -> None:
        """Count a file that is seen again, the same but for a caption that its source did not tell, or told otherwise,
        when it was published.
        """
        if (
            file.label.caption
            and self.captions.get(short_hash(file.uri), known := short_hash(file.label.caption)) != known
        ):
            self.changed_count += 1
            if len(self.changed) < SHOWN_CHANGES:
                self.changed[file.uri] = file.label.caption


def new_files(listed: Iterable[SourceFile], seen: Seen, threads: int) -> Iterator[SourceFile]:
    """Files that no earlier batch has seen with these bytes, in their order and in constant memory."""
    with ThreadPoolExecutor(threads) as pool:
        listing = iter(listed)
        while block := list(itertools.islice(listing, BLOCK_FILES)):
            asked = [
                seen.has(file) if file.fingerprint or file.uri not in seen.sha256s else pool.submit(seen.has, file)
                for file in block
            ]
            for file, answer in zip(block, asked, strict=True):
                if answer.result() if isinstance(answer, Future) else answer:
                    seen.note_caption(file)
                else:
                    yield file
