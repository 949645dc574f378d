"""Ingest withdraws what the takedown list names, and neither reads its files again nor takes in a copy."""

import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

from tasks.fingerprints.takedown import withdrawn_ids
from tasks.fingerprints.takedown_list import TakedownList, parse_lines
from tasks.ingest import stage as ingest
from tasks.ingest import withdraw
from tasks.ingest.withdraw import read_members
from tasks.store import Store
from tests.support.images import save_jpeg, smooth_image
from tests.support.ingest import folder_params, hash_files, read_drop_reasons, read_kept


def test_withdrawn_images_stay_away_and_are_named_nowhere(tmp_path: Path):
    source, store = tmp_path / "source", Store(tmp_path / "run")
    for n in range(5):
        save_jpeg(smooth_image(n), source / f"{n}.jpg")
    save_jpeg(smooth_image(0), source / "z.jpg", 75)  # a copy of 0, in another encoding
    ingest.run(folder_params(source), store)
    before = read_kept(store)
    assert set(before) == {f"{n}.jpg" for n in range(5)}
    sum_of_0 = hashlib.sha256((source / "0.jpg").read_bytes()).hexdigest()
    takedown = tmp_path / "takedown.txt"
    takedown.write_text(f"{sum_of_0}, privacy\nmine:1.jpg\nhttps://example.org/x.jpg\n{before['2.jpg']['phash']}\n")

    params = folder_params(source, "2026.01.11", takedown=str(takedown))
    report = ingest.run(params, store)
    assert (report.read, report.figures["images_withdrawn"]) == (0, 3), "their files are known still"
    gone = {before[f"{n}.jpg"]["image_id"] for n in range(3)}
    assert withdrawn_ids(store) == gone and set(read_kept(store)) == {"3.jpg", "4.jpg"}
    counts = [note.partition(": ")[2] for note in report.notes if note.startswith("takedown,")]
    assert counts[:2] == ["1 images withdrawn", "1 images withdrawn"] and counts[2].startswith("1 images withdrawn")
    assert "4 entries, 3 stored images withdrawn, 1 entries match none" in report.notes[0]
    for name in ("3.jpg", "4.jpg"):
        assert store.read_image_bytes(before[name]["image_id"])
    members = read_members(tmp_path / "run" / "data" / "shards" / "2026.01.04-00000.tar")
    assert {m.name.partition(".")[0] for m in members} == {before[n]["image_id"] for n in ("3.jpg", "4.jpg")}
    dropped = json.dumps(store.read_dropped().to_pylist())
    assert not any(word in dropped for word in (*gone, sum_of_0, "0.jpg", "1.jpg", "z.jpg", before["0.jpg"]["phash"]))

    shutil.copyfile(source / "1.jpg", source / "again.jpg")
    report = ingest.run(folder_params(source, "2026.01.18", takedown=str(takedown)), store)
    assert report.dropped == {"taken_down": 1} and "again.jpg" not in json.dumps(store.read_dropped().to_pylist())
    shutil.copyfile(source / "1.jpg", source / "once more.jpg")
    report = ingest.run(folder_params(source, "2026.01.25"), store)  # the list was lost: what was withdrawn stays out
    assert report.dropped == {"taken_down": 1} and set(read_kept(store)) == {"3.jpg", "4.jpg"}
    finished = hash_files(tmp_path / "run")
    ingest.run(params, store)
    assert hash_files(tmp_path / "run") == finished


def test_a_file_that_was_never_taken_in_is_not_published_by_its_address(tmp_path: Path):
    source, store, takedown = tmp_path / "source", Store(tmp_path / "run"), tmp_path / "takedown.txt"
    save_jpeg(smooth_image(0), source / "kept.jpg")
    save_jpeg(smooth_image(1).resize((9, 9)), source / "tiny.jpg")
    ingest.run(folder_params(source), store)
    assert set(read_drop_reasons(store)) == {"tiny.jpg"}
    takedown.write_text("mine:tiny.jpg\nmine:new.jpg\nsha256," + "0" * 64)
    save_jpeg(smooth_image(2), source / "new.jpg")
    report = ingest.run(folder_params(source, "2026.01.11", takedown=str(takedown)), store)
    assert report.dropped == {"taken_down": 1} and set(read_kept(store)) == {"kept.jpg"}
    dropped = store.read_dropped("ingest").to_pylist()
    assert {row["reason"] for row in dropped} == {"taken_down"} and len(dropped) == 2
    assert all(row["key"].startswith("mine:withheld-") and ".jpg" not in row["detail"] for row in dropped)
    again = ingest.run(folder_params(source, "2026.01.18", takedown=str(takedown)), store)
    assert again.read == 0, "both files are known still"


def test_a_week_of_refused_files_is_looked_through_in_little_memory(tmp_path: Path):
    """A file of dropped rows holds a whole week, of which the list names two."""
    store, count = Store(tmp_path), 12_000
    rows = [
        {
            "stage": "ingest",
            "batch": "2026.01.04",
            "key": f"s:{n}.jpg",
            "reason": "too_small",
            "detail": json.dumps({"sha256": f"{n:064x}", "why": f"{n} px " * 60}),
        }
        for n in range(count)
    ]
    named = {f"s:{n}.jpg" for n in (7, 11_000)}
    takedown = TakedownList(parse_lines(["s:7.jpg", f"{11_000:064x}"], "letter"), {"s": "/s"})
    whole = [withdraw._hidden(row) if row["key"] in named else row for row in rows]
    paths = [store.dropped_path("ingest", "2026.01.04", n) for n in range(3)]
    store.write(paths[0], rows, "dropped")
    store.write(paths[1], whole, "dropped")  # as if they were written by then; nothing is left to hide
    store.write(paths[2], [], "dropped")
    states = [path.stat().st_ino for path in paths]
    tracemalloc.start()
    rows.clear()
    withdraw._hide_refused(store, takedown)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [path.stat().st_ino == ino for path, ino in zip(paths, states, strict=True)] == [False, True, True]
    assert peak_bytes < 5e6, "all rows of a file at once take 13 MB"
