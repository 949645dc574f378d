"""What changed between two versions, and that nothing of a withdrawn image is shown again."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tasks.pages.changes import changes_page, section, with_section
from tasks.publish.changes import as_values, compare, compare_params
from tasks.publish.diff import thumbnails
from tasks.publish.snapshots import Snapshot
from tasks.store import Store
from tests.support.tiny import BATCH, save_version


def snapshot(store: Store, name: str, **record: Any) -> Snapshot:
    """The store's files as a version."""
    paths = {p.relative_to(store.root).as_posix(): p for p in (store.root / "data").rglob("*") if p.is_file()}
    manifest = {name: {"sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for name, p in paths.items()}
    return Snapshot.of_worktree(store.root, {"version": name, **record}, manifest)


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Snapshot, Snapshot]:
    """The second version lacks image 00a and its triplet, has a triplet more and another caption."""
    old, new = save_version(tmp_path / "a"), save_version(tmp_path / "b")
    images, triplets = (new.read_table(table).to_pylist() for table in ("images", "triplets"))
    images = [{**row, "caption": "a new one" if row["image_id"] == "01b" else row["caption"]} for row in images[1:]]
    more = {**triplets[1], "triplet_id": "more", "instructions": ["one two three"], "judge": "another"}
    new.write(new.table_path("images", BATCH), images, "images")
    new.write(new.table_path("triplets", BATCH, 0), [*triplets[1:], more], "triplets")
    lost = {"stage": "judge", "batch": "2026.01.12", "key": "t0", "reason": "taken_down", "detail": ""}
    new.write(new.dropped_path("judge", "2026.01.12"), [lost], "dropped")
    captions = [
        {"image_id": "01b", "caption": "an old one", "caption_source": "m", "prompt_tokens": 0, "output_tokens": 0}
    ]
    old.write(old.table_path("captions", BATCH), captions, "captions")
    before = {
        "quality": {"judge": {"yield": 0.5}},
        "new_drops": {"judge": {"wrong_target": 3}},
        "params": {"mine": {"k": 1}},
    }
    after = {"quality": {"judge": {"yield": 0.25}}, "new_drops": {}, "params": {"mine": {"k": 2}}}
    return snapshot(old, BATCH, **before), snapshot(new, "2026.01.12", **after)


def test_rows_reasons_captions_and_figures(versions: tuple[Snapshot, Snapshot]):
    changes = compare(*versions)
    assert (changes.tables["triplets"].added, changes.tables["triplets"].withdrawn) == (["more"], ["t0"])
    assert changes.tables["triplets"].reasons == {"taken_down": 1}
    assert changes.tables["images"].withdrawn == ["00a"]
    assert changes.recaptioned == {"01b": ("an old one", "a new one")}
    assert changes.figures == [("judge: yield", 0.5, 0.25)]
    assert changes.drops == [("judge", "wrong_target", 3, 0)]
    assert changes.params == [("mine.k", 1, 2)]


def test_the_page_shows_examples_but_nothing_of_a_withdrawn_image(versions: tuple[Snapshot, Snapshot]):
    changes = compare(*versions)
    images = thumbnails(changes, *versions)
    page = changes_page(as_values(changes), images, "tiny")
    assert "00a" not in images and "00b" in images
    assert "image withdrawn" in page and "make it 0" not in page and "one two three" in page
    assert "<script" not in page


def test_a_section_of_the_changelog_replaces_that_of_an_earlier_try(versions: tuple[Snapshot, Snapshot]):
    new = section(as_values(compare(*versions)))
    assert "0 images added, 1 withdrawn" in new and "| `judge: yield` | 0.5 | 0.25 |" in new
    once = with_section("", new, "2026.01.12")
    assert once.startswith("# Changes of the data\n") and once.count("## 2026.01.12") == 1
    assert with_section(once, new, "2026.01.12") == once
    later = with_section(once, "## 2026.01.19\n\nMore.", "2026.01.19")
    assert (
        later.index("## 2026.01.19") < later.index("## 2026.01.12")
        and with_section(later, new, "x").count("\n## ") == 3
    )


def test_parameters_differ_by_their_dotted_names():
    before = {"a": {"b": 1, "c": [1]}, "open_run": {"date": "x"}}
    assert compare_params(before, {"a": {"b": 2, "c": [1]}, "d": None}) == [("a.b", 1, 2)]
