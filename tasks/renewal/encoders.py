"""Two indexes of one role side by side: that of the encoder in use, and that of the one which is to follow it.

`embed.next.<role>` names the encoder to change to. Its vectors and neighbours lie in data/embeddings/<role>/next and
data/neighbours/<role>/next. Each run encodes its new images with both encoders, and earlier shards with the new one,
the oldest first, within a budget. Once every shard has vectors of the new encoder, stage mine moves both folders into
the place of the old ones, all in one run: from then on pairs are mined and chosen by the new encoder.

data/embeddings/<role>/moved.json says which encoder an index was moved to, so that later runs follow without a change
of their parameters: `with_moved_encoders` puts `embed.next.<role>` in the place of `embed.encoders.<role>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config import EncoderConfig, NextEncoderConfig, Params
from tasks.config.public import public_name
from tasks.locks import exclusive, lock_wait_s
from tasks.store import Store
from tasks.store.tables import names_any_id

MOVED = "moved.json"


def next_of(role: str) -> str:
    """What stands for the role's next index where the store takes an encoder."""
    return f"{role}/next"


def spec_key(spec: EncoderConfig) -> dict[str, Any]:
    """What makes two encoders the same: model, revision and number formats; not window and budget.

    It is published: of a model in a folder outside the code it has the last part of the path, and the whole as a hash.
    """
    fields = {name: getattr(spec, name) for name in EncoderConfig.model_fields}
    return fields | {"model": public_name(spec.model), "model_sha256": hashlib.sha256(spec.model.encode()).hexdigest()}


def is_rewriting(store: Store) -> bool:
    """Whether the run rewrites an older version (`python -m tasks purge`): nothing but what is taken down goes."""
    path = store.folder(".run", "opened.json")
    return path.exists() and bool(json.loads(path.read_text()).get("rewrites"))


def is_same_encoder(stored: Mapping[str, Any], spec: EncoderConfig) -> bool:
    """Whether a moved index is of this encoder, also where another version of the code noted it.

    What that version did not know had the value that is the default now; what it knew beyond is left aside: the
    revision in the vectors' files says how they were made, and stage embed mixes no two.
    """
    defaults = {name: field.default for name, field in EncoderConfig.model_fields.items()}
    if "model_sha256" not in stored:  # as earlier versions of the code noted it: the path itself
        return all(stored.get(name, defaults[name]) == getattr(spec, name) for name in defaults)
    return all(stored.get(name, defaults.get(name)) == value for name, value in spec_key(spec).items())


def with_moved_encoders(params: Params, store: Store) -> Params:
    """The parameters with those encoders of `embed.next` in use whose index was moved to, with their windows."""
    encoders, windows = dict(params.embed.encoders), dict(params.mine.windows)
    left = dict(params.embed.next or {})
    for role, spec in (params.embed.next or {}).items():
        path = store.folder("data", "embeddings", role, MOVED)
        if path.exists() and is_same_encoder(json.loads(path.read_text()), spec):
            encoders[role] = EncoderConfig(**{name: getattr(spec, name) for name in EncoderConfig.model_fields})
            windows[role] = spec.window
            del left[role]
    if left == (params.embed.next or {}):
        return params
    embed = params.embed.model_copy(update={"encoders": encoders, "next": left or None})
    mine = params.mine.model_copy(update={"windows": windows})
    return params.model_copy(update={"embed": embed, "mine": mine})


def next_spec(params: Params, role: str) -> NextEncoderConfig | None:
    """The encoder that is to follow; None where none is."""
    return (params.embed.next or {}).get(role)  # type: ignore[call-overload, no-any-return]


def missing_shards(store: Store, role: str) -> list[str]:
    """Stems of the shards that the encoder in use has embedded and the next one has not, the oldest first."""
    done = set(store.embedded_shards(next_of(role)))
    return [stem for stem in store.embedded_shards(role) if stem not in done]


def is_whole(store: Store, role: str) -> bool:
    """Whether the next index holds every shard, and so may take over."""
    return bool(store.embedded_shards(next_of(role))) and not missing_shards(store, role)


def count_next(store: Store, role: str) -> dict[str, Any]:
    """How far the next index is, as the card shows it: rows, of which `stale` have no vector in it yet, and the oldest
    batch among those.
    """
    import pyarrow.parquet as pq

    folder = store.folder("data", "embeddings", role)
    rows = {stem: pq.read_metadata(folder / f"{stem}.parquet").num_rows for stem in store.embedded_shards(role)}
    missing = missing_shards(store, role)
    oldest = missing[0].rpartition("-")[0] if missing else None
    return {"rows": sum(rows.values()), "stale": sum(rows[stem] for stem in missing), "oldest": oldest, "makers": {}}


def encoded_counts(store: Store) -> dict[str, int]:
    """`embed <role>` -> images of earlier versions that this run encodes for the next index; without roles of none."""
    paths = sorted(store.folder(".run", "renew").glob("embed-*.json"))  # as stage embed notes them
    counts = {
        f"embed {path.stem.removeprefix('embed-')}": int(json.loads(path.read_text())["images"]) for path in paths
    }
    return {stage: count for stage, count in counts.items() if count}


