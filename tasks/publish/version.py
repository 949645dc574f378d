"""Version: publish what this run added as a version: card, version.json, gallery, `dvc commit`, push, git tag.

Reads all tables and the run's reports; merges the run's chunk files (tasks/publish/merge.py). Writes README.md (the
card), croissant.json, CHANGELOG-DATA.md (what changed since the parent), reports/quality.json (for `dvc metrics diff`),
version.json, manifest.json, data/export (a file for each of the run's triplets), data/rows/<task>/<batch>.parquet
(version.further_rows: tasks/publish/rows_files.py), reports/gallery.html and dvc.lock; publishes the tag
`dataset/<batch>` on origin's branch `dataset`. With no accepted triplet in this run, nothing withdrawn and nothing
renewed or changed by people's verdicts, or with open_run.dry_run, it raises NothingToDo (exit 99): a green end without
a version. Exports and further rows of earlier batches follow their triplets, and before anything is published all files
are looked through for the images that the run withdrew (tasks/publish/withdraw.py). After a crash, running again
finishes the work. Parameters: section `version`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.config import Params
from tasks.names import batch_name
from tasks.pages.changes import section, with_section
from tasks.pages.croissant import croissant
from tasks.pages.dataset_card import dataset_card
from tasks.pages.gallery import write_gallery
from tasks.publish.changes import as_values, compare
from tasks.publish.dvc_repo import commit_outputs
from tasks.publish.export import export_features, write_embedded
from tasks.publish.git import git, read_at, resolve_ref
from tasks.publish.graph import make_output_folders
from tasks.publish.merge import LoaderFiles, merge_chunks
from tasks.publish.outcome import count_reviewed, require_triplets
from tasks.publish.publish import Publication, publish
from tasks.publish.published import DATA_STAGES, MODEL_SECTIONS, REMOTE_BRANCH, count_parquet_rows, version_at
from tasks.publish.quality import QUALITY_FILE, quality_file
from tasks.publish.redaction import redact_data, run_private_texts
from tasks.publish.rows_files import FOLDER as ROWS_FOLDER
from tasks.publish.rows_files import rows_files, write_further_rows
from tasks.publish.snapshots import Snapshot
from tasks.publish.version_record import build_manifest, describe_version, parquet_bytes
from tasks.publish.withdraw import require_withdrawn, update_exports
from tasks.records import StageReport
from tasks.store import Store
from tasks.store.store import TABLES
from tasks.store.tables import rewrite_empty

CHANGELOG = "CHANGELOG-DATA.md"


@dataclass(frozen=True)
class Parent:
    """The version that the run was opened on: its name, version.json and dvc.lock; None each for the first version.

    `rewritten` is its commit where the run rewrites an older version (`python -m tasks purge`), else None.
    """

    name: str | None = None
    record: Mapping[str, Any] | None = None
    lock: bytes | None = None
    rewritten: str | None = None


def renewal_figures(version: Mapping[str, Any]) -> dict[str, float]:
    """Rows that this run renewed, and those of earlier makers that are left; nothing where there are none of either."""
    stale = sum(count["stale"] for count in version["stale"].values())
    counts = {"rows_renewed": sum(version["renewed"].values()), "rows_stale": stale}
    return {name: float(count) for name, count in counts.items()} if any(counts.values()) else {}


def read_parent(root: Path) -> Parent:
    """The version that the run was opened on, as open_run noted it."""
    marker = root / ".run" / "opened.json"
    opened = json.loads(marker.read_text()) if marker.exists() else {}
    if not (name := opened.get("parent")):
        return Parent()
    ref = f"refs/tags/dataset/{name}"
    rewritten = resolve_ref(root, ref) if opened.get("rewrites") else None
    return Parent(name, version_at(root, ref), read_at(root, ref, "dvc.lock"), rewritten)


def write_exports(params: Params, store: Store) -> None:
    """Write the run's triplets with their images inside, where version.embed_images asks for it: a file for a file."""
    for path in store.batch_files("triplets", batch_name(params)) if params.version.embed_images else ():
        out = store.folder("data", "export", path.name)
        if not out.exists() and store.count_rows(path, "triplets"):
            write_embedded(store.read(path, "triplets").to_pylist(), store, out)


def promoted_scores(root: Path) -> dict[str, Any] | None:
    """evaluation.json of the promoted model, from the branch's tip; None where none was evaluated."""
    scores = read_at(root, REMOTE_BRANCH, "reports/evaluation.json") if resolve_ref(root, REMOTE_BRANCH) else None
    return json.loads(scores) if scores else None


def data_changelog(
    root: Path, parent: Parent, version: Mapping[str, Any], manifest: Mapping[str, Mapping[str, Any]]
) -> bytes:
    """CHANGELOG-DATA.md: what changed since the parent, above what its own file says. Counts and figures, no rows."""
    here = Snapshot.of_worktree(root, version, manifest)
    tag = f"dataset/{parent.name}"
    before = Snapshot.of_tag(root, tag) if parent.name else Snapshot("", {}, {}, Path)
    earlier = read_at(root, f"refs/tags/{tag}", CHANGELOG) if parent.name else None
    new = section(as_values(compare(before, here, examples=0)))
    return with_section((earlier or b"").decode(), new, str(version["version"])).encode()


