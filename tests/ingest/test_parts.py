"""Ingest in parts: the same bytes for any number of parts, any order, any workers, and after kills."""

import csv
import io
import itertools
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.ingest import fetch, lanes, listing, staging
from tasks.ingest import stage as ingest
from tasks.ingest.normalize import configure_decoders, normalize_image
from tasks.sources.files import Metadata, SourceFile
from tasks.store import Store
from tests.support.images import block_image, encode
from tests.support.ingest import hash_files, ingest_params
from tests.support.web import running

BATCH = "2026.01.04"


class InProcessWorkers:
    """Stands where ImageWorkers stands: the same function, without the processes around it."""

    def __init__(self, config: Any) -> None:
        self.rules = staging_rules(config)

    def __enter__(self) -> "InProcessWorkers":
        configure_decoders()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, content: bytes, *, is_named_image: bool) -> Any:
        return normalize_image(content, is_named_image=is_named_image, rules=self.rules)


def staging_rules(config: Any) -> Any:
    from tasks.ingest.inspect import normalization_rules

    return normalization_rules(config)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker processes; small blocks, so that a few files fill several."""
    for module in (ingest, fetch):
        monkeypatch.setattr(module, "make_workers", InProcessWorkers)
    monkeypatch.setattr(staging, "BLOCK_FILES", 3)
    monkeypatch.setattr(staging, "SEGMENT_FILES", 2)
    monkeypatch.setattr(lanes, "RUN_FILES", 2)


class Site:
    """A folder behind HTTP that counts what is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requests = folder, Counter[str]()
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                site.requests[self.path] += 1
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    for n in range(20, 32):
        (folder / f"{n}.png").write_bytes(encode(block_image(n)))
    (folder / "copy.png").write_bytes(encode(block_image(2)))
    (folder / "broken.png").write_bytes(b"broken")
    site = Site(folder)
    with running(site.server):
        yield site


