"""The store: where tables and images lie below a root, and in what format.

Everything is append-only: a run adds files named by its batch (and chunk), written under a temporary name and renamed,
so a file that exists is complete. Files of earlier versions are never written into (DVC's hard links are the cache's).

    data/images/<batch>.parquet                           table of images; in older versions their tars, too
    data/shards/<batch>-<nnnnn>.tar                       images (WebDataset)
    data/captions/<batch>.parquet                         captions written by recaption
    data/embeddings/<encoder>/<shard>.npy, .parquet       float16 unit rows, and ids in the same order
    data/neighbours/<encoder>/<batch>-<chunk>.parquet     mined candidates; in both, next/: of the encoder to follow
    data/pairs/<batch>.parquet
    data/captioned/<batch>-<chunk>.parquet                descriptions and instructions
    data/triplets/<batch>-<chunk>.parquet                 accepted triplets; -reviewed: by people alone
    data/dropped/<stage>/<batch>[-<chunk>].parquet        dropped rows, with their reason
    data/quarantine/<table>/<batch>.parquet               which rows broke a rule of a gate, and which rule
    data/quarantine/<table>/rows/<batch>.parquet          those rows, taken out of the table
    models/candidate, models/promoted, reports/           checkpoints; evaluation, validation, gallery
    .run/reports/<stage>[@part].json                      StageReports of this run (not versioned)
"""

from __future__ import annotations

import glob
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import DataError
from tasks.records import LATER_COLUMNS, StageReport, schemas
from tasks.store import atomic
from tasks.store.shards import shard_path
from tasks.store.tables import ROW_GROUP_ROWS, to_parquet
from tasks.store.vectors import EmbeddedCorpus, MappedRows

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from PIL.Image import Image

TABLES = ("images", "captions", "pairs", "captioned", "triplets")


