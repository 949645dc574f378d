"""The same images give the same ids from a folder, tars, a bucket, tars in a bucket, URLs, and a table of images; known
ones are only listed.

Once with drawn images; once with real photographs where there are some (`../shared/photos`, not in the repository):
60 of them, or as many as MEGAPAIRS_PHOTOGRAPHS says.
"""

import csv
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.ingest import stage as ingest
from tasks.sample.world import make_world
from tasks.sources import s3 as s3_source
from tasks.store import Store
from tests.support.ingest import ingest_params
from tests.support.web import running

PHOTOGRAPHS = Path(__file__).resolve().parents[2].parent / "shared" / "photos"


def fill_with_drawings(folder: Path) -> None:
    make_world(folder, seed=5, images=24, truth=folder.parent / "truth.jsonl")


def fill_with_photographs(folder: Path) -> None:
    paths, count = sorted(PHOTOGRAPHS.rglob("*.jpg")), int(os.environ.get("MEGAPAIRS_PHOTOGRAPHS", "60"))
    paths = paths[:: max(1, len(paths) // count)][:count]
    if not paths:
        pytest.skip(f"photographs: none in {PHOTOGRAPHS}")
    folder.mkdir()
    with open(folder / "captions.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(("path", "caption"))
        for path in paths:
            shutil.copy(path, folder / path.name)
            table.writerow((path.name, f"{path.parent.name}, a photograph"))


class Site(ThreadingHTTPServer):
    """A folder on loopback; counts requests by path, and answers 503 to those in `down`."""

    def __init__(self, folder: Path) -> None:
        self.requests: Counter[str] = Counter()
        self.down: set[str] = set()
        requests, down = self.requests, self.down

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                requests[self.path] += 1
                if self.path in down:
                    self.send_error(503)
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with running(Site(tmp_path / "folder")) as server:
        yield server


@pytest.fixture
def objects_read(s3: Any, s3_url: str) -> Iterator[list[str]]:
    """Keys of the GetObject calls at the endpoint."""
    read: list[str] = []
    events = s3_source.s3_client(s3_url, None).meta.events
    events.register(
        "provide-client-params.s3.GetObject", lambda params, **_: read.append(params["Key"]), unique_id="read"
    )
    yield read
    events.unregister("provide-client-params.s3.GetObject", unique_id="read")


def read_captions(folder: Path) -> dict[str, str]:
    with open(folder / "captions.csv", newline="", encoding="utf-8") as f:
        return {row["path"]: row["caption"] for row in csv.DictReader(f)}


def write_tars(folder: Path, out: Path, count: int) -> None:
    """The folder's images in WebDataset tars, captions as .txt in some and .json in others."""
    captions = read_captions(folder)
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".webp"))
    out.mkdir()
    size = -(-len(paths) // count)
    for number in range(count):
        with tarfile.open(out / f"{number:05d}.tar", "w") as tar:
            for path in paths[number * size : (number + 1) * size]:
                name, caption = str(path.relative_to(folder)), captions.get(str(path.relative_to(folder)), "")
                text = caption.encode() if number % 2 else json.dumps({"caption": caption}).encode()
                for member, content in (
                    (name, path.read_bytes()),
                    (name.rpartition(".")[0] + (".txt" if number % 2 else ".json"), text),
                ):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def run_ingest(root: Path, batch: str, **source: Any) -> tuple[Any, list[tuple[str, str | None]]]:
    """(report, (image_id, caption) in order) after a run of ingest over this one source."""
    store = Store(root)
    report = ingest.run(ingest_params([{"name": "s", **source}], batch, workers=1), store)
    table = store.read_table("images").to_pydict()
    assert len(set(table["image_id"])) == len(table["image_id"])
    return report, list(zip(table["image_id"], table["caption"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fill", [fill_with_drawings, fill_with_photographs])
def test_the_same_images_have_the_same_ids_from_every_source(
    fill: Any, tmp_path: Path, s3: Any, s3_url: str, site: Site, objects_read: list[str]
):
    folder = tmp_path / "folder"
    fill(folder)
    captions = read_captions(folder)
    write_tars(folder, tmp_path / "tars", 3)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        s3.put_object(Bucket="images", Key=f"week/{path.relative_to(folder)}", Body=path.read_bytes())
    for path in (tmp_path / "tars").iterdir():
        s3.put_object(Bucket="images", Key=f"tars/{path.name}", Body=path.read_bytes())
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".webp"))
    with open(tmp_path / "urls.jsonl", "w") as f:
        for name in names:
            f.write(
                json.dumps({"URL": f"http://127.0.0.1:{site.server_port}/{name}", "TEXT": captions.get(name)}) + "\n"
            )
    images = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    table = pa.table({"image": images, "text": [captions.get(name) for name in names]})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=7)
    settings: dict[str, dict[str, Any]] = {
        "folder": {"path": str(folder)},
        "images in a table": {"path": str(tmp_path / "train.parquet")},
        "tars": {"path": str(tmp_path / "tars" / "*.tar")},
        "bucket": {"path": "s3://images/week", "endpoint_url": s3_url},
        "tars in a bucket": {"path": "s3://images/tars/*.tar", "endpoint_url": s3_url},
        "urls": {
            "path": str(tmp_path / "urls.jsonl"),
            "contact": "me@example.org",
            "delay_s": 0.0,
            "per_host": 8,
            "allow_hosts": ["127.0.0.1"],
        },
    }
    rows = {name: run_ingest(tmp_path / "runs" / name, "2026.11.01", **source)[1] for name, source in settings.items()}
    assert len(rows["folder"]) >= 15 and sum(caption is not None for _, caption in rows["folder"]) >= 10
    for name in settings:
        assert rows[name] == rows["folder"], name

    robots = {
        name: set(Store(tmp_path / "runs" / name).read_table("images", ["robots"]).column("robots").to_pylist())
        for name in ("bucket", "urls")
    }
    assert robots == {"bucket": {""}, "urls": {"absent"}}  # the state is stored with every row

    requests, reads = site.requests.total(), len(objects_read)
    for name, source in settings.items():  # a week later
        report, again = run_ingest(tmp_path / "runs" / name, "2026.11.08", **source)
        assert (report.new, report.written, again) == (0, 0, rows["folder"]), name
    assert site.requests.total() == requests
    assert set(objects_read[reads:]) <= {"week/captions.csv"}  # only the table of captions was read again


def test_an_image_whose_server_was_down_is_taken_by_the_next_batch_and_no_other_twice(tmp_path: Path, site: Site):
    folder = tmp_path / "folder"
    make_world(folder, seed=6, images=4, truth=tmp_path / "truth.jsonl")
    names = sorted(read_captions(folder))
    (tmp_path / "urls.csv").write_text(
        "url\n" + "".join(f"http://127.0.0.1:{site.server_port}/{name}\n" for name in [*names, "gone.jpg"])
    )
    source = {
        "path": str(tmp_path / "urls.csv"),
        "contact": "me@example.org",
        "delay_s": 0.0,
        "allow_hosts": ["127.0.0.1"],
    }
    site.down.add(f"/{names[1]}")
    first, before = run_ingest(tmp_path / "run", "2026.11.01", **source)
    assert (first.read, first.written + sum(first.dropped.values()), first.dropped["unreachable"]) == (
        len(names) + 1,
        len(names) + 1,
        2,
    )
    site.down.clear()
    second, after = run_ingest(tmp_path / "run", "2026.11.08", **source)
    # the one that is gone for good (404) is not requested again
    assert (second.new, second.dropped.get("unreachable", 0)) == (1, 0)
    assert after[: len(before)] == before
    assert all(site.requests[f"/{name}"] == 1 for name in names if name != names[1]) and site.requests["/gone.jpg"] == 1
