"""How many parts a stage has in this run: from the rows of work at hand and the parameter of rows a part.

A large week is divided over workers: Airflow starts `python -m tasks <stage> --part i/n` once for each part. The stage
before it knows the rows, so its report says the number of parts (`StageReport.parts`), and no process is started only
to count. Rows are counted in the Parquet files' footers.

| stage | its work is counted after | rows at hand | rows a part |
|---|---|---|---|
| ingest_fetch | ingest_list | listed files | `ingest.part_files` |
| recaption | ingest | the run's images without a caption, and those to renew | `recaption.part_images` |
| embed | validate images | the run's images | `embed.part_images` |
| mine | validate images | the run's images, the new queries | `mine.part_images` |
| caption, and judge by the same parts | validate pairs | the run's pairs, and those to renew | `caption.part_pairs` |
| evaluate | train | models x benchmarks | `evaluate.part_scorings` |

The parts of ingest_fetch, mine and evaluate leave files that one more call, without --part, merges. Where their work is
one part, that call does everything, and no part is started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.config import BenchmarkConfig, Params, RenewRows
from tasks.errors import DataError
from tasks.names import batch_name

if TYPE_CHECKING:
    from tasks.store import Store

MERGED_STAGES = ("ingest_fetch", "mine", "evaluate")  # their parts are merged by one more call
MAX_PARTS = 1000  # of one stage; Airflow refuses to map over a list longer than 1,024 (core.max_map_length)
WHOLE = "1/1"  # the name of the one part of a stage that is not divided


def count_parts(rows: int, rows_per_part: int) -> int:
    """The number of parts that `rows` make, at least one and at most MAX_PARTS: beyond it the parts grow.

    Args:
        rows: of work at hand, a count.
        rows_per_part: most rows of one part, a count.
    """
    return min(MAX_PARTS, max(1, -(-rows // rows_per_part)))


def part_names(stage: str, parts: int) -> list[str]:
    """What Airflow maps a stage over: ['1/n', ..., 'n/n']; nothing for one part of a stage whose parts are merged."""
    if parts == 1 and stage in MERGED_STAGES:
        return []
    return [f"{i}/{parts}" for i in range(1, parts + 1)]


def count_rows(files: Iterable[Path], null_column: str | None = None) -> int:
    """Rows of Parquet files by their footers; with `null_column` only those where this column is null.

    A file without statistics of the column counts with all its rows.

    Raises:
        DataError: a file cannot be read as Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 0
    for path in files:
        try:
            footer = pq.read_metadata(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: not readable as Parquet ({error}); run the stage that wrote it again") from error
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            columns = (group.column(c) for c in range(group.num_columns))
            column = next((c for c in columns if c.path_in_schema == null_column), None)
            statistics = column.statistics if column is not None else None
            if statistics is not None and statistics.has_null_count:
                rows += statistics.null_count
            else:
                rows += group.num_rows
    return rows


def batch_files(store: Store, table: str, batch: str) -> list[Path]:
    """The files of a table that belong to a batch."""
    return [f for f in store.table_files(table) if f.stem == batch or f.stem.rpartition("-")[0] == batch]


def _count_recaption(params: Params, store: Store) -> int:
    files = batch_files(store, "images", batch_name(params))
    rows = count_rows(files, null_column="caption") + _count_renewed(params.renew.recaption, store, "captions")
    return count_parts(rows, params.recaption.part_images)


def _count_renewed(rows: RenewRows | None, store: Store, table: str) -> int:
    """At most so many rows of a table are renewed: which of them are stale is known once the models are loaded."""
    if rows is None:
        return 0
    known = count_rows(store.table_files(table))
    return known if rows.budget is None else min(rows.budget, known)


def _count_embed(params: Params, store: Store) -> int:
    files = batch_files(store, "images", batch_name(params))
    return count_parts(count_rows(files), params.embed.part_images)


def _count_mine(params: Params, store: Store) -> int:
    files = batch_files(store, "images", batch_name(params))
    return count_parts(count_rows(files), params.mine.part_images)


def _count_caption(params: Params, store: Store) -> int:
    files = batch_files(store, "pairs", batch_name(params))
    renewed = _count_renewed(params.renew.caption, store, "captioned")
    renewed += _count_renewed(params.renew.judge, store, "captioned")
    return count_parts(count_rows(files) + renewed, params.caption.part_pairs)


def _count_evaluate(params: Params, store: Store) -> int:
    models = 3 if store.folder("models", "promoted").is_dir() else 2  # base, candidate, promoted
    named = params.evaluate.benchmark
    benchmarks = sum(isinstance(b, BenchmarkConfig) for b in named or ()) or 1
    return count_parts(models * benchmarks, params.evaluate.part_scorings)


# command (with its item) -> the stages whose work it leaves at hand, and how their parts are counted
FOLLOWING: dict[str, dict[str, Callable[[Params, Store], int]]] = {
    "ingest": {"recaption": _count_recaption},
    "validate images": {"embed": _count_embed, "mine": _count_mine},
    "validate pairs": {"caption": _count_caption},
    "train": {"evaluate": _count_evaluate},
}


def parts_after(stage: str, item: str | None, params: Params, store: Store) -> dict[str, int]:
    """The numbers of parts, by stage, of the stages whose work a command leaves at hand; empty for most commands.

    Args:
        stage: the command.
        item: its encoder or table, where it takes one.
        params: the run's.
        store: of the run's worktree, after the command.
    """
    following = FOLLOWING.get(f"{stage} {item}" if item else stage, {})
    return {name: count(params, store) for name, count in following.items()}
