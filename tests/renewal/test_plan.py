"""The plan of a renewal is one for all parts of a run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.errors import TransientError
from tasks.renewal import plan
from tasks.renewal.makers import MadeRow
from tasks.renewal.plan import Plan, Wish, make_plan
from tasks.store import Store


def make(store: Store) -> Plan:
    return make_plan(store, Wish((), None, {"judge": "new"}), "judge", "2026.01.11", {"a": "a", "b": "b"}, 1)


def test_a_part_waits_while_another_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It would see what the other has left of the old rows, and give the same files other units."""
    store = Store(tmp_path)
    monkeypatch.setenv("MEGAPAIRS_LOCK_WAIT_S", "0")

    def rows_while_another_starts(*_: object) -> Iterator[MadeRow]:
        with pytest.raises(TransientError, match="another part has been choosing rows to renew"):
            make(store)
        yield from (MadeRow(key, "2026.01.04", {"judge": "old"}) for key in ("a", "b"))

    monkeypatch.setattr(plan, "earlier_rows", rows_while_another_starts)
    assert make(store).units == ("a", "b")
    monkeypatch.setattr(plan, "earlier_rows", lambda *_: iter(()))
    assert make(store).units == ("a", "b")