class Store:
    """Tables and images below one root: a run's worktree, or a researcher's clone."""

    def __init__(self, root: Path | str = ".") -> None:
        self.root = Path(root)
        self._files: dict[str, Any] = {}
        self._locations: dict[str, tuple[str, int, int]] | None = None

    # --- paths --------------------------------------------------------------------------------------------------

    def folder(self, *parts: str) -> Path:
        """`root/part/...`; not created."""
        return self.root.joinpath(*parts)

    def table_files(self, table: str) -> list[Path]:
        """All files of a table, by name (so by batch, then chunk)."""
        return sorted(self.folder("data", table).glob("*.parquet"))

    def batch_files(self, table: str, batch: str) -> list[Path]:
        """The files of a table that one batch wrote, by name."""
        return [f for f in self.table_files(table) if f.stem == batch or f.stem.rpartition("-")[0] == batch]

    def table_path(self, table: str, batch: str, chunk: int | None = None) -> Path:
        """Where a batch's rows (or one chunk of them) of a table lie."""
        name = batch if chunk is None else f"{batch}-{chunk:05d}"
        return self.folder("data", table, f"{name}.parquet")

    def reviewed_path(self, batch: str) -> Path:
        """Where a batch's triplets lie that the judge rejected and people judged right (tasks/judge/restored.py)."""
        return self.folder("data", "triplets", f"{batch}-reviewed.parquet")

    def dropped_path(self, stage: str, batch: str, chunk: int | None = None) -> Path:
        """Where a stage's dropped rows of a batch lie."""
        name = batch if chunk is None else f"{batch}-{chunk:05d}"
        return self.folder("data", "dropped", stage, f"{name}.parquet")

    # --- tables -------------------------------------------------------------------------------------------------

    def write(self, path: Path, rows: Sequence[dict[str, Any]] | pa.Table, schema: str) -> int:
        """Write rows as Parquet, atomically; byte-identical for equal rows. Returns the row count."""
        import pyarrow as pa

        wanted = schemas()[schema]
        if isinstance(rows, pa.Table):
            table = rows.select(wanted.names).cast(wanted)
        else:
            table = pa.Table.from_pylist(list(rows), schema=wanted)
        self.write_bytes(path, to_parquet(table))
        return table.num_rows

    def write_bytes(self, path: Path, content: bytes) -> None:
        """Write a whole file atomically: a reader sees the old file or the new one, never half of one."""
        atomic.write_bytes(path, content)

    def read(
        self,
        paths: Path | Iterable[Path],
        schema: str,
        columns: list[str] | None = None,
        *,
        encoded: Sequence[str] = (),
    ) -> pa.Table:
        """Read Parquet files as one table; no files give an empty table of that schema.

        Args:
            paths: files.
            schema: name of the table's schema.
            columns: to read; all when None.
            encoded: columns of strings to be read as dictionaries: a third of the time and a tenth of the memory where
                the strings repeat (tasks/store/id_order.py).
        Raises:
            DataError: a file cannot be read as that table.
        """
        import pyarrow as pa

        wanted = _wanted_schema(schema, columns, encoded)
        files = [paths] if isinstance(paths, Path) else list(paths)
        tables = [table for path in files for table in _read_blocks(path, schema, wanted, None, encoded)]
        return pa.concat_tables(tables) if tables else wanted.empty_table()

    def iter_blocks(
        self,
        paths: Path | Iterable[Path],
        schema: str,
        columns: list[str] | None = None,
        *,
        rows: int,
        encoded: Sequence[str] = (),
    ) -> Iterator[pa.Table]:
        """The rows of Parquet files as tables of about `rows` rows: of whole row groups, at least one.

        Other arguments and errors as of `read`.
        """
        wanted = _wanted_schema(schema, columns, encoded)
        for path in [paths] if isinstance(paths, Path) else paths:
            yield from _read_blocks(path, schema, wanted, rows, encoded)

    def count_rows(self, path: Path, schema: str) -> int:
        """How many rows a Parquet file has, by its footer.

        Raises:
            DataError: the file cannot be read as that table.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return int(pq.read_metadata(path).num_rows)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(path, schema, error) from error

    def read_table(self, table: str, columns: list[str] | None = None, batch: str | None = None) -> pa.Table:
        """All rows of a table (or of one batch), in order of file name."""
        files = self.table_files(table) if batch is None else self.batch_files(table, batch)
        return self.read(files, table, columns)

    def read_dropped(
        self, stage: str | None = None, batch: str | None = None, columns: list[str] | None = None
    ) -> pa.Table:
        """Dropped rows of a stage (all stages when None)."""
        return self.read(self.dropped_files(stage, batch), "dropped", columns)

    def dropped_files(self, stage: str | None = None, batch: str | None = None) -> list[Path]:
        """Files of dropped rows of a stage (all stages when None), of one batch or all, by name."""
        files = sorted(self.folder("data", "dropped").glob(f"{stage or '*'}/*.parquet"))
        return [f for f in files if batch is None or f.stem == batch or f.stem.rpartition("-")[0] == batch]

    def count_drops(self, stage: str | None = None, batch: str | None = None) -> dict[str, dict[str, int]]:
        """Dropped rows as {stage: {reason: count}}, sorted; a row group in memory at a time."""
        counts: Counter[tuple[str, str]] = Counter()
        for block in self.iter_blocks(
            self.dropped_files(stage, batch), "dropped", ["stage", "reason"], rows=ROW_GROUP_ROWS
        ):
            for row in block.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist():
                counts[row["stage"], row["reason"]] += row["count_all"]
        drops: dict[str, dict[str, int]] = {}
        for (name, reason), count in sorted(counts.items()):
            drops.setdefault(name, {})[reason] = count
        return drops

    # --- images -----------------------------------------------------------------------------------------------

    def _location(self, image_id: str) -> tuple[str, int, int]:
        if self._locations is None:
            t = self.read_table("images", ["image_id", "shard", "offset_bytes", "size_bytes"]).to_pydict()
            rows = zip(t["image_id"], t["shard"], t["offset_bytes"], t["size_bytes"], strict=True)
            self._locations = {i: (shard, offset, size) for i, shard, offset, size in rows}
        try:
            return self._locations[image_id]
        except KeyError:
            raise DataError(f"image {image_id}: not in the images table below {self.root}") from None

    def read_image_bytes(self, image_id: str) -> bytes:
        """The stored file's bytes: one pread of its shard."""
        shard, offset, size = self._location(image_id)
        if shard not in self._files:
            self._files[shard] = open(shard_path(self.root, shard), "rb")  # noqa: SIM115 - kept open for reuse
        content = os.pread(self._files[shard].fileno(), size, offset)
        if len(content) != size:
            raise DataError(
                f"{shard}: {len(content)} bytes at {offset}, expected {size}: the shard is cut short; "
                "run `dvc pull --force`"
            )
        return content

    def read_image(self, image_id: str) -> Image:
        """The stored image, RGB."""
        from PIL import Image

        return Image.open(io.BytesIO(self.read_image_bytes(image_id)), formats=("JPEG", "PNG", "WEBP")).convert("RGB")

    def captions(self) -> dict[str, str]:
        """image_id -> caption: the source's own, else the one that recaption wrote."""
        t = self.read_table("images", ["image_id", "caption"]).to_pydict()
        out = {i: c for i, c in zip(t["image_id"], t["caption"], strict=True) if c}
        t = self.read_table("captions", ["image_id", "caption"]).to_pydict()
        for i, c in zip(t["image_id"], t["caption"], strict=True):
            out.setdefault(i, c)
        return out

    # --- embeddings ---------------------------------------------------------------------------------------------

    def write_embeddings(
        self, encoder: str, shard: str, revision: str, image_ids: list[str], vectors: np.ndarray
    ) -> None:
        """Store (n, d) float16 unit rows, then their ids, the marker. `encoder`: a role, or `<role>/next`."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder, stem = self.folder("data", "embeddings", encoder), Path(shard).stem
        buffer = io.BytesIO()
        np.save(buffer, np.ascontiguousarray(vectors, dtype=np.float16))
        self.write_bytes(folder / f"{stem}.npy", buffer.getvalue())
        table = pa.table({"image_id": pa.array(image_ids, pa.string())}).replace_schema_metadata(
            {"encoder": encoder.partition("/")[0], "revision": revision}
        )
        out = io.BytesIO()
        pq.write_table(table, out, compression="zstd")
        self.write_bytes(folder / f"{stem}.parquet", out.getvalue())

    def embedded_shards(self, encoder: str) -> list[str]:
        """Stems of the shards that this encoder has finished, by name."""
        return sorted(p.stem for p in self.folder("data", "embeddings", encoder).glob("*.parquet"))

    def read_embeddings(self, encoder: str, shards: Sequence[str] | None = None) -> tuple[list[str], np.ndarray, str]:
        """Ids (n), vectors (n, d) float16 and the model revision, in the shards' order.

        The rows of one shard stay memory-mapped; those of several are copied into one array.

        Args:
            encoder: the encoder's role.
            shards: names of shards; all that are embedded when None.
        Raises:
            DataError: shards of different model revisions or widths, or ids and rows that do not match.
        """
        corpus = self.read_corpus(encoder, shards)
        return corpus.ids.to_pylist(), corpus.rows.to_array(), corpus.revision

    def read_wanted(self, encoder: str, wanted: pa.Array) -> tuple[pa.Array, np.ndarray]:
        """Ids (n) and vectors (n, d) float16 of those `wanted` ids that are embedded; other rows are not read.

        Raises:
            DataError: as of `read_embeddings`.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        corpus = self.read_corpus(encoder)
        chosen = pc.is_in(corpus.ids, value_set=wanted).to_numpy(zero_copy_only=False)
        return corpus.ids.filter(pa.array(chosen)), corpus.rows.to_array(chosen)

    def read_corpus(self, encoder: str, shards: Sequence[str] | None = None) -> EmbeddedCorpus:
        """An encoder's ids, and its vectors memory-mapped; of all shards, or of some.

        Raises:
            DataError: as of `read_embeddings`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = self.folder("data", "embeddings", encoder)
        ids_of_shards: dict[str, pa.ChunkedArray] = {}
        revisions = set()
        for stem in self.embedded_shards(encoder) if shards is None else [Path(s).stem for s in shards]:
            with pq.ParquetFile(folder / f"{stem}.parquet") as file:
                ids, metadata = file.read().column("image_id"), file.schema_arrow.metadata or {}
            if len(ids):
                revisions.add(metadata.get(b"revision", b"").decode())
                ids_of_shards[stem] = ids
        if len(revisions) > 1:
            raise DataError(
                f"embeddings/{encoder}: vectors of different model revisions {sorted(revisions)} in one index; "
                "expected one; embed all again with one"
            )
        rows = MappedRows([folder / f"{stem}.npy" for stem in ids_of_shards])
        shard_rows = {
            stem: slice(int(start), int(end))
            for stem, start, end in zip(ids_of_shards, rows.starts, rows.starts[1:], strict=False)
        }
        for stem, ids in ids_of_shards.items():
            if (count := shard_rows[stem].stop - shard_rows[stem].start) != len(ids):
                raise DataError(
                    f"embeddings/{encoder}/{stem}: {count} vectors for {len(ids)} ids; expected as many; "
                    "delete both files and embed again"
                )
        names = (
            pa.concat_arrays([chunk for ids in ids_of_shards.values() for chunk in ids.chunks])
            if ids_of_shards
            else pa.array([], pa.string())
        )
        return EmbeddedCorpus(names, rows, revisions.pop() if revisions else "", shard_rows)

    # --- reports ------------------------------------------------------------------------------------------------

    def write_report(self, report: StageReport) -> None:
        """Keep a stage's report beside the run (not versioned: it holds seconds).

        Reports of the same work in another number of parts, from before a clear, go: they would count it twice.
        """
        name = (report.stage + (f"@{report.part}" if report.part else "")).replace("/", "-of-")
        folder = self.folder(".run", "reports")
        match = re.fullmatch(r"(.+)@\d+-of-(\d+)", name)
        work, parts = (match[1], match[2]) if match else (name, "")
        for path in folder.glob(f"{glob.escape(work)}@*-of-*.json"):
            if re.fullmatch(rf"{re.escape(work)}@\d+-of-\d+", path.stem) and path.stem.rpartition("-")[2] != parts:
                path.unlink(missing_ok=True)
        if match and report.done:  # parts that a later call merges count nothing, and leave that call's report alone
            (folder / f"{work}.json").unlink(missing_ok=True)
        self.write_bytes(folder / f"{name}.json", report.to_json().encode())

    def read_reports(self) -> dict[str, StageReport]:
        """Per stage, the merged report of its parts in this run."""
        parts: dict[str, list[StageReport]] = {}
        for path in sorted(self.folder(".run", "reports").glob("*.json")):
            report = StageReport.from_json(path.read_text())
            parts.setdefault(report.stage, []).append(report)
        return {stage: StageReport.merged(stage, reports) for stage, reports in parts.items()}


def _wanted_schema(schema: str, columns: Sequence[str] | None, encoded: Sequence[str]) -> pa.Schema:
    """The schema of some columns of a table (all when None), those of `encoded` as dictionaries."""
    import pyarrow as pa

    names = schemas()[schema].names if columns is None else columns
    fields = [schemas()[schema].field(c) for c in names]
    return pa.schema([(f.name, pa.dictionary(pa.int32(), f.type)) if f.name in encoded else f for f in fields])


def _read_blocks(
    path: Path, schema: str, wanted: pa.Schema, rows: int | None, encoded: Sequence[str]
) -> Iterator[pa.Table]:
    """The rows of one file, row groups of together about `rows` rows at a time; at once when None.

    Raises:
        DataError: the file cannot be read as that table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, read_dictionary=list(encoded)) as file:
            known = set(file.schema_arrow.names)
            names = [n for n in wanted.names if n in known]
            for groups in [None] if rows is None else _group_row_groups(file.metadata, rows):
                table = file.read(columns=names) if groups is None else file.read_row_groups(groups, columns=names)
                for field in [
                    wanted.field(n) for n in LATER_COLUMNS.get(schema, ()) if n in wanted.names and n not in known
                ]:
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
                yield table.select(wanted.names).cast(wanted)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise _unreadable(path, schema, error) from error


def _unreadable(path: Path, schema: str, error: Exception) -> DataError:
    return DataError(
        f"{path}: not a readable '{schema}' table ({error}); expected Parquet with its columns; "
        "run `dvc pull` or the stage again"
    )


def _group_row_groups(metadata: Any, rows: int) -> list[list[int]]:
    """Numbers of a file's row groups, in groups of at most `rows` rows together where one alone has no more."""
    groups: list[list[int]] = []
    held = 0
    for number in range(metadata.num_row_groups):
        count = metadata.row_group(number).num_rows
        if not groups or held + count > rows:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += count
    return groups
