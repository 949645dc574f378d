"""What makes two versions equal: a fingerprint over rows, vectors and parameters, without dates, places and costs.

Equal inputs and seeds give equal fingerprints on another day and another machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.publish.published import MODEL_SECTIONS
from tasks.store import Store
from tasks.store.store import TABLES
from tasks.store.tables import ROW_GROUP_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

# Columns that say when, where and at what cost a row was made, not what it is.
NOT_IDENTITY = {"batch", "fetched_at", "shard", "prompt_tokens", "output_tokens", "tokens", "requests", "detail"}
# Parameters that say when and where a run works, how it shares its work (and all `part_*`), and how a
# gallery and files show it.
NOT_IDENTITY_PARAMS = {
    "date",
    "batch",
    "dataset",
    "path",
    "url",
    "writer_url",
    "device",
    "memory_mib",
    "gallery_triplets",
    "loader_files",
    "loader_rows_min",
    "profile",
    "in_flight",
    "timeout_s",
    "outage_s",
    "refused_share_max",
    "chunk_images",
    "budget_tokens",
    "tokens_per_s",
    "renew",
}
# Parameters that came after the first versions, off while they are null: a version that leaves them so is the same.
OFF_WHEN_NULL = {"same_content_min", "next", "further_rows", "same_content_max"}
# Columns of the kind: null on every row of a run without what they hold.
OFF_COLUMNS = {"similarity_words"}


def is_identity(name: str) -> bool:
    """Whether a parameter of this name makes two versions different."""
    return name not in NOT_IDENTITY_PARAMS and name not in MODEL_SECTIONS and not name.startswith("part_")


def identity_params(params: Any) -> Any:
    """Parameters without dates, places and ways of sharing work; model folders by their last two names."""
    if isinstance(params, Mapping):
        stated = {n: value for n, value in params.items() if value is not None or n not in OFF_WHEN_NULL}
        return {name: identity_params(value) for name, value in sorted(stated.items()) if is_identity(name)}
    if isinstance(params, list | tuple):
        return [identity_params(value) for value in params]
    if isinstance(params, str) and params.startswith("/"):
        return "/".join(Path(params).parts[-2:])
    return params


def is_in_batch(path: Path, batch: str) -> bool:
    """Whether a file of a table or a shard belongs to a batch, by its name."""
    return path.stem == batch or path.stem.rpartition("-")[0] == batch


def hash_rows(digest: hashlib._Hash, name: str, count: int, tables: Iterable[pa.Table]) -> None:
    """Add rows to the digest: names and values, canonical JSON, without the columns of NOT_IDENTITY.

    Args:
        digest: it grows.
        name: of the table.
        count: of all rows.
        tables: the rows, a part of them each.
    """
    digest.update(f"{name} {count}\n".encode())
    for table in tables:
        columns = [column for column in table.column_names if column not in NOT_IDENTITY]
        for block in table.select(columns).to_batches(max_chunksize=1000):
            for row in block.to_pylist():
                stated = ((k, v) for k, v in row.items() if v is not None or k not in OFF_COLUMNS)
                line = {k: v.hex() if isinstance(v, bytes) else v for k, v in stated}
                digest.update(json.dumps(line, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def fingerprint(
    store: Store, params: Mapping[str, Any], batch: str, encoders: Sequence[str], parent: str | None
) -> str:
    """SHA-256 (hex) over the parent's fingerprint, this run's rows and the parameters.

    It covers tables, vectors and parameters; not dates, commits, paths or cost. It reads only what the run added.

    Args:
        params: all resolved parameters, as `Params.model_dump(mode="json", by_alias=True)`.
        batch: the run's version name.
        encoders: roles whose neighbours and vectors are covered, in the order of params.yaml.
        parent: the fingerprint of the version before; None for the first one.
    """
    digest = hashlib.sha256(f"{parent or ''}\n{json.dumps(identity_params(params), sort_keys=True)}\n".encode())

    def add(name: str, files: Sequence[Path], schema: str) -> None:
        count = sum(store.count_rows(path, schema) for path in files)
        hash_rows(digest, name, count, store.iter_blocks(files, schema, rows=ROW_GROUP_ROWS))

    for table in TABLES:
        add(table, store.batch_files(table, batch), table)
    for stage in sorted(p.name for p in store.folder("data", "dropped").glob("*")):
        add(f"dropped/{stage}", store.dropped_files(stage, batch), "dropped")
    pending = [f"{encoder}/next" for encoder in encoders if store.embedded_shards(f"{encoder}/next")]
    for encoder in [*encoders, *pending]:
        files = [p for p in store.table_files(f"neighbours/{encoder}") if is_in_batch(p, batch)]
        add(f"neighbours/{encoder}", files, "neighbours")
        for stem in [s for s in store.embedded_shards(encoder) if is_in_batch(Path(s + ".npy"), batch)]:
            ids, vectors, revision = store.read_embeddings(encoder, [stem + ".npy"])
            digest.update(f"{encoder} {revision} {json.dumps(ids)}\n".encode() + vectors.tobytes())
    return digest.hexdigest()
