"""The records of a further dataset, read by their number: JSONL, Parquet, and what the library `datasets` loads.

Of JSONL an index is written once: an Arrow file with the place of each line, memory-mapped, 24 bytes a record. Lines
end at a newline byte and nowhere else: a line may hold U+2028 or a carriage return. Parquet and the library's own
datasets are read by `datasets`, which keeps them as memory-mapped Arrow. So a process holds no record that it does not
use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from tasks.config import MixedDatasetConfig
from tasks.errors import ConfigError
from tasks.locks import exclusive, lock_wait_s
from tasks.store.atomic import atomic_write

SCAN_BYTES = 1 << 23  # read at once while newlines are looked for
INDEX_ROWS = 1 << 20  # of one batch of the Arrow file
INDEX_SCHEMA = pa.schema([("file", pa.int64()), ("start_byte", pa.int64()), ("size_bytes", pa.int64())])
BLANK_BYTES = 64  # a line of at most so many bytes is looked at: of blanks alone it is no record


class Records(Protocol):
    """Records by their number.

    Attributes:
        identity: changes when the records do.
    """

    identity: str

    def __len__(self) -> int:
        """Records, a count."""

    def __getitem__(self, number: int) -> dict[str, Any] | str:
        """A record; of a damaged one, what is wrong."""

    def where(self, number: int) -> str:
        """Where a record stands, for messages."""


class JsonlRecords:
    """Lines of JSONL files. Implements `Records`."""

    def __init__(self, files: list[Path], index_folder: Path | None = None) -> None:
        """Find the lines.

        Args:
            files: in order.
            index_folder: where the index is kept; in memory where None.
        """
        self.files, self._descriptors = files, dict[int, int]()
        states = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        self.identity = hashlib.sha256(json.dumps(states).encode()).hexdigest()
        self._batches = self._open(index_folder)
        self._ends = np.cumsum([0, *(len(b) for b in self._batches)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> dict[str, Any] | str:
        file, start, size = self._place(number)
        if file not in self._descriptors:
            self._descriptors[file] = os.open(self.files[file], os.O_RDONLY)
        line = os.pread(self._descriptors[file], size, start)
        try:
            record = json.loads(line.decode("utf-8", errors="replace"))
        except (ValueError, RecursionError) as error:
            return f"not JSON ({error})"
        return record if isinstance(record, dict) else f"expected an object, found {type(record).__name__}"

    def where(self, number: int) -> str:
        """<file>:<line>, lines from 1."""
        file, start, _ = self._place(number)
        with open(self.files[file], "rb") as content:
            line = 1 + sum(block.count(b"\n") for block in _blocks(content.read, start))
        return f"{self.files[file]}:{line}"

    def __del__(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def _place(self, number: int) -> tuple[int, int, int]:
        """File, first byte and size of a line."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        n = int(np.searchsorted(self._ends, number, "right")) - 1
        row = number - int(self._ends[n])
        file, start, size = (int(self._batches[n].column(c)[row].as_py()) for c in range(3))
        return file, start, size

    def _open(self, folder: Path | None) -> list[Any]:
        """Batches of the index: memory-mapped from its file, which is written where it is missing."""
        if folder is None:
            return list(index_lines(self.files))
        path = folder / f"{self.identity[:16]}.arrow"
        with exclusive(folder / ".lock", lock_wait_s(), f"{path}: another process writes this index"):
            if not path.is_file():
                write_index(self.files, path)
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return [reader.get_batch(n) for n in range(reader.num_record_batches)]


def write_index(files: list[Path], path: Path) -> None:
    """Write the index of the lines of files, atomically; `INDEX_ROWS` rows are held."""
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, INDEX_SCHEMA) as writer,
    ):
        for batch in index_lines(files):
            writer.write_batch(batch)


def index_lines(files: list[Path]) -> Iterator[Any]:
    """Record batches of the index of all lines but blank ones, `INDEX_ROWS` each but the last."""
    waiting: list[np.ndarray] = []  # each (3, n)
    rows = 0
    for number, file in enumerate(files):
        for starts, sizes in line_places(file):
            waiting.append(np.stack([np.full(len(starts), number), starts, sizes]))
            rows += len(starts)
            while rows >= INDEX_ROWS:
                whole = np.concatenate(waiting, axis=1)
                yield pa.record_batch(list(whole[:, :INDEX_ROWS]), schema=INDEX_SCHEMA)
                waiting, rows = [whole[:, INDEX_ROWS:]], rows - INDEX_ROWS
    if rows:
        yield pa.record_batch(list(np.concatenate(waiting, axis=1)), schema=INDEX_SCHEMA)


