"""The draft of a labelled file: its questions are drawn by the pairs' ids alone; its sheet shows each as text."""

import csv
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tasks.config import overlay, read_raw, resolve
from tasks.errors import DataError
from tasks.judge import label_draft
from tasks.judge.label_draft import questions
from tasks.store import Store
from tests.support.fake_run import fill
from tests.support.markup import assert_harmless


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


def test_the_sheet_shows_every_row_of_the_file_under_its_number(tmp_path: Path, project: Path):
    changes = {"open_run": {"date": "2026-11-16", "batch": "2026.11.16"}}
    raw = overlay(resolve(read_raw(project / "params.yaml"), "test"), changes)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    fill(tmp_path, range(0, 8))
    count = label_draft.write(Store(tmp_path), tmp_path / "out", 5)
    with open(tmp_path / "out" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    sheet = assert_harmless((tmp_path / "out" / "sheet.html").read_text())
    assert count == len(rows) == 5 and all(row["fits"] == "" for row in rows)
    assert sheet.tags.count("article") == 5 and sheet.tags.count("img") == 10
    assert [f"row {n}" in sheet.text for n in (1, 5, 6)] == [True, True, False]
    hostile = "make it <b>red</b>"
    assert any(row["instruction"] == hostile for row in rows) and hostile in sheet.text
    assert all((tmp_path / "out" / row[c]).is_file() for row in rows for c in ("query", "candidate"))
