"""Takedown: images that the takedown list names leave every table; each stage removes its own rows when it next runs.

The list (`ingest.takedown`, form: tasks/fingerprints/takedown_list.py) decides. ingest runs first: it finds what the
list names, notes it in data/withdrawn/<batch>.parquet, rewrites the tars and tables of images, and takes in no such
image again. recaption removes captions; embed the vectors; mine the neighbours, and finds the ones that rank next;
select the pairs and the places as negatives, and fills both again; caption and judge the rows of pairs that are gone;
validate the quarantined rows; version the exports. Each of them also removes dropped rows that name such an image or
hold a text about it. Before it publishes, version looks through all files for the ids that this run withdrew.

Earlier versions stay as they were published (`python -m tasks purge` is for those): a file that names such an image is
rewritten under a temporary name and renamed, so the object that DVC keeps of it is not touched. The removal is
idempotent: a rerun after a crash finds what is left to do, and nothing once no row names such an image.

Table `withdrawn`: id, kind (image, pair, triplet), withdrawn_on, batch, reason (a code of tasks/reasons.py). It is the
one published place of these ids, so that researchers can remove the same rows from their copies. An image that stands
there never comes in again, whatever the list says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Params
from tasks.fingerprints.takedown_list import Limits, Matches, TakedownList, read_entries
from tasks.names import batch_name
from tasks.store import Store
from tasks.store.shards import shard_files

if TYPE_CHECKING:
    import pyarrow as pa

REASON = "taken_down"
NOTE = "takedown"  # a report's sentence on a takedown begins so; it names images, and is for the operator alone
IMAGE_COLUMNS = ["image_id", "source_sha256", "source_uri"]
HASH_COLUMNS = ["phash", "thumbnail"]
_WORD = re.compile(r"[0-9A-Za-z]+")


def load_list(params: Params, store: Store) -> TakedownList | None:
    """The takedown list of a run; None where none is configured.

    Raises:
        ConfigError: it cannot be read, has a line that is no entry, or no entry; it must not pass for an empty one.
    """
    config = params.ingest
    if config.takedown is None:
        return None
    entries = read_entries([store.folder(config.takedown)], "ingest.takedown")
    return TakedownList(list(entries), {source.name: source.path for source in config.sources})


def match_limits(params: Params) -> Limits:
    """Within which a perceptual hash of the list matches."""
    config = params.ingest
    return Limits(config.hash_distance_bits, config.thumbnail_distance, config.blocked_distance_bits)


def image_files(store: Store) -> list[Path]:
    """The files that hold rows of the images table, those in the quarantine included."""
    return [*store.table_files("images"), *sorted(store.folder("data/quarantine/images/rows").glob("*.parquet"))]


def match_images(params: Params, store: Store, takedown: TakedownList) -> Matches:
    """What the list names among the stored images."""
    columns = [*IMAGE_COLUMNS, *(HASH_COLUMNS if takedown.has_hashes else [])]
    blocks = store.iter_blocks(image_files(store), "images", columns, rows=10_000)
    return takedown.match((row for block in blocks for row in block.to_pylist()), match_limits(params))


def withdrawn_path(store: Store, batch: str) -> Path:
    """Where the ids lie that a batch withdrew."""
    return store.folder("data", "withdrawn", f"{batch}.parquet")


def withdrawn_ids(store: Store, batch: str | None = None, kind: str | None = "image") -> set[str]:
    """Ids that a batch (or any, when None) withdrew, of one kind (or of all, when None)."""
    paths = store.table_files("withdrawn") if batch is None else [withdrawn_path(store, batch)]
    rows = store.read([path for path in paths if path.exists()], "withdrawn", ["id", "kind"]).to_pydict()
    return {i for i, of_kind in zip(rows["id"], rows["kind"], strict=True) if kind in (None, of_kind)}


def taken_down(params: Params, store: Store) -> set[str]:
    """Ids of the images that must be in no table: those that were ever withdrawn, and those that the list names.

    Returns:
        Image ids, among them the list's own sha256 sums.
    Raises:
        ConfigError: as of `load_list`.
    """
    takedown, ids = load_list(params, store), withdrawn_ids(store)
    if takedown is None:
        return ids
    return ids | takedown.sha256s | set(match_images(params, store, takedown).entries)


def names_any_word(table: pa.Table, words: Set[str]) -> list[bool]:
    """Per row whether any of its strings, or a word inside one of them, is one of `words`."""
    import pyarrow as pa

    named = [False] * table.num_rows
    for column in table.columns:
        is_list = pa.types.is_list(column.type)
        if not pa.types.is_string(column.type.value_type if is_list else column.type):
            continue
        for number, cell in enumerate(column.to_pylist()):
            texts: Iterable[str] = (cell or ()) if is_list else ((cell,) if cell else ())
            if not named[number] and any(t in words or not words.isdisjoint(_WORD.findall(t)) for t in texts):
                named[number] = True
    return named


def withdraw_rows(store: Store, paths: Iterable[Path], schema: str, words: Set[str]) -> int:
    """Rewrite those files of a table that have rows naming one of `words`, without these rows; returns their count."""
    import pyarrow as pa

    count = 0
    for path in paths if words else ():
        table = store.read(path, schema)
        named = names_any_word(table, words)
        if any(named):
            count += sum(named)
            store.write(path, table.filter(pa.array([not n for n in named])), schema)
    return count


def withdraw_dropped(params: Params, store: Store, stage: str, *kinds: str) -> int:
    """Remove a stage's dropped rows that name what this run withdrew; returns their count.

    Args:
        params: of the run.
        store: of the worktree.
        stage: whose rows; its folder below data/dropped.
        kinds: of ids beside those of images: pair, triplet.
    """
    words = set().union(*(withdrawn_ids(store, batch_name(params), kind) for kind in ("image", *kinds)))
    return withdraw_rows(store, sorted(store.folder("data", "dropped", stage).glob("*.parquet")), "dropped", words)


def published_texts(store: Store) -> Iterator[tuple[Path, pa.Table]]:
    """Every Parquet file below data, as tables of its string columns; of data/withdrawn none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = (pa.string(), pa.list_(pa.string()))  # lists are equal whatever a file calls their items
    for path in sorted(store.folder("data").rglob("*.parquet")):
        if path.parent.name == "withdrawn" or path.name.startswith("."):
            continue
        with pq.ParquetFile(path) as file:
            names = [f.name for f in file.schema_arrow if f.type in texts]
            for block in file.iter_batches(10_000, columns=names) if names else ():
                yield path, _as_table(block)


def _as_table(block: Any) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([block])


def still_named(store: Store, ids: Set[str]) -> list[str]:
    """Files below data that still name one of these image ids, relative to the root; empty after a whole withdrawal."""
    import tarfile

    faults = {path for path, table in published_texts(store) if any(names_any_word(table, ids))} if ids else set()
    for path in shard_files(store.root) if ids else ():
        with tarfile.open(path) as tar:
            if any(name.partition(".")[0] in ids for name in tar.getnames()):
                faults.add(path)
    return sorted(path.relative_to(store.root).as_posix() for path in faults)
