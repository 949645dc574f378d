"""Captions of a folder or a bucket prefix: which belongs to which file, whatever way a path is written.

Captions come from tables (`captions.*`, and `metadata.*` as Hugging Face's imagefolder has it, in any folder; and every
table of the source's own folder, where `columns` names its column of paths) and from texts beside the images
(tasks/sources/sidecars.py). A table's path is looked for, best first, as:

1. it stands, from the table's folder or from the source's;
2. its normal form: Unicode NFC, `/` for `\\`, without `./`, blanks around it or a leading `/`, and percent-decoded;
3. the same without regard to case;
4. an absolute path, or one that begins further up or further down: the longest end that names exactly one file;
5. the name of a file without its suffix, where the path has none.

2 to 5 count only where exactly one file fits, and 4 and 5 only where no other row fits the same file.
"""

from __future__ import annotations

import posixpath
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import unquote

from tasks.config import TABLE_SUFFIXES, SourceConfig
from tasks.errors import DataError
from tasks.sources.columns import TableFormat, parse_metadata
from tasks.sources.counts import EXAMPLES, ListingCounts
from tasks.sources.files import Metadata, escape_name, is_litter
from tasks.sources.rows import read_rows
from tasks.sources.sidecars import Sidecars, fold, is_caption_name, webdataset_key

# Names of tables of captions, the first of two rows of one file by this order.
CAPTION_TABLES = tuple(
    f"{name}.{suffix}" for name in ("captions", "metadata") for suffix in ("parquet", "csv", "tsv", "jsonl")
)
KAGGLE_TABLE = "captions.txt"  # a CSV, where its header has a column of paths; else a text as others
EXACT, NORMAL, ALIKE, BY_END = range(4)  # how surely a row fits a file
MOST_ALIKE = 1_000  # files of one name that are looked through
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*/?")


def is_caption_table(path: str) -> bool:
    """Whether a path is that of a table of captions."""
    return path.rpartition("/")[2] in (*CAPTION_TABLES, KAGGLE_TABLE)


def _table_rank(path: str) -> tuple[int, str]:
    name = path.rpartition("/")[2]
    return (CAPTION_TABLES.index(name) if name in CAPTION_TABLES else len(CAPTION_TABLES), path)