@pytest.fixture(scope="module")
def sources(site: Site, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One source of each kind, with copies of each other's images, broken files and captions."""
    root = tmp_path_factory.mktemp("sources")
    folder = root / "folder"
    folder.mkdir()
    with open(folder / "captions.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["path", "caption"])
        for n in range(9):
            (folder / f"{n}.png").write_bytes(encode(block_image(n)))
            rows.writerow([f"{n}.png", f"caption {n}"])
    (folder / "again.png").write_bytes((folder / "3.png").read_bytes())
    (folder / "text.txt").write_text("no image")
    with tarfile.open(root / "some.tar", "w") as tar:
        for n in (1, 10, 11, 12, 13):
            for suffix, content in (("png", encode(block_image(n))), ("txt", f"tar {n}".encode())):
                member = tarfile.TarInfo(f"{n}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    images = [{"bytes": encode(block_image(n)), "path": None} for n in (14, 15, 2)]
    pq.write_table(pa.table({"image": images, "text": ["a", "b", "c"]}), root / "held.parquet")
    port = site.server.server_port
    names = [*(f"{n}.png" for n in range(20, 32)), "copy.png", "broken.png", "missing.png"]
    with open(root / "urls.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["url", "caption"])
        for n, name in enumerate(names):
            rows.writerow([f"http://{('127.0.0.1', 'localhost')[n % 2]}:{port}/{name}", f"caption of {name}"])
    web = {"contact": "me@example.org", "robots": False, "delay_s": 0, "allow_hosts": ["127.0.0.1", "::1", "localhost"]}
    return [
        {"name": "folder", "path": str(folder)},
        {"name": "tars", "path": str(root / "some.tar")},
        {"name": "held", "path": str(root / "held.parquet")},
        {"name": "web", "path": str(root / "urls.csv"), **web},
    ]


def params_of(sources: list[dict[str, Any]], batch: str = BATCH, limit: int | None = None, **more: Any) -> Params:
    return ingest_params(sources, batch, limit=limit, **more)


@pytest.fixture(scope="module")
def wholes() -> dict[int | None, tuple[dict[str, str], Any]]:
    """limit -> hashes of the files, and the report, of one call that does everything; filled when first needed."""
    return {}


def run_whole(sources: list[dict[str, Any]], limit: int | None, root: Path, wholes: dict[Any, Any]) -> Any:
    if limit not in wholes:
        report = ingest.run(params_of(sources, limit=limit), Store(root / "whole"))
        wholes[limit] = hash_files(root / "whole"), report
        shutil.rmtree(root / "whole")
    return wholes[limit]


class Killed(Exception):
    """What ends a part in the middle."""


def fetch_and_die(params: Params, store: Store, part: tuple[int, int], after: int, *, is_sudden: bool) -> None:
    """A part that ends after some results; suddenly: with all that is in memory lost."""
    added = itertools.count()

    class Dying(staging.InspectedFiles):
        def add(self, placed: lanes.PlacedFile, inspected: Any) -> None:
            if next(added) == after:
                raise Killed
            super().add(placed, inspected)

        def flush(self) -> None:
            if not is_sudden:
                super().flush()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "InspectedFiles", Dying)
        with suppress(Killed):
            fetch.run(params, store, part)


PLANS = st.fixed_dictionaries(
    {
        "parts": st.integers(1, 7),
        "order": st.permutations(range(1, 8)),
        "kills": st.lists(st.tuples(st.integers(1, 7), st.integers(0, 9), st.booleans()), max_size=3),
        "left_out": st.sets(st.integers(1, 7), max_size=2),
        "workers": st.integers(1, 3),
        "limit": st.sampled_from([None, None, 4, 17, 1000]),
    }
)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=PLANS)
def test_any_number_of_parts_gives_the_same_bytes(
    sources: list[dict[str, Any]], wholes: dict[Any, Any], tmp_path: Path, plan: dict[str, Any]
):
    """Parts in any order, killed ones, as another number of parts after a kill, and such as never ran."""
    parts, left_out, limit = plan["parts"], plan["left_out"], plan["limit"]
    hashes, whole = run_whole(sources, limit, tmp_path, wholes)
    root = tmp_path / "parts"
    shutil.rmtree(root, ignore_errors=True)
    params, store = params_of(sources, limit=limit, workers=plan["workers"]), Store(root)
    listed = listing.run(params, store)
    for number, after, is_sudden in plan["kills"]:
        fetch_and_die(params, store, (min(number, parts + 1), parts + 1), after, is_sudden=is_sudden)
    numbers = [number for number in plan["order"] if number <= parts and number not in left_out]
    reports = [fetch.run(params, store, (number, parts)) for number in numbers]
    if len(numbers) == parts:
        assert sum(r.new for r in reports) == listed.new
        assert [fetch.run(params, store, (number, parts)).read for number in numbers] == [0] * parts
    report = ingest.run(params, store)
    assert hash_files(root) == hashes
    assert (report.read, report.written, report.dropped) == (whole.read, whole.written, whole.dropped)
    if listing_is_whole(whole, limit):
        assert (report.figures, report.notes) == (whole.figures, whole.notes)
    assert not store.folder(".run", "ingest", BATCH).exists()


def listing_is_whole(report: Any, limit: int | None) -> bool:
    """Whether the batch saw all sources to their end: with a limit the two ways list further or less far."""
    return limit is None or report.written < limit


def test_a_killed_part_fetches_nothing_again_that_it_has(sources: list[dict[str, Any]], site: Site, tmp_path: Path):
    params, store = params_of(sources), Store(tmp_path)
    listing.run(params, store)
    site.requests.clear()
    for _ in range(4):
        fetch_and_die(params, store, (1, 1), 12, is_sudden=False)
    fetch.run(params, store, (1, 2))
    ingest.run(params, store)
    again = sum(site.requests.values()) - len(site.requests)
    # what was under way in a kill is not there yet: at most the files that were begun
    assert site.requests and again <= 4 * 15


def test_a_killed_ingest_without_parts_fetches_nothing_again_that_it_has(
    sources: list[dict[str, Any]], site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    web = [source for source in sources if source["name"] == "web"]
    params, store = params_of(web), Store(tmp_path)
    site.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(ingest.BatchWriter, "_publish", lambda _: (_ for _ in ()).throw(Killed))  # the last moment
        with pytest.raises(Killed):
            ingest.run(params, store)
    first = site.requests.copy()
    assert sum(first.values()) == 15
    report = ingest.run(params, store)
    assert site.requests == first and report.read == 15
    whole = Store(tmp_path / "whole")
    ingest.run(params, whole)
    assert hash_files(tmp_path / "whole") == {
        name: value for name, value in hash_files(tmp_path).items() if not name.startswith("whole")
    }


def test_results_of_another_listing_are_not_taken(sources: list[dict[str, Any]], site: Site, tmp_path: Path):
    """A table that grew at its front between a kill and the next call: each file keeps its own result."""
    web = next(source for source in sources if source["name"] == "web")
    lines = Path(web["path"]).read_text().splitlines(keepends=True)
    table = tmp_path / "urls.csv"
    store, params = Store(tmp_path / "run"), params_of([{**web, "path": str(table)}])
    table.write_text("".join(lines[:1] + lines[3:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest.BatchWriter, "_publish", lambda _: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            ingest.run(params, store)
    table.write_text("".join(lines))
    ingest.run(params, store)
    whole = Store(tmp_path / "whole")
    ingest.run(params, whole)
    assert hash_files(store.root) == hash_files(whole.root)


def test_a_week_after_the_first_skips_what_is_known_in_parts_too(sources: list[dict[str, Any]], tmp_path: Path):
    store = Store(tmp_path)
    ingest.run(params_of(sources, limit=9), store)
    second = params_of(sources, "2026.01.11")
    assert listing.run(second, store).new < 30
    for number in (2, 1, 3):
        fetch.run(second, store, (number, 3))
    ingest.run(second, store)
    whole = Store(tmp_path / "whole")
    ingest.run(params_of(sources), whole)
    uris = [row["source_uri"] for row in store.read_table("images").to_pylist()]
    assert uris == [row["source_uri"] for row in whole.read_table("images").to_pylist()]
    assert listing.run(second, store).new == fetch.run(second, store, (1, 1)).new == 0  # the batch is done


def test_a_hosts_urls_all_belong_to_one_part_whatever_the_number_of_parts():
    def web(url: str) -> SourceFile:
        return SourceFile(f"web:{url}", "f", Metadata(), "", "", is_remote=True)

    hosts = [f"{n}.example.org" for n in range(300)]
    spellings = ("http://{}/a", "https://{}:8443/b?x=http://y", "HTTP://{}/c", "http://me@{}/d")
    for host in hosts:
        found = {lanes.lane_of(web(s.format(host)), position) for position, s in enumerate(spellings)}
        assert found == {lanes.lane_of(web(f"http://{host.upper()}/e"), 9)}
    assert len({lanes.lane_of(web(f"http://{host}/"), 0) for host in hosts}) > 50
    for parts in range(1, 8):
        of_parts = [lanes.lanes_of_part((number, parts)) for number in range(1, parts + 1)]
        assert sorted(itertools.chain(*of_parts)) == list(range(lanes.LANES))
    assert lanes.lane_of(web("http://[::1/broken"), 0) == lanes.lane_of(web("http://[::1/broken"), 77)


def test_the_number_of_parts_follows_the_files_and_the_limit(sources: list[dict[str, Any]], tmp_path: Path):
    assert listing.run(params_of(sources, part_files=10), Store(tmp_path / "a")).parts == {"ingest_fetch": 4}
    assert listing.run(params_of(sources), Store(tmp_path / "b")).parts == {"ingest_fetch": 1}
    store = Store(tmp_path / "c")
    assert listing.run(params_of(sources), store).new == listing.run(params_of(sources, limit=1), store).new  # listed


def test_a_part_without_a_listing_is_refused(sources: list[dict[str, Any]], tmp_path: Path):
    with pytest.raises(ConfigError, match="is not listed.*run `python -m tasks ingest_list` before"):
        fetch.run(params_of(sources), Store(tmp_path), (1, 2))


def test_a_listed_file_is_made_of_parts_of_the_sources_alone(sources: list[dict[str, Any]], tmp_path: Path):
    import os
    import pickle

    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, ("true",)

    with pytest.raises(DataError, match="a listed file names posix.system"):
        staging.load_file(pickle.dumps(Hostile()))
    store = Store(tmp_path)
    listing.run(params_of(sources), store)
    files = list(staging.Staging(store, BATCH).listed(lanes.lanes_of_part(None)))
    assert [placed.position for placed in files] == list(range(len(files)))
    assert json.loads((tmp_path / ".run/ingest" / BATCH / "listing.json").read_text())["count"] == len(files) == 34
