"""Version: make what this run added a published version: card, version.json, gallery, `dvc commit`, push, git tag.

Reads all tables and the run's reports; writes README.md (the card), version.json, manifest.json,
data/export/<batch>.parquet, reports/gallery.html, dvc.lock; publishes `dataset/<batch>` on origin's branch `dataset`.
No accepted triplet in this
run, or dry_run: NothingToDo (exit 99), a green end without a version. After a crash, running again finishes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import Params
from tasks.errors import NothingToDo
from tasks.names import batch_name, run_date
from tasks.pages.dataset_card import dataset_card
from tasks.pages.gallery import write_gallery
from tasks.publish.dvc_repo import commit_outputs
from tasks.publish.export import exported_rows, write_embedded
from tasks.publish.git import git, read_at, resolve_ref
from tasks.publish.graph import graph
from tasks.publish.publish import publish
from tasks.publish.published import DATA_STAGES, MODEL_SECTIONS, REMOTE_BRANCH, sha256_of, version_at
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.store import TABLES
from tasks.usage import read_usage, usage_summary

if TYPE_CHECKING:
    import pyarrow as pa

# Columns that say when, where and at what cost a row was made, not what it is.
NOT_IDENTITY = {"batch", "fetched_at", "shard", "prompt_tokens", "output_tokens", "tokens", "requests", "detail"}
NOT_IDENTITY_PARAMS = {
    "date",
    "batch",
    "dataset",
    "path",
    "url",
    "writer_url",
    "device",
    "parts",
    "gallery_triplets",
    "profile",
}
NOT_IDENTITY_PARAMS |= {"in_flight", "timeout_s", "budget_tokens", "tokens_per_s"}


def identity_of(params: Any) -> Any:
    """Parameters without dates, places and ways of sharing work; model folders by their last two names."""
    if isinstance(params, Mapping):
        return {
            k: identity_of(v)
            for k, v in sorted(params.items())
            if k not in NOT_IDENTITY_PARAMS and k not in MODEL_SECTIONS
        }
    if isinstance(params, list | tuple):
        return [identity_of(v) for v in params]
    if isinstance(params, str) and params.startswith("/"):
        return "/".join(Path(params).parts[-2:])
    return params


def hash_rows(digest: hashlib._Hash, name: str, rows: pa.Table) -> None:
    """Add a table's rows to the digest: names and values, canonical JSON, without the columns of NOT_IDENTITY."""
    kept = [c for c in rows.column_names if c not in NOT_IDENTITY]
    digest.update(f"{name} {rows.num_rows}\n".encode())
    for block in rows.select(kept).to_batches(max_chunksize=1000):
        for row in block.to_pylist():
            line = {k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()}
            digest.update(json.dumps(line, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def fingerprint(
    store: Store, params: Mapping[str, Any], batch: str, encoders: Sequence[str], parent: str | None
) -> str:
    """sha256 over the parent's fingerprint, this run's rows and the parameters: equal for equal inputs and seed.

    It covers tables, vectors and parameters; not dates, commits, paths or cost. It reads what the run added, no more.
    """
    digest = hashlib.sha256(f"{parent or ''}\n{json.dumps(identity_of(params), sort_keys=True)}\n".encode())
    for name in TABLES:
        hash_rows(digest, name, store.read_table(name, batch=batch))
    for stage in sorted(p.name for p in store.folder("data", "dropped").glob("*")):
        hash_rows(digest, f"dropped/{stage}", store.read_dropped(stage, batch))
    for encoder in encoders:
        files = [p for p in store.table_files(f"neighbours/{encoder}") if in_batch(p, batch)]
        hash_rows(digest, f"neighbours/{encoder}", store.read(files, "neighbours"))
        for stem in [s for s in store.embedded_shards(encoder) if in_batch(Path(s + ".npy"), batch)]:
            ids, vectors, revision = store.read_embeddings(encoder, [stem + ".npy"])
            digest.update(f"{encoder} {revision} {json.dumps(ids)}\n".encode() + vectors.tobytes())
    return digest.hexdigest()


def in_batch(path: Path, batch: str) -> bool:
    """Whether a file of a table or a shard belongs to a batch, by its name."""
    return path.stem == batch or path.stem.rpartition("-")[0] == batch


def counts(rows: pa.Table) -> dict[str, dict[str, int]]:
    """Dropped rows as {stage: {reason: count}}, sorted."""
    out: dict[str, dict[str, int]] = {}
    for stage, reason in sorted(zip(rows.column("stage").to_pylist(), rows.column("reason").to_pylist(), strict=True)):
        out.setdefault(stage, {}).setdefault(reason, 0)
        out[stage][reason] += 1
    return out


def why_none(store: Store, batch: str) -> str:
    """What this run took in and left out, in a sentence: nothing else keeps it when no version does."""
    rows = {
        table: store.read_table(table, [column], batch).num_rows
        for table, column in (("images", "image_id"), ("pairs", "pair_id"))
    }
    left = [
        f"{stage}: " + ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        for stage, reasons in counts(store.read_dropped(batch=batch)).items()
    ]
    return (
        f"New images {rows['images']}, new pairs {rows['pairs']}; left out by {'; '.join(left) or 'no stage: nothing'}."
    )


def encoder_yields(store: Store, batch: str, encoders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per encoder: new pairs that it mined, triplets among them, and their ratio (None without pairs)."""
    totals: dict[str, dict[str, Any]] = {e: {"pairs": 0, "triplets": 0, "yield": None} for e in encoders}
    for table in ("pairs", "triplets"):
        for mined_by in store.read_table(table, ["mined_by"], batch).column("mined_by").to_pylist():
            for encoder in mined_by or []:
                totals.setdefault(encoder, {"pairs": 0, "triplets": 0, "yield": None})[table] += 1
    for figures in totals.values():
        figures["yield"] = figures["triplets"] / figures["pairs"] if figures["pairs"] else None
    return totals


def manifest(root: Path, known: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{path: {sha256, size_bytes}} of every data file and the gallery; files of earlier versions by what is known of
    them.
    """
    files = sorted(
        p for p in (root / "data").rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix != ".dvc"
    )
    out = {}
    for path in [*files, *(root / "reports").glob("gallery.html")]:
        name, size = path.relative_to(root).as_posix(), path.stat().st_size
        old = known.get(name)
        is_same = old is not None and old["size_bytes"] == size and name.startswith("data/")
        out[name] = dict(old) if is_same and old else {"sha256": sha256_of(path), "size_bytes": size}
    return out


def parquet_bytes(files: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """{folder: bytes of the Parquet files in it}, from the manifest."""
    out: dict[str, int] = {}
    for name, facts in files.items():
        if name.endswith(".parquet"):
            folder = name.rpartition("/")[0]
            out[folder] = out.get(folder, 0) + int(facts["size_bytes"])
    return out


def describe(params: Params, store: Store, batch: str, parent: Mapping[str, Any] | None, commit: str) -> dict[str, Any]:
    """version.json's mapping, without the manifest's hash."""
    resolved = params.model_dump(mode="json", by_alias=True)
    encoders = list(params.embed.encoders)
    # its own is there on a second try
    reports = {stage: report for stage, report in store.read_reports().items() if stage != "version"}
    ids = {
        "images": "image_id",
        "captions": "image_id",
        "pairs": "pair_id",
        "captioned": "pair_id",
        "triplets": "triplet_id",
    }
    shown = json.loads(json.dumps(resolved))
    for source in shown["ingest"]["sources"]:
        del source["path"]  # where a machine keeps its images is nobody's business
    new_triplets = store.read_table("triplets", ["triplet_id"], batch).num_rows
    shown["evaluate"].update(benchmark=None, truth=None)
    return {
        "version": batch,
        "parent": parent["version"] if parent else None,
        "dataset": params.open_run.dataset,
        "date": run_date(params),
        "git_commit": commit,
        "fingerprint": fingerprint(store, resolved, batch, encoders, parent["fingerprint"] if parent else None),
        "rows": {t: store.read_table(t, [ids[t]]).num_rows for t in TABLES},
        "new_rows": {t: store.read_table(t, [ids[t]], batch).num_rows for t in TABLES},
        "drops": counts(store.read_dropped()),
        "new_drops": counts(store.read_dropped(batch=batch)),
        "encoders": encoder_yields(store, batch, encoders),
        "quality": {stage: report.figures for stage, report in reports.items() if report.figures},
        "ledger": usage_summary(
            read_usage(store.root),
            triplets=new_triplets,
            pairs=store.read_table("captioned", ["pair_id"], batch).num_rows,
        ),
        "tokens": {stage: report.tokens for stage, report in reports.items() if report.tokens},
        "params": shown,
    }


def run(params: Params, store: Store) -> StageReport:
    """Publish this run's version; see the module's docstring.

    Raises:
        NothingToDo: dry_run, or no new triplet.
        DataError, TransientError: see `publish`.
    """
    batch, root = batch_name(params), store.root
    new = store.read_table("triplets", ["triplet_id"], batch).num_rows
    if params.open_run.dry_run:
        raise NothingToDo(f"dry run: {new} triplets made, nothing published")
    if not new:
        raise NothingToDo(f"no new triplet in {batch}: no version, no training. {why_none(store, batch)}")
    for node in graph(root):
        if node.name.partition("@")[0] in DATA_STAGES:
            for out in node.outs:
                if not Path(out).suffix:
                    # a stage without a dropped row still has its folder
                    (root / out).mkdir(parents=True, exist_ok=True)
    marker = root / ".run" / "opened.json"
    opened = json.loads(marker.read_text()) if marker.exists() else {}
    tag_of_parent = f"refs/tags/dataset/{opened['parent']}" if opened.get("parent") else None
    parent = version_at(root, tag_of_parent) if tag_of_parent else None

    export = root / "data" / "export" / f"{batch}.parquet"
    if params.version.embed_images and not export.exists():
        write_embedded(store.read_table("triplets", batch=batch).to_pylist(), store, export)
    version = describe(params, store, batch, parent, git(root, "rev-parse", "HEAD"))
    # of the model in place
    scores = read_at(root, REMOTE_BRANCH, "reports/evaluation.json") if resolve_ref(root, REMOTE_BRANCH) else None
    write_gallery(store, params, version, root / "reports" / "gallery.html", json.loads(scores) if scores else None)
    known = json.loads((root / "manifest.json").read_text()) if (root / "manifest.json").exists() else {}
    files_now = manifest(root, known)
    listing = json.dumps(files_now, indent=0, sort_keys=True).encode()
    version["manifest_sha256"] = hashlib.sha256(listing).hexdigest()
    exported = exported_rows(export.parent)
    card = dataset_card(
        version,
        name=params.open_run.dataset,
        license_name=params.version.license,
        exported=exported,
        parquet_bytes=parquet_bytes(files_now),
        is_held_out_split=params.evaluate.benchmark is None,
    )
    folders = [*(["data/export"] if exported else []), "reports/gallery.html"]
    stages = commit_outputs(
        root, DATA_STAGES, folders, read_at(root, tag_of_parent, "dvc.lock") if tag_of_parent else None
    )
    pointers = [f"{f}.dvc" for f in folders]
    files = {
        "README.md": card.encode(),
        "version.json": (json.dumps(version, indent=2, ensure_ascii=False) + "\n").encode(),
        "manifest.json": listing,
        "params.yaml": (root / "params.yaml").read_bytes(),
        "dvc.lock": (root / "dvc.lock").read_bytes(),
        **{p: (root / p).read_bytes() for p in pointers},
    }
    tag = f"dataset/{batch}"
    sections = [name for name in params.model_dump(by_alias=True) if name not in MODEL_SECTIONS]
    published = publish(
        root,
        tag=tag,
        message=f"Version {batch}: {version['rows']['triplets']} triplets, {new} of them new",
        files=files,
        stages=stages,
        sections=sections,
        parent=opened.get("parent"),
        check_parent=True,
    )
    store.write_bytes(root / "version.json", files["version.json"])
    store.write_bytes(root / "manifest.json", listing)
    figures = {f"rows_{t}": float(n) for t, n in version["rows"].items()}
    note = f"{published.objects} objects verified in the remote; commit {published.commit[:12]}, fingerprint {version['fingerprint'][:16]}"
    return StageReport(
        "version", read=version["rows"]["triplets"], written=new, new=new, done=new, figures=figures, notes=[tag, note]
    )