def write_record(params: Params, store: Store, parent: Parent) -> dict[str, bytes]:
    """Write export and gallery, describe the version; the contents of README.md, version.json and manifest.json."""
    root = store.root
    write_exports(params, store)
    version = describe_version(params, store, parent.record, git(root, "rev-parse", "HEAD"))
    write_gallery(store, params, version, root / "reports" / "gallery.html", promoted_scores(root))
    earlier = json.loads((root / "manifest.json").read_text()) if (root / "manifest.json").exists() else {}
    manifest = build_manifest(root, earlier)
    manifest_json = json.dumps(manifest, indent=0, sort_keys=True).encode()
    version["manifest_sha256"] = hashlib.sha256(manifest_json).hexdigest()
    exported = count_parquet_rows((root / "data" / "export").glob("*.parquet"))
    card = dataset_card(
        version,
        name=params.open_run.dataset,
        license_name=params.version.license,
        exported=exported,
        parquet_bytes=parquet_bytes(manifest),
        is_held_out_split=params.evaluate.benchmark is None,
        export_features=export_features(),
    )
    return {
        CHANGELOG: data_changelog(root, parent, version, manifest),
        QUALITY_FILE: quality_file(version, root),
        "README.md": card.encode(),
        "croissant.json": croissant(
            version, name=params.open_run.dataset, license_name=params.version.license, has_export=bool(exported)
        ),
        "version.json": (json.dumps(version, indent=2, ensure_ascii=False) + "\n").encode(),
        "manifest.json": manifest_json,
    }


def publication_message(version: Mapping[str, Any], new: int, withdrawn: int, reviewed: int) -> str:
    """Of the version's commit and tag: its triplets, and what changed, counts."""
    changes = [f"{version['rows']['triplets']} triplets", f"{new} of them new"]
    changes += [f"{withdrawn} images withdrawn"] if withdrawn else []
    changes += [f"{reviewed} changed by people's verdicts"] if reviewed else []
    renewed = sum(version["renewed"].values())
    changes += [f"{renewed} rows renewed"] if renewed else []
    return f"Version {version['version']}: {', '.join(changes)}"


def commit_data(root: Path, lock: bytes | None) -> tuple[list[str], dict[str, bytes]]:
    """Put the run's data into the DVC cache; (entries of dvc.lock that the run made, files that point at the data)."""
    exported = count_parquet_rows((root / "data" / "export").glob("*.parquet"))
    withdrawn = ["data/withdrawn"] if any((root / "data" / "withdrawn").glob("*.parquet")) else []
    rows = [ROWS_FOLDER] if rows_files(root) else []
    tracked = [*(["data/export"] if exported else []), *rows, *withdrawn, "reports/gallery.html"]
    stages = commit_outputs(root, DATA_STAGES, tracked, lock)
    paths = ["params.yaml", "dvc.lock", *(f"{path}.dvc" for path in tracked)]
    return stages, {path: (root / path).read_bytes() for path in paths}


def follow_tables(params: Params, store: Store) -> int:
    """Make exports and further rows what the tables give by now; returns how many images the run withdrew.

    Raises:
        DataError: a file still names one of these.
    """
    update_exports(store)
    write_further_rows(params, store)
    return require_withdrawn(store, batch_name(params))


def run(params: Params, store: Store) -> StageReport:
    """Publish this run's version; see the module's docstring.

    Raises:
        NothingToDo: dry_run, or no new triplet.
        DataError, TransientError: see `publish`.
    """
    root, batch = store.root, batch_name(params)
    new, withdrawn = require_triplets(params, store), follow_tables(params, store)
    reviewed = count_reviewed(store, batch)
    merge_chunks(store, batch, loader=LoaderFiles(params.version.loader_files, params.version.loader_rows_min))
    rewrite_empty(path for table in TABLES for path in store.table_files(table))
    make_output_folders(root, DATA_STAGES)
    redact_data(store, batch, run_private_texts(root))
    parent = read_parent(root)
    record = write_record(params, store, parent)
    version = json.loads(record["version.json"])
    stages, pointers = commit_data(root, parent.lock)
    publication = Publication(
        tag=f"dataset/{batch}",
        message=publication_message(version, new, withdrawn, reviewed),
        files={**record, **pointers},
        stages=stages,
        sections=[name for name in params.model_dump(by_alias=True) if name not in MODEL_SECTIONS],
        parent=parent.name,
        is_parent_required=parent.rewritten is None,
        base=parent.rewritten,
        removed=[path for path in ("data/export.dvc", f"{ROWS_FOLDER}.dvc") if path not in pointers],
    )
    published = publish(root, publication)
    for name in ("version.json", "manifest.json"):
        store.write_bytes(root / name, record[name])
    figures = {"images_withdrawn": float(withdrawn)} if withdrawn else {}
    figures |= {f"rows_{table}": float(rows) for table, rows in version["rows"].items()} | renewal_figures(version)
    proof = f"{published.objects} objects verified in the remote; commit {published.commit[:12]}"
    notes = [publication.tag, f"{proof}, fingerprint {version['fingerprint'][:16]}"]
    return StageReport(
        "version", read=version["rows"]["triplets"], written=new, new=new, done=new, figures=figures, notes=notes
    )
