"""A tiny run without models: a few coloured images, tables that name them, the gates for real, and a version."""

import hashlib
import io
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.config import ENCODER_ROLES, Params, load_params
from tasks.names import stable_id
from tasks.publish import version
from tasks.publish.export import write_embedded
from tasks.publish.open_run import Deployment, RunRequest, open_run
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.shards import OLD_FOLDER, SHARDS, shard_files, shard_path
from tasks.validate import stage as validate

REVISION = "0123456789ab"
# A `mark` for `fill`: HTML, scripts, a template, an address, Hebrew and Arabic, marks of direction, a word without end.
HOSTILE = (
    ' "><script>alert(1)</script><img src=x onerror=alert(2)> javascript:alert(3) {{ 7*7 }} \u05e9\u05dc\u05d5\u05dd '
    "\u0645\u0631\u062d\u0628\u0627 \u202eevil\u202c " + "W" * 180
)


def image(number: int) -> bytes:
    """A 24 px JPEG that no other number gives."""
    noise = np.random.default_rng(number).integers(0, 255, (3, 3, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((24, 24), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def fill(
    root: Path, numbers: range, *, copies: int = 0, cosine: float = 0.30, triplets: bool = True, mark: str = ""
) -> Params:
    """Write what ingest to judge would have written for images `numbers`, and the reports that the gates read.

    Args:
        root: the run's worktree.
        numbers: of the images.
        copies: files that ingest left out as duplicates.
        cosine: median of captions and images.
        triplets: whether the judge let any pair pass.
        mark: what stands at the end of every text and name that comes from a stranger or a model.
    """
    params, store = load_params(root / "params.yaml"), Store(root)
    batch = params.open_run.batch or ""
    shard, rows = f"{batch}-00000.tar", []
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for n in numbers:
            content = image(n)
            image_id = hashlib.sha256(content).hexdigest()
            member = tarfile.TarInfo(f"{image_id}.jpg")
            member.size = len(content)
            offset = tar.offset + 512
            tar.addfile(member, io.BytesIO(content))
            row = image_row(n, image_id, batch, shard, offset, len(content), str(params.open_run.date))
            marked = {name: f"{row[name]}{mark}" for name in ("source_uri", "caption", "attribution")}
            rows.append({**row, **marked})
    store.write_bytes(shard_path(store.root, shard), out.getvalue())
    store.write(store.table_path("images", batch), rows, "images")
    dropped = [
        {
            "stage": "ingest",
            "batch": batch,
            "key": f"s:copy{n}.jpg{mark}",
            "reason": "duplicate",
            "detail": rows[0]["image_id"],
        }
        for n in range(copies)
    ]
    store.write(store.dropped_path("ingest", batch), dropped, "dropped")
    store.write(store.table_path("captions", batch), [], "captions")
    ids = [r["image_id"] for r in rows]
    for encoder in ENCODER_ROLES:
        vectors = np.random.default_rng(len(encoder)).normal(size=(max(numbers) + 1, 8))[numbers.start :]
        store.write_embeddings(encoder, shard, REVISION, ids, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
        near = [
            {"query_image_id": a, "target_image_id": b, "similarity": 0.9, "rank": 0}
            for a, b in zip(ids, ids[1:], strict=False)
        ]
        store.write(store.folder("data", "neighbours", encoder, f"{batch}.parquet"), near, "neighbours")
    pairs = [pair_row(batch, a, b, c) for a, b, c in zip(ids, ids[1:], ids[2:], strict=False)]
    store.write(store.table_path("pairs", batch), pairs, "pairs")
    store.write(store.dropped_path("select", batch), [], "dropped")
    store.write_report(
        StageReport("select", read=len(ids), written=len(pairs), figures={"median_caption_cosine_new": cosine})
    )
    texts = [f"{text}{mark}" for text in ("make it <b>red</b>", "a red one", "what if it were red?")]
    captioned = [captioned_row(batch, p, texts) for p in pairs]
    store.write(store.table_path("captioned", batch, 0), captioned, "captioned")
    kept = pairs[:-1] if triplets else []
    store.write(store.table_path("triplets", batch, 0), [triplet_row(batch, p, texts) for p in kept], "triplets")
    lost = [
        {"stage": "judge", "batch": batch, "key": p["pair_id"], "reason": "wrong_target", "detail": mark}
        for p in pairs
        if p not in kept
    ]
    store.write(store.dropped_path("judge", batch, 0), lost, "dropped")
    return params


def image_row(n: int, image_id: str, batch: str, shard: str, offset: int, size: int, date: str) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "source_uri": f"fake:{n}.jpg",
        "source_sha256": hashlib.sha256(f"{n}".encode()).hexdigest(),
        "batch": batch,
        "shard": shard,
        "width_px": 24,
        "height_px": 24,
        "caption": f"image {n}",
        "caption_source": "source",
        "license_code": "CC0-1.0",
        "attribution": "",
        "fetched_at": date,
        "phash": f"{n:016x}",
        "thumbnail": bytes(192),
        "offset_bytes": offset,
        "size_bytes": size,
    }


def pair_row(batch: str, query: str, target: str, negative: str) -> dict[str, Any]:
    return {
        "pair_id": stable_id(query, target),
        "batch": batch,
        "query_image_id": query,
        "target_image_id": target,
        "mined_by": ["semantic", "caption"],
        "similarity_semantic": 0.9,
        "similarity_pattern": None,
        "similarity_caption": 0.87,
        "rank": 0,
        "negative_image_ids": [query, negative],
        "negative_similarity": [0.9, 0.8],
    }


def captioned_row(batch: str, pair: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    return {
        "pair_id": pair["pair_id"],
        "batch": batch,
        "description": "red, not blue",
        "instructions": texts,
        "styles": ["imperative", "short", "question"],
        "captioner": "fake/vlm",
        "captioner_revision": REVISION,
        "writer": "fake/writer",
        "writer_revision": REVISION,
        "prompt_sha256": "a" * 64,
        "prompt_tokens": 10,
        "output_tokens": 5,
    }


def triplet_row(batch: str, pair: dict[str, Any], texts: list[str]) -> dict[str, Any]:
    same = {k: pair[k] for k in ("pair_id", "query_image_id", "target_image_id", "negative_image_ids", "mined_by")}
    return {
        "triplet_id": stable_id("t", pair["pair_id"]),
        **same,
        "batch": batch,
        "instructions": texts,
        "styles": ["imperative", "short", "question"],
        "judge_target": [0.95, 0.92, 0.97],
        "judge_negative": [0.1, 0.2],
        "description": "red, not blue",
        "captioner": "fake/vlm",
        "captioner_revision": REVISION,
        "prompt_sha256": "a" * 64,
        "judge": "fake/judge",
        "judge_revision": REVISION,
        "tokens": 20,
    }


def gates(root: Path) -> list[StageReport]:
    """The three gates, for real; their reports are kept as the stage command keeps them."""
    params, store = load_params(root / "params.yaml"), Store(root)
    reports = []
    for table in ("images", "pairs", "triplets"):
        report = validate.run(params, store, table=table)  # type: ignore[arg-type]
        report.part = table
        store.write_report(report)
        reports.append(report)
    return reports


def open_dataset_run(root: Path, run_id: str, date: str, **conf: Any) -> Path:
    """A worktree below `root`/runs; the source is an empty folder, for the fakes write the tables themselves."""
    source = root / "source"
    source.mkdir(exist_ok=True)
    request = RunRequest(run_id, "dataset", {"sources": str(source), "date": date, **conf})
    return Path(open_run(request, Deployment(root / "dataset", root / "runs")).notes[0])


def publish_version(
    root: Path, run_id: str, date: str, numbers: range, *, copies: int = 0, mark: str = "", **conf: Any
) -> str:
    """A whole fake run: open, tables, gates, version. Returns the tag; `copies` and `mark` as of `fill`."""
    worktree = open_dataset_run(root, run_id, date, **conf)
    params = fill(worktree, numbers, copies=copies, mark=mark)
    gates(worktree)
    return version.run(params, Store(worktree)).notes[0]


def publish_old_version(root: Path, run_id: str, date: str, numbers: range, **conf: Any) -> str:
    """As `publish_version`, in the layout of older versions: tars beside their table, one export file a batch."""
    worktree = open_dataset_run(root, run_id, date, **{"version.embed_images": False, **conf})
    params, store = fill(worktree, numbers), Store(worktree)
    gates(worktree)
    for path in shard_files(worktree):
        path.replace(worktree / "data" / OLD_FOLDER / path.name)
    (worktree / "data" / SHARDS).rmdir()
    graph = worktree / "dvc.yaml"
    graph.write_text(re.sub(r"      - data/shards.*\n", "", graph.read_text()).replace("data/shards, ", ""))
    rows = store.read_table("triplets").to_pylist()
    write_embedded(rows, store, worktree / "data" / "export" / f"{params.open_run.batch}.parquet")
    return version.run(params, store).notes[0]
