"""Vectors of the encoder that is to follow the one in use (tasks/renewal/encoders.py): which shards a run encodes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from tasks.config import NextEncoderConfig
from tasks.locks import exclusive, lock_wait_s
from tasks.renewal.encoders import missing_shards, next_of
from tasks.renewal.makers import batch_order
from tasks.store import Store

log = logging.getLogger(__name__)
FIRST_DROPPED = 50_000  # number of a batch's first file of rows that the next encoder drops


def choose_shards(missing: Mapping[str, int], budget: int | None) -> list[str]:
    """Stems of the shards to encode, the oldest first: as many whole ones as the budget allows; pure.

    Args:
        missing: stem of an earlier batch's shard -> its images, a count.
        budget: most images, a count; None for no limit.
    """
    chosen: list[str] = []
    images = 0
    for stem in sorted(missing, key=lambda stem: (batch_order(stem.rpartition("-")[0]), stem)):
        images += missing[stem]
        if budget is not None and images > budget:
            break
        chosen.append(stem)
    return chosen


def plan_shards(
    store: Store, role: str, spec: NextEncoderConfig, of_batch: Sequence[str], sizes: Mapping[str, int]
) -> list[str]:
    """Stems of the shards that this run encodes with the next encoder; made once in a run.

    Args:
        store: of the worktree.
        role: of the encoder.
        spec: of the next one.
        of_batch: stems of this batch's shards: they are always among them.
        sizes: stem -> images, of all shards.
    Raises:
        TransientError: another part has been choosing for a long time.
    """
    path, wait_s = plan_path(store, role), lock_wait_s()
    lock = store.folder(".run", "locks", f"renew-plan-embed-{role}")
    problem = f"{lock}: another part has been choosing shards for {wait_s:.0f} s; end it, then run again"
    with exclusive(lock, wait_s, problem):  # of all parts the first one chooses
        if not path.exists():
            own = set(of_batch)
            missing = {stem: sizes.get(stem, 0) for stem in missing_shards(store, role) if stem not in own}
            stems = choose_shards(missing, spec.budget)
            left = sum(missing.values()) - sum(missing[stem] for stem in stems)
            plan = {"stems": [*stems, *sorted(own)], "images": sum(missing[stem] for stem in stems), "left": left}
            store.write_bytes(path, json.dumps(plan).encode())
    stems = json.loads(path.read_text())["stems"]
    return list(stems)


def plan_path(store: Store, role: str) -> Path:
    """Where it is kept which shards this run encodes."""
    return store.folder(".run", "renew", f"embed-{role}.json")


def sentence(store: Store, role: str, budget: int | None) -> str:
    """What this run does for the next index, for the report."""
    plan = json.loads(plan_path(store, role).read_text())
    text = f"renewal of {role}: {plan['images']} earlier images encoded by the next encoder, {plan['left']} are left"
    if not plan["images"] and plan["left"]:
        text += f"; the budget of {budget} is less than the images of the oldest shard: raise embed.next.{role}.budget"
    return text


def remove_other_revisions(store: Store, role: str, revision: str) -> int:
    """Begin the next index anew where it was begun with another model; returns how many shards went."""
    folder = store.folder("data", "embeddings", role, "next")
    wait_s = lock_wait_s()
    lock = store.folder(".run", "locks", f"renew-embed-{role}")
    problem = f"{lock}: another part has been removing vectors for {wait_s:.0f} s; end it, then run again"
    with exclusive(lock, wait_s, problem):
        others = []
        for stem in store.embedded_shards(next_of(role)):
            path = folder / f"{stem}.parquet"
            if (pq.read_schema(path).metadata or {}).get(b"revision", b"").decode() != revision:
                others.append(path)
        if others:
            log.warning("embed %s: the next index was begun with another model, and is begun anew", role)
            shutil.rmtree(store.folder("data", "neighbours", role, "next"), ignore_errors=True)
        for path in others:
            path.unlink()
            path.with_suffix(".npy").unlink(missing_ok=True)
        return len(others)