# --- giving up -------------------------------------------------------------------------------------------------------


def remove_given_up(store: Store, role: str) -> tuple[int, str | None]:
    """Remove a next index whose encoder `embed.next` no longer names; versions before keep it.

    Returns:
        Vectors that it held, a count, and a sentence for the report; 0 and None where there is none.
    """
    import pyarrow.parquet as pq

    folders = [folder / "next" for folder in _folders(store, role)]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    rows = sum(pq.read_metadata(path).num_rows for path in folders[0].glob("*.parquet"))
    size_bytes = sum(path.stat().st_size for path in files)
    for folder in reversed(folders):  # the vectors last: a killed call finds and counts them again
        shutil.rmtree(folder, ignore_errors=True)
    if not files:
        return 0, None
    note = f"{role}: embed.next names no encoder any more: its index was removed, {rows} vectors, "
    return rows, note + f"{len(files)} files, {size_bytes / 1e6:.1f} MB; earlier versions keep it"


# --- taking over -----------------------------------------------------------------------------------------------------


def _plan_path(store: Store, role: str) -> Path:
    return store.folder(".run", "renew", f"move-{role}.json")


def is_moving(store: Store, role: str) -> bool:
    """Whether a move was begun in this run and is not at its end."""
    return _plan_path(store, role).exists()


def settled(params: Params, store: Store, role: str) -> Params:
    """Parameters as of `with_moved_encoders`, after finishing a move that was cut off."""
    if is_moving(store, role):
        _finish_move(store, role)
    return with_moved_encoders(params, store)


def move_next(store: Store, role: str, spec: EncoderConfig, new_ids: Sequence[str], batch: str) -> None:
    """Put the next index into the place of the one in use; what a crash cuts off, `settled` finishes.

    Rows of this batch's neighbours that name no new image go to a file of their own: they are candidates of images that
    had their turn, and select offers pairs of new images only.

    Args:
        store: of the worktree.
        role: of the encoder.
        spec: of the encoder that takes over.
        new_ids: images of this batch.
        batch: the run's.
    """
    for path in store.table_files(f"neighbours/{next_of(role)}"):
        if path.stem.rpartition("-")[0] == batch:
            _split(store, path, new_ids)
    files = [sorted(p.name for p in (folder / "next").iterdir() if p.is_file()) for folder in _folders(store, role)]
    store.write_bytes(_plan_path(store, role), json.dumps({"files": files, "spec": spec_key(spec)}).encode())
    _finish_move(store, role)


def _folders(store: Store, role: str) -> list[Path]:
    return [store.folder("data", table, role) for table in ("embeddings", "neighbours")]


def _finish_move(store: Store, role: str) -> None:
    """Move the files that the plan names; those of the old index go. Repeatable."""
    wait_s = lock_wait_s()
    lock = store.folder(".run", "locks", f"renew-move-{role}")
    with exclusive(lock, wait_s, f"{lock}: another process has been moving an index for {wait_s:.0f} s; end it"):
        if not is_moving(store, role):
            return
        plan = json.loads(_plan_path(store, role).read_text())
        for folder, names in zip(_folders(store, role), plan["files"], strict=True):
            for old in [p for p in folder.iterdir() if p.is_file() and p.name not in names and p.name != MOVED]:
                old.unlink()
            for name in names:
                if (folder / "next" / name).exists():
                    os.replace(folder / "next" / name, folder / name)
            if (codes := folder / "next" / "codes").exists():
                shutil.rmtree(folder / "codes", ignore_errors=True)
                os.replace(codes, folder / "codes")
            shutil.rmtree(folder / "next", ignore_errors=True)
        store.write_bytes(_folders(store, role)[0] / MOVED, json.dumps(plan["spec"]).encode())
        store.write_bytes(store.folder(".run", "renew", f"moved-{role}.json"), b"{}")
        _plan_path(store, role).unlink()


def moved_roles(store: Store) -> list[str]:
    """Roles whose encoder this run changed: cosines before and after do not compare."""
    paths = sorted(store.folder(".run", "renew").glob("moved-*.json"))
    return [path.stem.removeprefix("moved-") for path in paths]


def _split(store: Store, path: Path, new_ids: Sequence[str]) -> None:
    """Keep in a file of this batch's neighbours the rows that name a new image, the others in one beside it."""
    import pyarrow.compute as pc

    stem, _, number = path.stem.rpartition("-")
    beside = path.with_name(f"{stem}.moved-{number}.parquet")
    table = store.read(path, "neighbours")
    named = names_any_id(table, new_ids, ["query_image_id", "target_image_id"])
    if not beside.exists():
        store.write(beside, table.filter(pc.invert(named)), "neighbours")
    store.write(path, table.filter(named), "neighbours")
