"""Embed, mine and select, cut off before each of their writes and run again: the same bytes as without a crash.

A real SIGKILL of every stage, at a few moments each: tests/factory/test_killed.py. Here toy stages "die" at every write
in turn, in milliseconds.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.config import ENCODER_ROLES, Params, parse_params, read_raw, resolve
from tasks.embed import stage as embed
from tasks.mine import stage as mine
from tasks.select import stage as select
from tasks.store import Store
from tasks.store.tables import TableWriter

BATCH = "2026.01.04"


class Died(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


class MortalStore(Store):
    """Dies before its n-th write."""

    def __init__(self, root: Path, writes: int) -> None:
        super().__init__(root)
        self.writes = writes

    def count(self) -> None:
        if self.writes == 0:
            raise Died
        self.writes -= 1

    def write_bytes(self, path: Path, content: bytes) -> None:
        self.count()
        super().write_bytes(path, content)


class ByName:
    """A vector from each caption's own letters: the same whatever the batch."""

    kind, revision = "text", "r1"

    def encode_texts(self, texts: Any) -> np.ndarray:
        rows = np.stack([np.random.default_rng(sum(map(ord, t)) // 3).normal(size=6) for t in texts])
        rows += 0.1 * np.stack([np.random.default_rng(sum(map(ord, t))).normal(size=6) for t in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def params() -> Params:
    encoders = {e: {"model": "toy", "kind": "text"} for e in ENCODER_ROLES}
    windows = {e: {"low": 0.2, "high": 0.9999} for e in ENCODER_ROLES}
    changes = {
        "open_run": {"batch": BATCH},
        "embed": {"encoders": encoders, "batch_images": 2},
        "mine": {"windows": windows},
    }
    return parse_params(resolve(read_raw(Path("params.yaml")), "test", changes))


def images(store: Store) -> None:
    rows = [
        {"image_id": f"{n:02d}", "batch": BATCH, "shard": f"{BATCH}-{n // 5:05d}.tar", "caption": f"caption {n:02d}"}
        for n in range(14)
    ]
    store.write(store.table_path("images", BATCH), rows, "images")


def factory(store: Store, *, until: str = "") -> None:
    """The three stages in order, up to but not with `until`."""
    for name, stage in stages().items():
        if name == until:
            return
        stage(store)


def stages() -> dict[str, Callable[[Store], Any]]:
    return {
        "embed": lambda store: [embed.run(params(), store, e) for e in ENCODER_ROLES],
        "mine": lambda store: [mine.run(params(), store, e) for e in ENCODER_ROLES],
        "select": lambda store: select.run(params(), store),
    }


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted((root / "data").rglob("*")) if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embed", "mine", "select"])
def test_cut_off_anywhere_and_run_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embed, "load_encoder", lambda *_: ByName())
    monkeypatch.setattr(mine, "CHUNK_QUERIES", 6)
    whole = Store(tmp_path / "whole")
    images(whole)
    factory(whole)
    assert whole.read_table("pairs").num_rows > 5
    for writes in range(100):
        root = tmp_path / f"cut{writes}"
        images(Store(root))
        factory(Store(root), until=name)
        mortal, close = MortalStore(root, writes), TableWriter.close
        try:
            with monkeypatch.context() as patch:  # a table that is written row by row is a write too
                patch.setattr(
                    TableWriter, "close", lambda writer, mortal=mortal, close=close: (mortal.count(), close(writer))
                )
                stages()[name](mortal)
        except Died:
            factory(Store(root))
            assert files(root) == files(whole.root)
        else:
            break
    assert 2 <= writes < 99