def line_places(file: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(n,) int64 first byte and (n,) int64 size of the lines of a file, block by block; blank lines are left out."""
    line_start = position = 0
    with open(file, "rb") as content:
        while block := content.read(SCAN_BYTES):
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + position
            position += len(block)
            if len(ends):
                starts = np.concatenate([[line_start], ends[:-1] + 1])
                line_start = int(ends[-1]) + 1
                yield _without_blank(content.fileno(), starts, ends - starts)
        if position > line_start:
            yield _without_blank(content.fileno(), np.array([line_start]), np.array([position - line_start]))


def _without_blank(descriptor: int, starts: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = sizes > 0
    for n in np.flatnonzero(kept & (sizes <= BLANK_BYTES)):
        kept[n] = bool(os.pread(descriptor, int(sizes[n]), int(starts[n])).strip())
    return starts[kept], sizes[kept]


def _blocks(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes, in blocks."""
    while size > 0 and (block := read(min(SCAN_BYTES, size))):
        size -= len(block)
        yield block


class TableRecords:
    """Rows of a dataset of the library `datasets`. Implements `Records`."""

    def __init__(self, table: Any, name: str) -> None:
        """Wrap a `datasets.Dataset`; its images, where it has any, are not decoded."""
        self._table, self._name = table, name
        self.columns: list[str] = table.column_names
        self.identity = f"{table._fingerprint}:{len(table)}"

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> dict[str, Any] | str:
        row: dict[str, Any] = self._table[number]
        return row

    def where(self, number: int) -> str:
        """<name>, row <number>, from 0."""
        return f"{self._name}, row {number}"


def open_records(config: MixedDatasetConfig, index_folder: Path | None = None) -> Records:
    """The records of one of `train.datasets`.

    Args:
        config: `split` asks for `datasets.load_dataset`; else `path` is a file, a folder of them, or a folder of
            `Dataset.save_to_disk`.
        index_folder: where indices and Arrow copies are kept; in memory, or in the library's own cache, where None.
    Raises:
        ConfigError: nothing there, or nothing that the library loads.
    """
    path = Path(config.path)
    if config.split is not None and (files := sorted((path / (config.subset or "")).glob(f"{config.split}-*.parquet"))):
        return _read_parquet(files, config, index_folder)
    if config.split is not None or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _load_table(config)
    for suffix in (".jsonl", ".parquet"):
        files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
        if not files or not all(f.is_file() for f in files):
            continue
        if suffix == ".jsonl" and not path.name.endswith(".parquet"):
            return JsonlRecords(files, index_folder)
        return _read_parquet(files, config, index_folder)
    raise ConfigError(
        f"{path}: expected a JSONL file or a folder of them, Parquet or a folder of that, or a dataset of the library "
        "`datasets` with its `split` ('train.datasets')"
    )


def _read_parquet(files: list[Path], config: MixedDatasetConfig, index_folder: Path | None) -> TableRecords:
    import datasets

    datasets.disable_progress_bars()
    cache = None if index_folder is None else str(index_folder)
    try:
        table = datasets.Dataset.from_parquet([str(f) for f in files], cache_dir=cache, keep_in_memory=cache is None)
    except Exception as error:  # the library's errors have no common class
        raise ConfigError(f"{config.path}: not Parquet that `datasets` reads ({error})") from error
    return TableRecords(table, config.path)


def _load_table(config: MixedDatasetConfig) -> TableRecords:
    import datasets

    datasets.disable_progress_bars()
    path = Path(config.path)
    is_saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        if is_saved:
            table = datasets.load_from_disk(config.path)
            table = table if isinstance(table, datasets.Dataset) else table[config.split or "train"]
        else:
            table = datasets.load_dataset(config.path, config.subset, split=config.split)
    except Exception as error:  # the library's errors have no common class
        raise ConfigError(
            f"'train.datasets' {config.name}: `datasets` does not load {config.path} (subset {config.subset}, split "
            f"{config.split}): {error}; give the folder of Parquet files as `path`, or correct these"
        ) from error
    return TableRecords(table, f"{config.path} {config.subset or ''} {config.split or ''}".strip())
