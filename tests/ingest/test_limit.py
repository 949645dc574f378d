"""`open_run.limit` counts kept images; what was not reached comes last and is given up in the end, said."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.ingest import history, intake, parallel
from tasks.ingest import stage as ingest
from tasks.ingest.inspect import InspectedFile
from tasks.ingest.lanes import PlacedFile
from tasks.ingest.rules import Rejection
from tasks.sources.files import FileRejected, Metadata, SourceFile
from tasks.store import Store
from tests.support.images import block_image, encode
from tests.support.ingest import folder_params, ingest_params, read_drop_reasons, read_kept
from tests.support.web import serving


def table_params(root: Path, names: list[str], url: str, batch: str, **more: Any) -> Any:
    """A run over a table of URLs below `url`."""
    table = root / "urls.csv"
    table.write_text("url,caption\n" + "".join(f"{url}/{name},caption of {name}\n" for name in names))
    source = {"name": "web", "path": str(table), "contact": "me@example.org", "delay_s": 0, "per_host": 8}
    return ingest_params([{**source, "robots": False, "allow_hosts": ["127.0.0.1"]}], batch, **more)


def draw(folder: Path, *numbers: int) -> None:
    folder.mkdir(exist_ok=True)
    for n in numbers:
        (folder / f"{n:02d}.png").write_bytes(encode(block_image(n)))


def names(store: Store, batch: str) -> list[str]:
    rows = store.read_table("images", ["source_uri"], batch).column("source_uri").to_pylist()
    return [uri.rpartition("/")[2].rpartition(":")[2] for uri in rows]


def test_dead_urls_in_front_do_not_use_up_the_limit_and_come_last_in_the_next_weeks(tmp_path: Path):
    site = tmp_path / "site"
    draw(site, *range(8))
    dead = ["dead0.png", "dead1.png", "dead2.png"]
    alive = [f"{n:02d}.png" for n in range(8)]
    with serving(site) as url:
        store = Store(tmp_path / "run")

        def week(batch: str) -> Any:
            return ingest.run(table_params(tmp_path, [*dead, *alive], url, batch, limit=3, max_tries=2), store)

        first = week("2026.01.04")
        assert (first.written, first.read, names(store, "2026.01.04")) == (3, 6, alive[:3])
        assert "stopped at open_run.limit, 3 images" in first.notes[-1]
        assert (week("2026.01.11").written, names(store, "2026.01.11")) == (3, alive[3:6])
        third = week("2026.01.18")
        assert (third.written, third.read, names(store, "2026.01.18")) == (2, 2, alive[6:])
    assert set(read_drop_reasons(store).values()) == {"unreachable"}


def failing_then_good(monkeypatch: pytest.MonkeyPatch, folder: Path, failing: set[str]) -> list[str]:
    """Files of the folder, of which those of `failing` are not reached; returns the order in which they are read."""
    read: list[str] = []
    real = SourceFile.read

    def read_or_fail(file: SourceFile, limit_bytes: int) -> Any:
        read.append(file.uri)
        if file.uri.partition(":")[2] in failing:
            raise FileRejected("unreachable", "connection refused", is_lasting=False)
        return real(file, limit_bytes)

    monkeypatch.setattr(SourceFile, "read", read_or_fail)
    real_list = intake.list_files

    def list_with_fingerprints(*args: Any) -> Any:
        for file in real_list(*args):
            digest = hashlib.sha256(file.uri.encode()).hexdigest()
            yield SourceFile(file.uri, digest, Metadata(), "CC0-1.0", "", reader=file.reader)

    monkeypatch.setattr(intake, "list_files", list_with_fingerprints)
    return read


def test_a_file_that_was_not_reached_is_tried_after_all_others_and_given_up_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, store = tmp_path / "source", Store(tmp_path / "run")
    draw(folder, 0, 5)
    read = failing_then_good(monkeypatch, folder, {"00.png"})
    reports = []
    for week in range(4):
        draw(folder, 10 + week)
        read.clear()
        reports.append(ingest.run(folder_params(folder, f"2026.01.{4 + 7 * week:02d}", max_tries=3), store))
        reports[-1].notes.append(" ".join(uri.partition(":")[2] for uri in read))
    assert [r.notes[-1] for r in reports] == ["00.png 05.png 10.png", "11.png 00.png", "12.png 00.png", "13.png"]
    assert [r.written for r in reports] == [2, 1, 1, 1]
    details = [json.loads(row["detail"]) for row in store.read_dropped("ingest").to_pylist()]
    assert [d.get("tries") for d in details] == [None, 2, 3]
    assert [d.get("is_given_up", False) for d in details] == [False, False, True]
    assert (
        "1 files were unreachable in ingest.max_tries batches and are not tried again: mine:00.png" in reports[2].notes
    )
    # a higher number of tries revives it
    read.clear()
    last = ingest.run(folder_params(folder, "2026.02.01", max_tries=9), store)
    assert (read, last.dropped) == (["mine:00.png"], {"unreachable": 1})


def test_an_unreadable_local_file_is_given_up_until_it_is_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It has no fingerprint: only its bytes tell."""
    folder, store = tmp_path / "source", Store(tmp_path / "run")
    draw(folder, 0)
    (folder / "x.png").symlink_to(folder / "gone.png")
    params = [folder_params(folder, f"2026.01.{day}", max_tries=1) for day in ("04", "11", "18")]

    def break_x(file: SourceFile, limit_bytes: int) -> Any:
        raise FileRejected("unreachable", "cannot be read", is_lasting=False)

    with monkeypatch.context() as patch:
        patch.setattr(SourceFile, "read", break_x)
        assert ingest.run(params[0], store).dropped["unreachable"] >= 1
    (folder / "x.png").unlink()
    draw(folder, 1)
    second = ingest.run(params[1], store)
    assert second.written == 2  # 00.png, which is readable now, and 01.png


