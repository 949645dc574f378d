"""What a version says of itself: version.json (counts, drops, yields, cost, parameters) and manifest.json (files)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.config.public import public_params
from tasks.fingerprints.takedown import withdrawn_ids
from tasks.names import batch_name, run_date
from tasks.pages.week_figures import weekly_figures
from tasks.publish.identity import fingerprint
from tasks.publish.makers_now import stale_counts
from tasks.publish.published import file_sha256
from tasks.publish.rows_files import count_further_rows
from tasks.renewal.encoders import moved_roles
from tasks.renewal.plan import renewed_counts
from tasks.store import Store
from tasks.store.store import TABLES
from tasks.store.tables import ROW_GROUP_ROWS
from tasks.usage import read_usage, usage_summary

CLOCK_S = 2.0  # a file system's clock may run so far behind


def count_rows(store: Store, batch: str | None = None) -> dict[str, int]:
    """Rows of every table, or of one batch of it, counts."""
    files = {t: store.table_files(t) if batch is None else store.batch_files(t, batch) for t in TABLES}
    return {table: sum(store.count_rows(path, table) for path in paths) for table, paths in files.items()}


def count_reviewed_right(store: Store) -> int:
    """Triplets of all batches that people accepted against the judge (tasks/judge/restored.py)."""
    files = [path for path in store.table_files("triplets") if path.stem.endswith("-reviewed")]
    return sum(store.count_rows(path, "triplets") for path in files)


def encoder_yields(store: Store, batch: str, encoders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per encoder: new pairs that it mined, triplets among them, and their ratio (None without pairs)."""
    totals: dict[str, dict[str, Any]] = {e: {"pairs": 0, "triplets": 0, "yield": None} for e in encoders}
    for table in ("pairs", "triplets"):
        files = [path for path in store.batch_files(table, batch) if path != store.reviewed_path(batch)]
        for block in store.iter_blocks(files, table, ["mined_by"], rows=ROW_GROUP_ROWS):
            for mined_by in block.column("mined_by").to_pylist():
                for encoder in mined_by or []:
                    totals.setdefault(encoder, {"pairs": 0, "triplets": 0, "yield": None})[table] += 1
    for figures in totals.values():
        figures["yield"] = figures["triplets"] / figures["pairs"] if figures["pairs"] else None
    return totals


def without_places(params: dict[str, Any]) -> dict[str, Any]:
    """Public parameters without the words that stand for the places of sources, benchmark and truth."""
    for source in params["ingest"]["sources"]:
        del source["path"]
    params["evaluate"].update(benchmark=None, truth=None)
    return params


def all_weeks(params: Params, store: Store, parent: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """batch -> figures of that weekly batch: the parent's as they are, and this run's.

    Where `evaluate.truth` names the sample world's truth file, the shares that the truth tells are among them.
    """
    batch, truth = batch_name(params), params.evaluate.truth
    known = truth is not None and Path(truth).is_file()
    return {
        **(parent or {}).get("weeks", {}),
        **weekly_figures(store, Path(truth) if truth and known else None, [batch]),
    }


def count_licences(store: Store) -> dict[str, int]:
    """Licence -> images under it, the most frequent first; `other licences` stands for those after the twentieth."""
    codes = store.read_table("images", ["license_code"]).column(0).value_counts().to_pylist()
    counts = sorted(((row["values"] or "unknown", row["counts"]) for row in codes), key=lambda e: (-e[1], e[0]))
    rest = sum(count for _, count in counts[20:])
    return dict(counts[:20]) | ({"other licences": rest} if rest else {})


def describe_version(params: Params, store: Store, parent: Mapping[str, Any] | None, commit: str) -> dict[str, Any]:
    """version.json's mapping, without the manifest's hash.

    Args:
        params: of the run.
        store: the run's worktree, after all data stages.
        parent: version.json of the version before; None for the first one.
        commit: git commit of the deployed code.
    """
    batch = batch_name(params)
    resolved = params.model_dump(mode="json", by_alias=True)
    encoders = list(params.embed.encoders)
    # the stage's own report exists on a second try
    reports = {stage: report for stage, report in store.read_reports().items() if stage != "version"}
    new_rows = count_rows(store, batch)
    return {
        "version": batch,
        "parent": parent["version"] if parent else None,
        "dataset": params.open_run.dataset,
        "date": run_date(params),
        "git_commit": commit,
        "fingerprint": fingerprint(store, resolved, batch, encoders, parent["fingerprint"] if parent else None),
        "rows": count_rows(store),
        "new_rows": new_rows,
        **({"further_rows": further} if (further := count_further_rows(store.root)) else {}),
        "drops": store.count_drops(),
        "new_drops": store.count_drops(batch=batch),
        "withdrawn": {"total": len(withdrawn_ids(store)), "new": len(withdrawn_ids(store, batch))},
        "stale": stale_counts(params, store),
        "renewed": renewed_counts(store),
        "encoders": encoder_yields(store, batch, encoders),
        "licenses": count_licences(store),
        "weeks": all_weeks(params, store, parent),
        **({"reviewed_right": people} if (people := count_reviewed_right(store)) else {}),
        "quality": {stage: report.figures for stage, report in reports.items() if report.figures},
        "ledger": usage_summary(read_usage(store.root), triplets=new_rows["triplets"], pairs=new_rows["captioned"]),
        "tokens": {stage: report.tokens for stage, report in reports.items() if report.tokens},
        "params": without_places(public_params(resolved)),
    }


def build_manifest(root: Path, earlier: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{path: {sha256, size_bytes}} of every data file and the gallery.

    Args:
        root: the run's worktree.
        earlier: manifest of the version before: a data file of the same name and size is not hashed again if nothing
            has written to it since the run was opened. A withdrawal rewrites files, some of them to the same size; an
            index that took over was moved, and its files may be as large and as old as those in whose place they are.
    """
    opened = root / ".run" / "opened.json"
    opened_s = opened.stat().st_mtime - CLOCK_S if opened.exists() else 0.0
    files = [p for p in (root / "data").rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix != ".dvc"]
    manifest, moved = {}, set(moved_roles(Store(root)))
    for path in [*sorted(files), *(root / "reports").glob("gallery.html")]:
        name, state = path.relative_to(root).as_posix(), path.stat()
        size_bytes, is_old = state.st_size, state.st_mtime < opened_s and path.parent.name not in moved
        entry = earlier.get(name)
        if entry is not None and entry["size_bytes"] == size_bytes and is_old and name.startswith("data/"):
            manifest[name] = dict(entry)
        else:
            manifest[name] = {"sha256": file_sha256(path), "size_bytes": size_bytes}
    return manifest


def parquet_bytes(manifest: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """{folder: bytes of the Parquet files in it}, from the manifest."""
    sizes: dict[str, int] = {}
    for name, entry in manifest.items():
        if name.endswith(".parquet"):
            folder = name.rpartition("/")[0]
            sizes[folder] = sizes.get(folder, 0) + int(entry["size_bytes"])
    return sizes
