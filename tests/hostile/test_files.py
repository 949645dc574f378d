"""At least 400 generated files and forms: each ends as the row that is expected, and the counts add up."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tasks.config import SourceConfig
from tasks.errors import DataError
from tasks.ingest import stage as ingest
from tasks.ingest.inspect import make_workers
from tasks.sources.counts import ListingCounts
from tasks.sources.files import FileRejected
from tasks.sources.open import list_files
from tasks.store import Store
from tests.hostile import forms
from tests.support.ingest import folder_params, ingest_params

MIB = 1 << 20


@pytest.fixture(scope="module")
def cases() -> list[forms.Case]:
    return forms.files()


def test_the_set_is_large_enough(cases: list[forms.Case]):
    assert len({case.name for case in cases}) == len(cases)
    assert len(cases) + len(list(forms.tar_cases())) + len(list(forms.table_cases())) >= 400


def ended_rows(store: Store, batch: str) -> tuple[dict[str, str], int]:
    """How each file ended, by its name inside the source, and the number of rows."""
    kept = store.read_table("images", ["source_uri"], batch).column("source_uri").to_pylist()
    dropped = store.read_dropped("ingest", batch).to_pylist()
    rows = {uri.partition(":")[2]: forms.KEPT for uri in kept}
    rows |= {row["key"].partition(":")[2]: row["reason"] for row in dropped}
    return rows, len(kept) + len(dropped)


@pytest.mark.slow
def test_every_file_ends_as_its_row_and_no_worker_grows(cases: list[forms.Case], tmp_path: Path, monkeypatch: Any):
    source = tmp_path / "source"
    for case in cases:
        path = source / case.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case.content)
    peaks: list[int] = []

    def measured(config: Any) -> Any:
        workers = make_workers(config)
        read = workers.read

        def read_and_measure(content: bytes, *, is_named_image: bool) -> Any:
            result = read(content, is_named_image=is_named_image)
            peaks.extend(peak_bytes(pid) for pid in workers.pids())
            return result

        monkeypatch.setattr(workers, "read", read_and_measure)
        return workers

    monkeypatch.setattr(ingest, "make_workers", measured)
    params = folder_params(source, hash_distance_bits=0, thumbnail_distance=0.0, workers=2)
    store = Store(tmp_path / "run")
    report = ingest.run(params, store)
    rows, count = ended_rows(store, "2026.01.04")
    wrong = {
        case.name: (rows.get(escaped(case.name)), case.rows)
        for case in cases
        if rows.get(escaped(case.name)) not in case.rows
    }
    assert wrong == {}
    assert report.read == report.written + sum(report.dropped.values()) == count == len(cases)
    assert 0 < max(peaks) < (params.ingest.worker_memory_mib + 250) * MIB


def peak_bytes(pid: int) -> int:
    """Most memory that a process has held; 0 for one that has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 if "VmHWM:" in status else 0


def escaped(name: str) -> str:
    from tasks.sources.files import escape_name

    return escape_name(name)


@pytest.mark.parametrize("case", list(forms.tar_cases()), ids=lambda case: case.name)
def test_every_tar_gives_its_images_and_says_its_damage(case: forms.TarCase, tmp_path: Path):
    (tmp_path / "x.tar").write_bytes(case.content)
    read, damaged = [], False
    for file in list_files(SourceConfig(name="t", path=str(tmp_path / "x.tar"))):
        try:
            content = file.read(10 * MIB)
        except FileRejected as rejected:
            damaged |= "damaged" in rejected.detail or "ends within" in rejected.detail
            continue
        assert content[:2] == b"\xff\xd8"
        read.append(file.uri.partition("/")[2])
    assert (tuple(read), damaged) == (case.kept, case.damaged)


@pytest.mark.parametrize("case", list(forms.table_cases()), ids=lambda case: case.name)
def test_every_row_of_a_table_is_listed_or_rejected_and_the_rows_add_up(case: forms.TableCase, tmp_path: Path):
    path = tmp_path / case.name
    path.write_bytes(case.content)
    counts, found = ListingCounts(), Counter[bool]()
    source = SourceConfig(name="t", path=str(path), contact="me@example.org")
    for file in list_files(source, lambda _: False, counts):
        found[file.is_rejected] += 1
    assert (found[False], found[True]) == (case.urls, case.rejected)
    assert counts.rows == found.total() + counts.repeated_rows
    assert counts.captions == counts.matched + counts.unmatched


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.parquet", "x.csv.gz", "x.jsonl.zst"])
@pytest.mark.parametrize("content", [b"", b"\0" * 99, b"no table", b"\x1f\x8b\x08junk", b"PAR1junkPAR1", b"\xff\xfe"])
def test_what_is_no_table_is_an_error_by_name_or_a_row(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    source = SourceConfig(name="t", path=str(tmp_path / name), contact="me@example.org")
    try:
        files = list(list_files(source))
    except DataError as error:
        assert name in str(error)
    else:
        assert all(file.is_rejected for file in files)


def test_a_bad_source_beside_a_good_one_costs_only_itself(tmp_path: Path):
    """Of several tables of one source, the broken one is a row; the good ones are listed."""
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "a.csv").write_bytes(b"\0\0no table")
    (folder / "b.csv").write_text("url,caption\nhttps://a.example/1.jpg,x\n")
    (folder / "c.parquet").write_bytes(b"PAR1junk")
    source = SourceConfig(name="t", path=str(folder), kind="table", contact="me@example.org")
    files = list(list_files(source))
    assert [file.is_rejected for file in files].count(False) == 1 and len(files) == 3


def test_case_01_names_that_look_like_ways_out_end_no_week(tmp_path: Path, project: Path):
    """A folder `a..`; the gate goes on."""
    import shutil

    from tasks.validate import stage as validate

    folder = tmp_path / "source" / "a.."
    folder.mkdir(parents=True)
    (folder / "x..jpg").write_bytes(forms.encode(forms.draw(), "JPEG"))
    (tmp_path / "source" / "y.jpg").write_bytes(forms.encode(forms.draw(), "JPEG"))
    store = Store(tmp_path / "run")
    shutil.copytree(project / "expectations", store.root / "expectations")
    params = ingest_params([{"name": "mine", "path": str(tmp_path / "source")}])
    ingest.run(params, store)
    assert validate.run(params, store, table="images").written == 0
