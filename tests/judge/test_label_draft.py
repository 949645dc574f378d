"""The draft of a labelled file: its questions are drawn by the pairs' ids alone."""

from collections import Counter
from pathlib import Path

import pytest

from tasks.errors import DataError
from tasks.judge import label_draft
from tasks.judge.label_draft import questions
from tasks.store import Store


def test_questions_are_drawn_by_ids_alone_and_mix_targets_negatives_and_queries(tmp_path: Path):
    ids = [f"{n:02d}" for n in range(40)]
    pairs = {
        i: {"query_image_id": f"q{i}", "target_image_id": f"t{i}", "negative_image_ids": [f"q{i}", f"n{i}", f"m{i}"]}
        for i in ids
    }
    rows = [{"pair_id": i, "instructions": [f"make it {i}", f"a {i} one"]} for i in ids]
    drawn = questions(rows, pairs, 30)
    assert drawn == questions(list(reversed(rows)), pairs, 30)
    assert len({(r["query"], r["candidate"]) for r in drawn}) == 30
    kinds = Counter("n" if r["candidate"][0] in "nm" else r["candidate"][0] for r in drawn)
    assert kinds == {"t": 12, "n": 12, "q": 6}
    assert len(questions(rows[:10], pairs, 30)) == 20  # at most two questions about a pair
    without_mined = {i: {**p, "negative_image_ids": p["negative_image_ids"][:1]} for i, p in pairs.items()}
    assert {r["candidate"][0] for r in questions(rows, without_mined, 30)} == {"t", "q"}
    with pytest.raises(DataError, match="no captioned pair"):
        label_draft.write(Store(tmp_path), tmp_path / "out", 10)
