"""What a batch has listed and inspected so far, on the runs' shared volume, until its tables are written.

    .run/ingest/<batch>/listing/<lane>/<nnnnnnnn>.parquet       listed files, from that number in the lane on
    .run/ingest/<batch>/listing.json                            last: the listing is complete
    .run/ingest/<batch>/inspected/<lane>/<first>-<last>.parquet what became of the files with these numbers in the lane

Each file is complete when it exists. Inspected files carry a hash of their name and fingerprint, so that a result is
never taken for another file's. Source files are stored as pickles that only classes and functions of the sources
answer; they are written and read by the same run's own processes. Lanes: tasks/ingest/lanes.py.
"""

from __future__ import annotations

import heapq
import io
import json
import pickle
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError
from tasks.ingest.inspect import InspectedFile
from tasks.ingest.lanes import LANES, PlacedFile
from tasks.ingest.refusals import is_refused
from tasks.ingest.rows import short_hash
from tasks.ingest.rules import NormalizedImage, Rejection
from tasks.sources.files import SourceFile
from tasks.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_FILES = 256  # most files in one file of a lane's listing
BLOCK_BYTES = 4 << 20  # most bytes of them, where listed files carry their content
SEGMENT_FILES = 64  # most results in one file
SEGMENT_BYTES = 16 << 20
SEGMENT_AGE_S = 30.0  # a killed process loses what it has inspected in this time, at most
READ_ROWS = 8  # results of a lane in memory at a time
PICKLED_MODULES = ("tasks.sources.", "tasks.config.")
PICKLED_NAMES = {
    ("functools", "partial"),
    ("copyreg", "__newobj__"),
    ("copyreg", "_reconstructor"),
    ("pathlib", "PosixPath"),
    ("builtins", "object"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
}


class SourceFileUnpickler(pickle.Unpickler):
    """Reads pickled source files; refuses everything but classes and functions of the sources and what holds them."""

    def find_class(self, module: str, name: str) -> Any:
        """The named object, if a listed file may consist of it.

        Raises:
            DataError: it may not.
        """
        if (module, name) not in PICKLED_NAMES and not f"{module}.".startswith(PICKLED_MODULES):
            raise DataError(f"ingest: a listed file names {module}.{name}; expected parts of tasks.sources; list again")
        return super().find_class(module, name)


def load_file(content: bytes) -> SourceFile:
    """A listed file from its pickle."""
    file = SourceFileUnpickler(io.BytesIO(content)).load()
    assert isinstance(file, SourceFile)
    return file


def identity(file: SourceFile) -> int:
    """63 bits that tell whether a result belongs to a file."""
    return short_hash(f"{file.uri}\0{file.fingerprint}")


@dataclass
class Listing:
    """What listing.json says.

    Attributes:
        count: files listed.
        is_whole: whether the sources have no more; False where a limit ended the listing.
        lane_counts: files of each lane.
        changed_count, changed_captions: see SourceHistory.
        counts: of the sources' captions and rows, as JSON.
    """

    count: int = 0
    is_whole: bool = True
    lane_counts: list[int] = field(default_factory=lambda: [0] * LANES)
    changed_count: int = 0
    changed_captions: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)


class Staging:
    """The intermediate files of one batch."""

    def __init__(self, store: Store, batch: str) -> None:
        self.store, self.folder = store, store.folder(".run", "ingest", batch)

    def remove(self) -> None:
        """Delete all of it: the batch's tables are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- listing ------------------------------------------------------------------------------------------------------

    def read_listing(self) -> Listing | None:
        """What is listed; None before the listing is complete."""
        path = self.folder / "listing.json"
        return Listing(**json.loads(path.read_text())) if path.exists() else None

    def write_listing(self, listing: Listing) -> None:
        """Mark the listing as complete."""
        self.store.write_bytes(self.folder / "listing.json", json.dumps(listing.__dict__).encode())

    def listed(self, lanes: list[int]) -> Iterator[PlacedFile]:
        """Listed files of these lanes, in order of the listing; a block of each lane in memory."""
        merged = heapq.merge(*(self._listed_lane(lane) for lane in lanes))
        for position, lane, number, content in merged:
            yield PlacedFile(load_file(content), lane, number, position)

    def _listed_lane(self, lane: int) -> Iterator[tuple[int, int, int, bytes]]:
        import pyarrow.parquet as pq

        number = 0
        for path in sorted((self.folder / "listing" / f"{lane:02d}").glob("*.parquet")):
            rows = pq.read_table(path).to_pydict()
            for position, content in zip(rows["position"], rows["file"], strict=True):
                yield position, lane, number, content
                number += 1


class ListingWriter:
    """Writes the listing of a batch, lane by lane in blocks; `close` writes the rest and the mark."""

    def __init__(self, staging: Staging) -> None:
        shutil.rmtree(staging.folder / "listing", ignore_errors=True)  # of a listing that was not completed
        self.staging, self.listing = staging, Listing()
        self._blocks: list[list[tuple[int, bytes]]] = [[] for _ in range(LANES)]
        self._bytes = [0] * LANES

    def add(self, placed: PlacedFile) -> None:
        """Append a file."""
        content = pickle.dumps(placed.file)
        self._blocks[placed.lane].append((placed.position, content))
        self._bytes[placed.lane] += len(content)
        self.listing.count += 1
        if len(self._blocks[placed.lane]) >= BLOCK_FILES or self._bytes[placed.lane] >= BLOCK_BYTES:
            self._write(placed.lane)

    def _write(self, lane: int) -> None:
        block, first = self._blocks[lane], self.listing.lane_counts[lane]
        if not block:
            return
        columns: dict[str, list[Any]] = {
            "position": [position for position, _ in block],
            "file": [content for _, content in block],
        }
        path = self.staging.folder / "listing" / f"{lane:02d}" / f"{first:08d}.parquet"
        self.staging.store.write_bytes(path, parquet_bytes(columns, "zstd"))
        self.listing.lane_counts[lane] += len(block)
        self._blocks[lane], self._bytes[lane] = [], 0

    def close(self) -> None:
        """Write what is left, and the mark."""
        for lane in range(LANES):
            self._write(lane)
        self.staging.write_listing(self.listing)


def parquet_bytes(columns: dict[str, list[Any]], compression: str) -> bytes:
    """Columns as a Parquet file in small row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression=compression, row_group_size=READ_ROWS)
    return out.getvalue()


