"""Write one batch: image shards, the dropped rows, and last the images table, which marks the batch as done.

Rows are written as they come, so that a batch of a million images takes no memory. A failure leaves no table behind;
the next run starts the batch again and writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tasks.config import Params
from tasks.errors import DataError
from tasks.fingerprints.takedown import match_limits, withdrawn_ids
from tasks.fingerprints.takedown_list import TakedownList
from tasks.ingest.dedup import Duplicate, DuplicateIndex, damaged_note, limited_note
from tasks.ingest.history import SourceHistory
from tasks.ingest.inspect import InspectedFile, exclusion_reason, read_exclusion_lists
from tasks.ingest.kept_images import KeptImages
from tasks.ingest.lanes import PlacedFile
from tasks.ingest.progress import Progress
from tasks.ingest.refusals import Refusals
from tasks.ingest.rows import TAKEN_DOWN, StoredImage, Tries, dropped_row, image_row, shard_metadata
from tasks.ingest.rules import NormalizedImage, Rejection
from tasks.ingest.shards import ShardWriter
from tasks.names import batch_name, run_date
from tasks.store import Store
from tasks.store.tables import TableWriter

log = logging.getLogger(__name__)


def changes_path(store: Store, batch: str) -> Path:
    """Where a batch records changed captions for its report; never versioned."""
    return store.folder(".run", "ingest", f"{batch}.json")


def listing_path(store: Store, batch: str) -> Path:
    """Where a batch records what the listing of its sources counted; never versioned."""
    return store.folder(".run", "ingest", f"{batch}.listing.json")


def limited_path(store: Store, batch: str) -> Path:
    """Where a batch records how many images were not compared with all of their candidates; never versioned."""
    return store.folder(".run", "ingest", f"{batch}.limited.json")


def changed_captions_note(count: int, first: dict[str, str]) -> str:
    """One sentence about captions that their source has changed since they were published.

    Args:
        count: images with another caption now.
        first: source_uri -> that caption, of the first few.
    """
    names = ", ".join(f"{uri} ('{caption[:60]}')" for uri, caption in first.items())
    return (
        f"{count} images of earlier batches have another caption in their source now: {names}"
        f"{' ...' if count > len(first) else ''}. They keep the caption that they were published with, because "
        "vectors, pairs and texts were made from it. A new dataset takes the new captions"
    )


class BatchWriter:
    """Decides about each inspected file, keeps or drops it, and writes both; a context manager.

    Without an error it publishes the tables on exit; with one it discards them.
    """

    def __init__(
        self, params: Params, store: Store, history: SourceHistory, takedown: TakedownList | None = None
    ) -> None:
        """Load the index of all kept images, and the exclusion lists.

        Args:
            params: of the run.
            store: of the run.
            history: of earlier batches.
            takedown: the takedown list; counts there what it refuses.
        Raises:
            ConfigError: a list is unreadable.
        """
        self.config, self.store, self.history = params.ingest, store, history
        self.batch, self.date = batch_name(params), run_date(params)
        self.limit = params.open_run.limit
        self._files_read = 0
        self._takedown, self._limits = takedown, match_limits(params)
        self._withdrawn = withdrawn_ids(store)
        self._lists = read_exclusion_lists(self.config, store)
        self._shards = ShardWriter(store, self.batch, self.config.shard_images)
        self._kept = KeptImages(store, self._shards)
        self.index = DuplicateIndex(
            store.read_table("images", ["image_id", "source_sha256", "phash", "thumbnail"]).to_pydict(),
            hash_distance_bits=self.config.hash_distance_bits,
            thumbnail_max=self.config.thumbnail_distance,
            crop_margin=self.config.crop_margin,
            read_kept=self._kept.read,
        )
        self._images_per_shard: Counter[str] = Counter()
        self._path = store.table_path("images", self.batch)
        self._images = TableWriter(self._path, "images")
        self._dropped = TableWriter(store.dropped_path("ingest", self.batch), "dropped")
        self._progress = Progress()
        self._refusals = Refusals(history.known_sources, [source.name for source in self.config.sources])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        if error is not None:
            self._discard()
            return
        try:
            self._publish()
        except BaseException:
            self._discard()
            raise

    def count_read(self, files: Iterable[PlacedFile]) -> Iterator[PlacedFile]:
        """The same files, counted as they are read."""
        for file in files:
            self._files_read += 1
            yield file

    def wanted(self) -> int:
        """How many images the batch may still take, a count."""
        return sys.maxsize if self.limit is None else self.limit - self._images.count

    def add(self, inspected: InspectedFile) -> None:
        """Keep or drop one file; files must come in the order of their sources."""
        image_id = ""
        is_source_refused = self._refusals.count(inspected)
        if isinstance(inspected.result, NormalizedImage):
            image_id = hashlib.sha256(inspected.result.content).hexdigest()
        rejection, duplicate = self._decide(inspected, image_id)
        self._progress.count(rejection.reason if rejection else None)
        if rejection is not None:
            self._drop(inspected, rejection, duplicate, is_source_refused)
        else:
            self._keep(inspected, image_id)

    def _decide(self, inspected: InspectedFile, image_id: str) -> tuple[Rejection | None, Duplicate | None]:
        """Why the file is dropped, and which kept image it repeats; None for each where there is none."""
        result = inspected.result
        if isinstance(result, Rejection):
            copy_of = self.index.ids_by_source_sha256.get(inspected.sha256, "") if result.reason == "duplicate" else ""
            return result, Duplicate(result.reason, copy_of) if copy_of else None
        if self._is_taken_down(inspected, image_id, result):
            return Rejection(TAKEN_DOWN), None
        if rejection := exclusion_reason(inspected, image_id, self._lists, self.config):
            return rejection, None
        if duplicate := self.index.find(inspected.sha256, image_id, result):
            return Rejection(duplicate.reason), duplicate
        return None, None

    def _is_taken_down(self, inspected: InspectedFile, image_id: str, image: NormalizedImage) -> bool:
        """Whether the image was withdrawn before, or the takedown list names it, its file or what it is a copy of."""
        if image_id in self._withdrawn:
            return True
        if self._takedown is None:
            return False
        number = self._takedown.find_exact((inspected.sha256, image_id), inspected.file.uri)
        if number is None:
            number, _ = self._takedown.find_alike(image.phash, image.thumbnail, self._limits)
        if number is not None:
            self._takedown.refused[number] += 1
        return number is not None

    def _drop(
        self, inspected: InspectedFile, rejection: Rejection, duplicate: Duplicate | None, is_source_refused: bool
    ) -> None:
        if rejection.reason == "duplicate":
            self.history.note_caption(inspected.file)
        copy_of, also = (duplicate.image_id, duplicate.also) if duplicate else ("", ())
        count = self.history.tries(inspected.file) + (not is_source_refused)
        tries = Tries(count, self.config.max_tries, is_counted=not is_source_refused)
        self._dropped.add(dropped_row(inspected, self.batch, rejection, copy_of, also, tries))

    def _keep(self, inspected: InspectedFile, image_id: str) -> None:
        image = inspected.result
        assert isinstance(image, NormalizedImage)
        metadata = shard_metadata(inspected.file, image_id)
        stored = StoredImage(image_id, *self._shards.add(image_id, image.content, metadata))
        self.index.add(inspected.sha256, image_id, image)
        self._kept.add(stored.shard, stored.offset_bytes, len(image.content))
        self._images_per_shard[stored.shard] += 1
        self._images.add(image_row(inspected, stored, self.batch, self.date))

    def _publish(self) -> None:
        """Finish the shards and the tables.

        Raises:
            DataError: kept and dropped rows are not as many as the files (a bug; nothing is published).
            ConfigError, TransientError: a bucket gives none of its objects, and no other source gives any file.
        """
        rows, is_full = self._images.count + self._dropped.count, self.wanted() <= 0
        if rows > self._files_read or (rows < self._files_read and not is_full):
            raise DataError(
                f"ingest: {self._files_read} files read, {self._images.count} kept and {self._dropped.count} dropped; "
                "expected every file as one row; this is a bug, report it with the run's log"
            )
        if not is_full:
            for sentence in self._refusals.check():
                self.history.listing.note(sentence)
        self._shards.close()
        self._record_changed_captions()
        if count := self.index.limited:
            self.store.write_bytes(limited_path(self.store, self.batch), json.dumps(count).encode())
            log.warning("ingest: %s", limited_note(count))
        if damaged := list(self.index.damaged):
            self.history.listing.note(damaged_note(damaged))
        self.store.write_bytes(listing_path(self.store, self.batch), self.history.listing.to_json().encode())
        for sentence in self.history.listing.sentences():
            log.info("ingest: %s", sentence)
        self._dropped.close()
        self._images.close()  # last: it marks the batch as done
        log.info("%s, %s", self._progress, self._path)
        for shard, count in self._images_per_shard.items():
            log.info("ingest: %s holds %d images", shard, count)

    def _record_changed_captions(self) -> None:
        count, first = self.history.changed_count, self.history.changed_captions
        if count:
            record = json.dumps({"count": count, "first": first}).encode()
            self.store.write_bytes(changes_path(self.store, self.batch), record)
            log.warning("ingest: %s", changed_captions_note(count, first))

    def _discard(self) -> None:
        self._dropped.discard()
        self._images.discard()