@pytest.mark.parametrize("in_front", ["copies", "broken", "small"])
def test_what_is_dropped_in_front_does_not_count(in_front: str, tmp_path: Path):
    folder, store = tmp_path / "source", Store(tmp_path / "run")
    draw(folder, 10, 11, 12, 13)
    first = encode(block_image(0))
    (folder / "00.png").write_bytes(first)
    for n in range(1, 8):
        content = {"copies": first, "broken": b"broken", "small": encode(block_image(n).resize((9, 9)))}[in_front]
        (folder / f"{n:02d}.png").write_bytes(content)
    assert ingest.run(folder_params(folder, limit=3), store).written == 3
    assert names(store, "2026.01.04") == ["00.png", "10.png", "11.png"]
    assert ingest.run(folder_params(folder, "2026.01.11", limit=3), store).written == 2  # known ones in front


def test_sources_are_taken_in_order_of_name(tmp_path: Path):
    store = Store(tmp_path / "run")
    draw(tmp_path / "b", 0, 1, 2)
    draw(tmp_path / "a", 3, 4)
    sources = [{"name": name, "path": str(tmp_path / name)} for name in ("b", "a")]
    ingest.run(ingest_params(sources, limit=3), store)
    assert names(store, "2026.01.04") == ["03.png", "04.png", "00.png"]
    ingest.run(ingest_params(sources, "2026.01.11", limit=3), store)
    assert names(store, "2026.01.11") == ["01.png", "02.png"]


def test_the_last_member_of_a_tar_does_not_hide_members_that_were_not_reached():
    past = history.SourceHistory()
    past._add_dropped("t:x.tar/b.jpg", {"is_lasting": False, "fingerprint": "abc/1"})
    past._add_dropped("t:x.tar/c.jpg", {"fingerprint": "abc/end"})
    past._add_dropped("t:y.tar/c.jpg", {"fingerprint": "def/end"})
    past.seal()
    assert not past.has_fingerprint("abc/end") and past.has_fingerprint("def/end")


def test_a_hash_map_finds_what_was_added():
    numbers = history.HashMap()
    keys = [history.short_hash(str(n)) for n in range(200_000)]
    for n, key in enumerate(keys):
        numbers.add(key, n)
    numbers.add(keys[7], 70)
    numbers.seal()
    assert len(numbers) == 200_000
    assert (numbers.get(keys[7]), numbers.get(keys[199_999]), numbers.get(1, -1)) == (70, 199_999, -1)
    assert keys[0] in numbers and 1 not in numbers
    empty = history.HashMap()
    empty.seal()
    assert 1 not in empty and empty.get(1) == 0


# --- threads ----------------------------------------------------------------------------------------------------------


def placed_file(number: int, *, is_remote: bool) -> PlacedFile:
    """The n-th file of a listing of one lane."""
    return PlacedFile(SourceFile(f"s:{number}", "", Metadata(), "", "", is_remote=is_remote), 0, number, number)


def test_the_number_of_threads_is_decided_by_what_a_files_bytes_come_from():
    """A table of URLs on the local disk is fetched as one in a bucket is."""
    under_way, most, lock = {True: 0, False: 0}, {True: 0, False: 0}, threading.Lock()

    def inspect(placed: PlacedFile) -> InspectedFile:
        is_remote = placed.file.is_remote
        with lock:
            under_way[is_remote] += 1
            most[is_remote] = max(most[is_remote], under_way[is_remote])
        time.sleep(0.02)
        with lock:
            under_way[is_remote] -= 1
        return InspectedFile(placed.file, "", Rejection("undecodable"))

    files = [placed_file(n, is_remote=n % 2 == 0) for n in range(200)]
    results = list(parallel.map_in_order(iter(files), inspect, parallel.Threads(local=2)))
    assert [placed for placed, _, _ in results] == files and all(is_new for _, _, is_new in results)
    assert [inspected.file for _, inspected, _ in results] == [placed.file for placed in files]
    assert most[False] == 2 and most[True] > 8


def test_a_small_limit_begins_few_files():
    begun: list[PlacedFile] = []

    def inspect(placed: PlacedFile) -> InspectedFile:
        begun.append(placed)
        return InspectedFile(placed.file, "", Rejection("undecodable"))

    files = (placed_file(n, is_remote=True) for n in range(10_000))
    results = parallel.map_in_order(files, inspect, parallel.Threads(2), wanted=lambda: 3)
    for _ in range(3):
        next(results)
    results.close()
    assert len(begun) <= 3 + parallel.AHEAD_FILES


def test_kept_images_do_not_depend_on_the_limit_that_stopped_the_batches(tmp_path: Path):
    folder = tmp_path / "source"
    draw(folder, *range(7))
    whole, weekly = Store(tmp_path / "whole"), Store(tmp_path / "weekly")
    ingest.run(folder_params(folder), whole)
    for week in range(4):
        ingest.run(folder_params(folder, f"2026.01.{4 + 7 * week:02d}", limit=2), weekly)
    assert [r["image_id"] for r in read_kept(whole).values()] == [r["image_id"] for r in read_kept(weekly).values()]