# --- inspected files --------------------------------------------------------------------------------------------------


def result_row(number: int, inspected: InspectedFile) -> dict[str, Any]:
    """One inspected file as a row."""
    result = inspected.result
    is_image = isinstance(result, NormalizedImage)
    fields = result.to_json() if isinstance(result, NormalizedImage) else result.__dict__
    return {
        "number": number,
        "identity": identity(inspected.file),
        "sha256": inspected.sha256,
        "robots": inspected.robots,
        "is_lasting": inspected.is_lasting,
        "is_decoded": inspected.is_decoded,
        "is_image": is_image,
        "fields": json.dumps(fields),
        "content": result.content if isinstance(result, NormalizedImage) else b"",
    }


def inspected_from(file: SourceFile, row: dict[str, Any]) -> InspectedFile:
    """The reverse of `result_row`."""
    fields = json.loads(row["fields"])
    result = NormalizedImage.from_json(row["content"], fields) if row["is_image"] else Rejection(**fields)
    return InspectedFile(file, row["sha256"], result, row["robots"], row["is_lasting"], row["is_decoded"])


def segment_ranges(folder: Path) -> list[tuple[int, int, Path]]:
    """(first, last, path) of a lane's results, in order."""
    ranges = []
    for path in folder.glob("*.parquet"):
        first, _, last = path.stem.partition("-")
        ranges.append((int(first), int(last), path))
    return sorted(ranges)


class InspectedLane:
    """Reads the results of one lane, in order of their numbers."""

    def __init__(self, folder: Path) -> None:
        self._segments = iter(segment_ranges(folder))
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._row: dict[str, Any] | None = None
        self._last = -1  # of the current segment
        self._is_over = False

    def take(self, placed: PlacedFile) -> InspectedFile | None:
        """The file's result; None where there is none. Numbers must rise from call to call."""
        while not self._is_over and (self._row is None or self._row["number"] < placed.number):
            self._row = next(self._rows, None)
            if self._row is None:
                self._open_next(placed.number)
        if self._row is None or self._row["number"] != placed.number or self._row["identity"] != identity(placed.file):
            return None
        return inspected_from(placed.file, self._row)

    def _open_next(self, number: int) -> None:
        import pyarrow.parquet as pq

        for _, last, path in self._segments:
            if last >= number:
                self._rows = (row for block in self._batches(pq, path) for row in block.to_pylist())
                return
        self._is_over = True

    @staticmethod
    def _batches(pq: Any, path: Path) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(READ_ROWS)


class InspectedFiles:
    """All results of a batch: reads those of earlier calls and appends new ones."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self._lanes: dict[int, InspectedLane] = {}
        self._rows: dict[int, list[dict[str, Any]]] = {}
        self._bytes: dict[int, int] = {}
        self._written_s = time.monotonic()

    def _folder(self, lane: int) -> Path:
        return self.staging.folder / "inspected" / f"{lane:02d}"

    def numbers_done(self, lane: int) -> set[int]:
        """Numbers of the lane's files that have a result."""
        return {n for first, last, _ in segment_ranges(self._folder(lane)) for n in range(first, last + 1)}

    def take(self, placed: PlacedFile) -> InspectedFile | None:
        """The result that an earlier call has stored for this file, if any; in order of the listing."""
        if placed.lane not in self._lanes:
            self._lanes[placed.lane] = InspectedLane(self._folder(placed.lane))
        return self._lanes[placed.lane].take(placed)

    def add(self, placed: PlacedFile, inspected: InspectedFile) -> None:
        """Store a result; it is on the disk after SEGMENT_AGE_S at the latest, or with `flush`.

        What a bucket refused is not stored: the call that follows a new credential asks again.
        """
        if is_refused(inspected):
            return
        lane = placed.lane
        rows = self._rows.setdefault(lane, [])
        if rows and rows[-1]["number"] != placed.number - 1:
            self._write(lane)
            rows = self._rows.setdefault(lane, [])
        rows.append(result_row(placed.number, inspected))
        self._bytes[lane] = self._bytes.get(lane, 0) + len(rows[-1]["content"])
        if len(rows) >= SEGMENT_FILES or self._bytes[lane] >= SEGMENT_BYTES:
            self._write(lane)
        if time.monotonic() - self._written_s > SEGMENT_AGE_S:
            self.flush()

    def _write(self, lane: int) -> None:
        rows = self._rows.pop(lane, [])
        self._bytes[lane] = 0
        if rows:
            path = self._folder(lane) / f"{rows[0]['number']:08d}-{rows[-1]['number']:08d}.parquet"
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            self.staging.store.write_bytes(path, parquet_bytes(columns, "none"))

    def flush(self) -> None:
        """Write all results that are in memory."""
        for lane in list(self._rows):
            self._write(lane)
        self._written_s = time.monotonic()