def normal_path(path: str) -> str:
    """A path in its one normal form, relative, without a way up."""
    text = _ADDRESS.sub("", unicodedata.normalize("NFC", path).strip().replace("\\", "/"))
    if text[1:3] == ":/":  # a drive of Windows
        text = text[3:]
    parts = posixpath.normpath(text).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _to_blob(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class CaptionedFiles:
    """The files of a listing in their order, on disk, with what tables and texts beside them state.

    Add all files, then call `read_captions` once, then ask for the files.

    Args:
        source: that is listed.
        counts: where captions are counted.
    """

    def __init__(self, source: SourceConfig, counts: ListingCounts) -> None:
        self._source, self._counts = source, counts
        self._rows = sqlite3.connect("", check_same_thread=False, isolation_level=None)  # '': a temporary file
        for statement in (
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE files (number INTEGER PRIMARY KEY, path BLOB UNIQUE, normal BLOB, folded BLOB, base BLOB, "
            "stem BLOB, kind TEXT, etag TEXT, size_bytes INTEGER)",
            "CREATE TABLE captions (number INTEGER PRIMARY KEY, place TEXT, path BLOB, file INTEGER, surety INTEGER, "
            "caption TEXT, license TEXT, attribution TEXT, license_stated TEXT)",
            "CREATE TABLE keys (key BLOB PRIMARY KEY, is_new INTEGER) WITHOUT ROWID",
            "BEGIN",
        ):
            self._rows.execute(statement)
        self._texts = Sidecars(source, counts)
        self._tables: list[str] = []
        self._has_captions = False

    # --- the listing --------------------------------------------------------------------------------------------------

    def is_table(self, path: str) -> bool:
        """Whether a file of this path may be a table of captions."""
        is_named = "path" in self._source.columns and "/" not in path and path.endswith(TABLE_SUFFIXES)
        return is_caption_table(path) or is_named

    def add_table(self, path: str) -> None:
        """Add a table that is read, but is not listed."""
        self._tables.append(path)

    def add(self, path: str, etag: str = "", size_bytes: int = 0, *, is_new: bool = True) -> None:
        """Add one file.

        Args:
            path: inside the source.
            etag, size_bytes: of an object.
            is_new: False for one that an earlier batch has taken: the texts beside it are not read again.
        """
        kind = "file"
        if self.is_table(path):
            kind = "table"
            self._tables.append(path)
        elif is_caption_name(path) and not is_litter(path):
            kind = "text"
        elif not is_litter(path):
            key = _to_blob(fold(webdataset_key(path)))
            self._rows.execute(
                "INSERT INTO keys VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET is_new = max(is_new, ?)",
                (key, is_new, is_new),
            )
        normal = normal_path(path)
        base = normal.rpartition("/")[2]
        forms = (normal, fold(normal), fold(base), fold(_SUFFIX.sub("", base)))
        self._rows.execute(
            "INSERT INTO files (path, normal, folded, base, stem, kind, etag, size_bytes) VALUES (?,?,?,?,?,?,?,?)",
            (_to_blob(path), *map(_to_blob, forms), kind, etag, size_bytes),
        )

    def files(self) -> Iterator[tuple[str, str, int, Metadata]]:
        """(path, ETag, size in bytes, metadata) of every file that is no caption, in the order in which they came."""
        rows = self._rows.execute(
            "SELECT number, path, etag, size_bytes FROM files WHERE kind = 'file' ORDER BY number"
        )
        for number, path, etag, size_bytes in rows:
            name = path.decode("utf-8", "surrogatepass")
            metadata = self._metadata(number, name)
            if not is_litter(name):
                self._counts.count_file(f"{self._source.name}:{name}", has_caption=metadata.caption is not None)
            yield name, etag, size_bytes, metadata
        self._texts.count_captions()

    def _metadata(self, number: int, name: str) -> Metadata:
        """What the tables and the texts beside a file state, each first what a table does."""
        if not self._has_captions and not self._texts.count:
            return Metadata()
        row = self._rows.execute(
            "SELECT caption, license, attribution, license_stated FROM captions WHERE file = ? ORDER BY number LIMIT 1",
            (number,),
        ).fetchone()
        table = Metadata(*row) if row else Metadata()
        text = self._texts.find(name, is_stated=table.caption is not None)
        with_license = table if table.license_code else text
        return Metadata(
            table.caption or text.caption,
            with_license.license_code,
            table.attribution or text.attribution,
            with_license.license_stated,
        )

    # --- captions -----------------------------------------------------------------------------------------------------

    def read_captions(
        self,
        open_table: Callable[[str], AbstractContextManager[Path]],
        read_texts: Callable[[Iterator[tuple[str, str, int]]], Iterator[tuple[str, bytes]]],
    ) -> Iterator[tuple[str, str, bool]]:
        """Read tables and texts, and match them with the files; yields (place, why, is_lasting) of each damaged row.

        Args:
            open_table: path inside the source -> a local file.
            read_texts: (path, ETag, size) of texts beside images -> (path, content) of those that can be read.
        Raises:
            DataError: captions.* of the source has no column of paths, or no caption matches a file.
        """
        yield from self._read_tables(self._chosen_tables(), open_table)
        for name, content in read_texts(self._texts_beside_images()):
            self._texts.add_text(name, content)

    def _chosen_tables(self) -> list[str]:
        """The tables that are read: of captions.parquet and captions.csv in one folder the first form only."""
        chosen: dict[str, str] = {}
        for path in sorted(self._tables, key=_table_rank):
            name = path.rpartition(".")[0] if path.rpartition("/")[2] in CAPTION_TABLES else path
            if chosen.setdefault(name, path) != path:
                self._counts.note(f"{path} is not read, because {chosen[name]} lies beside it")
        return list(chosen.values())

    def _read_tables(
        self, paths: Sequence[str], open_table: Callable[[str], AbstractContextManager[Path]]
    ) -> Iterator[tuple[str, str, bool]]:
        if not paths:
            return
        for column in ("normal", "folded", "base", "stem"):
            self._rows.execute(f"CREATE INDEX files_{column} ON files ({column})")
        total, self._counts = self._counts, ListingCounts()
        for path in paths:
            with open_table(path) as local:
                yield from self._read_table(path, local)
        self._rows.execute("CREATE INDEX captions_file ON captions (file)")
        self._settle()
        if not self._counts.matched:
            files = self._rows.execute("SELECT path FROM files WHERE kind = 'file' ORDER BY number LIMIT 50")
            names = [path.decode("utf-8", "backslashreplace") for (path,) in files]
            self._counts.without_caption = [escape_name(name) for name in names if not is_litter(name)][:EXAMPLES]
            self._counts.refuse_no_match(f"ingest.sources: source '{self._source.name}'")
        self._counts.without_caption = []
        total.add(self._counts)
        self._counts = total

    def _texts_beside_images(self) -> Iterator[tuple[str, str, int]]:
        """Texts with the key of a new image; other texts are files, except those of images that are known."""
        texts = self._rows.execute("SELECT number, path, etag, size_bytes FROM files WHERE kind = 'text'").fetchall()
        for number, path, etag, size_bytes in texts:
            name = path.decode("utf-8", "surrogatepass")
            key = self._rows.execute(
                "SELECT is_new FROM keys WHERE key = ?", (_to_blob(fold(webdataset_key(name))),)
            ).fetchone()
            if key is None:
                self._rows.execute("UPDATE files SET kind = 'file' WHERE number = ?", (number,))
            elif key[0]:
                yield name, etag, size_bytes
        for (path,) in self._rows.execute("SELECT path FROM files WHERE kind = 'file'"):
            self._texts.add_image(path.decode("utf-8", "surrogatepass"))

    def _read_table(self, path: str, local: Path) -> Iterator[tuple[str, str, bool]]:
        folder = path.rpartition("/")[0]
        table = TableFormat(self._source, ("path",), path)
        try:
            for row in read_rows(local, table, self._counts):
                place = f"{path}#{row.number}"
                self._counts.ended_rows += 1
                if row.damage:
                    while self._rows.execute("SELECT 1 FROM files WHERE path = ?", (_to_blob(place),)).fetchone():
                        place += "#"  # a file is called so
                    yield place, row.damage, not row.is_end
                else:
                    self._add_caption(place, folder, row.values.get("path"), parse_metadata(row.values))
        except DataError as error:
            if path in CAPTION_TABLES and path.startswith("captions."):
                raise
            kind = "text" if path.endswith(KAGGLE_TABLE) else "file"
            if kind == "file":
                self._counts.note(f"{path} is not read as a table of captions: {error}")
            self._rows.execute("UPDATE files SET kind = ? WHERE path = ?", (kind, _to_blob(path)))

    def _add_caption(self, place: str, folder: str, path: object, metadata: Metadata) -> None:
        self._counts.read += metadata.caption is not None
        if not isinstance(path, str) or not path.strip():
            if metadata.caption:
                self._counts.count_caption(place, is_matched=False, why="a row without a path")
            return
        self._has_captions = True
        number, surety, why = self._find(folder, path)
        if number is None:
            if metadata.caption:
                self._counts.count_caption(f"{place} '{path.strip()[:80]}'", is_matched=False, why=why)
            return
        values = (metadata.caption, metadata.license_code, metadata.attribution, metadata.license_stated)
        self._rows.execute(
            "INSERT INTO captions (place, path, file, surety, caption, license, attribution, license_stated) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (place, _to_blob(normal_path(path)), number, surety, *values),
        )

    def _settle(self) -> None:
        """Of several rows of one file keep the surest, of these the first; of unsure ones that differ keep none."""
        query = "SELECT file FROM captions GROUP BY file HAVING count(*) > 1 OR min(surety) = ?"
        for (file,) in self._rows.execute(query, (BY_END,)).fetchall():
            rows = self._rows.execute(
                "SELECT number, place, path, surety, caption FROM captions WHERE file = ? ORDER BY surety, number",
                (file,),
            ).fetchall()
            surest = rows[0][3]
            is_unsure = surest == BY_END and len({row[2] for row in rows}) > 1
            for row in rows if is_unsure else rows[1:]:
                self._rows.execute("DELETE FROM captions WHERE number = ?", (row[0],))
                if row[4]:
                    why = "several paths fit one file" if is_unsure else "a second caption of the same file"
                    self._counts.count_caption(row[1], is_matched=False, why=why)
        query = "SELECT count(*) FROM captions WHERE caption IS NOT NULL"
        self._counts.matched += self._rows.execute(query).fetchone()[0]

    def _find(self, folder: str, path: str) -> tuple[int | None, int, str]:
        """(number of the file, how surely, why not) of a table's path."""
        for raw in (f"{folder}/{path}" if folder else path, path):
            if row := self._rows.execute("SELECT number FROM files WHERE path = ?", (_to_blob(raw),)).fetchone():
                return row[0], EXACT, ""
        normal = normal_path(path)
        forms = list(dict.fromkeys((normal, normal_path(unquote(path)))))
        inside = [normal_path(f"{folder}/{form}") for form in forms] if folder else []
        for column, surety in (("normal", NORMAL), ("folded", ALIKE)):
            for form in (*inside, *forms):
                if (number := self._unique(column, form)) is not None:
                    return number, surety, ""
        is_ambiguous = False
        for form in forms:
            number, several = self._by_end(fold(form))
            if number is not None:
                return number, BY_END, ""
            is_ambiguous |= several
        return None, BY_END, "several files fit" if is_ambiguous else "no such file"

    def _unique(self, column: str, form: str) -> int | None:
        value = _to_blob(fold(form) if column != "normal" else form)
        rows = self._rows.execute(f"SELECT number FROM files WHERE {column} = ? LIMIT 2", (value,)).fetchall()
        return int(rows[0][0]) if len(rows) == 1 else None

    def _by_end(self, folded: str) -> tuple[int | None, bool]:
        """(the one file whose path ends as this one does, or begins further down; whether there are several)."""
        parts = folded.split("/")
        for first in range(1, len(parts)):  # the path begins further up
            if (number := self._unique("folded", "/".join(parts[first:]))) is not None:
                return number, False
        column = "base" if _SUFFIX.search(parts[-1]) else "stem"
        rows = self._rows.execute(
            f"SELECT number, folded FROM files WHERE {column} = ? AND kind = 'file' LIMIT ?",
            (_to_blob(parts[-1]), MOST_ALIKE),
        ).fetchall()
        if column == "stem":
            parts[-1] = ""
        fitting = []
        for number, path in rows:
            others = path.decode("utf-8", "surrogatepass").split("/")
            if column == "stem":
                others[-1] = ""
            shared = min(len(parts), len(others))
            if parts[-shared:] == others[-shared:]:
                fitting.append(number)
        is_one = len(fitting) == 1 and len(rows) < MOST_ALIKE
        return (int(fitting[0]) if is_one else None), len(fitting) > 1
