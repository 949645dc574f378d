"""The same images as a folder, as tars, in a bucket, as tars in a bucket and as URLs give the same ids; what was seen
is only listed.

Once with drawn images; once with real photographs where they are (`../shared/photos`, kept out of the repository).
"""

import csv
import io
import json
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.config import parse_params, read_raw, resolve
from tasks.ingest import stage as ingest
from tasks.sample.world import make_world
from tasks.sources import s3 as s3_source
from tasks.store import Store

PHOTOGRAPHS = Path(__file__).resolve().parents[2].parent / "shared" / "photos"


def drawn(folder: Path) -> None:
    make_world(folder, seed=5, images=24, truth=folder.parent / "truth.jsonl")


def photographed(folder: Path) -> None:
    found = sorted(PHOTOGRAPHS.rglob("*.jpg"))[::18][:60]
    if not found:
        pytest.skip(f"photographs: none in {PHOTOGRAPHS}")
    folder.mkdir()
    with open(folder / "captions.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(("path", "caption"))
        for path in found:
            shutil.copy(path, folder / path.name)
            table.writerow((path.name, f"{path.parent.name}, a photograph"))


class Site(ThreadingHTTPServer):
    """A folder on loopback; counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.down: set[str] = set()
        asked, down = self.asked, self.down

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args, directory=str(folder))

            def do_GET(self) -> None:
                asked[self.path] += 1
                if self.path in down:
                    self.send_error(503)
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    server = Site(tmp_path / "folder")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def objects_read(s3: Any, s3_url: str) -> Iterator[list[str]]:
    """Keys of the GetObject calls at the endpoint."""
    read: list[str] = []
    events = s3_source.client_of(s3_url, None).meta.events
    events.register(
        "provide-client-params.s3.GetObject", lambda params, **_: read.append(params["Key"]), unique_id="read"
    )
    yield read
    events.unregister("provide-client-params.s3.GetObject", unique_id="read")


def labels_in(folder: Path) -> dict[str, str]:
    with open(folder / "captions.csv", newline="", encoding="utf-8") as f:
        return {row["path"]: row["caption"] for row in csv.DictReader(f)}


def tars_of(folder: Path, out: Path, count: int) -> None:
    """The folder's images in WebDataset tars, captions as .txt in some and .json in others."""
    labels = labels_in(folder)
    paths = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".webp"))
    out.mkdir()
    size = -(-len(paths) // count)
    for number in range(count):
        with tarfile.open(out / f"{number:05d}.tar", "w") as tar:
            for path in paths[number * size : (number + 1) * size]:
                name, caption = str(path.relative_to(folder)), labels.get(str(path.relative_to(folder)), "")
                said = caption.encode() if number % 2 else json.dumps({"caption": caption}).encode()
                for member, content in (
                    (name, path.read_bytes()),
                    (name.rpartition(".")[0] + (".txt" if number % 2 else ".json"), said),
                ):
                    entry = tarfile.TarInfo(member)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))


def taken(root: Path, batch: str, **source: Any) -> tuple[Any, list[tuple[str, str | None]]]:
    """(report, (image_id, caption) in order) after a run of ingest over this one source."""
    changes = {
        "open_run": {"batch": batch, "date": batch.replace(".", "-")},
        "ingest": {"sources": [{"name": "s", "license_code": "CC0-1.0", "attribution": "me", **source}], "workers": 1},
    }
    store = Store(root)
    report = ingest.run(parse_params(resolve(read_raw(Path("params.yaml")), "test", changes)), store)
    table = store.read_table("images").to_pydict()
    assert len(set(table["image_id"])) == len(table["image_id"])
    return report, list(zip(table["image_id"], table["caption"], strict=True))


@pytest.mark.parametrize("fill", [drawn, photographed])
def test_the_same_images_have_the_same_ids_wherever_they_come_from(
    fill: Any, tmp_path: Path, s3: Any, s3_url: str, site: Site, objects_read: list[str]
):
    folder = tmp_path / "folder"
    fill(folder)
    labels = labels_in(folder)
    tars_of(folder, tmp_path / "tars", 3)
    for path in (p for p in folder.rglob("*") if p.is_file()):
        s3.put_object(Bucket="images", Key=f"week/{path.relative_to(folder)}", Body=path.read_bytes())
    for path in (tmp_path / "tars").iterdir():
        s3.put_object(Bucket="images", Key=f"tars/{path.name}", Body=path.read_bytes())
    with open(tmp_path / "urls.jsonl", "w") as f:
        for name in sorted(
            str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix in (".jpg", ".png", ".webp")
        ):
            f.write(json.dumps({"URL": f"http://127.0.0.1:{site.server_port}/{name}", "TEXT": labels.get(name)}) + "\n")
    settings: dict[str, dict[str, Any]] = {
        "folder": {"path": str(folder)},
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
    found = {name: taken(tmp_path / "runs" / name, "2026.11.01", **source)[1] for name, source in settings.items()}
    assert len(found["folder"]) >= 15 and sum(caption is not None for _, caption in found["folder"]) >= 10
    for name in settings:
        assert found[name] == found["folder"], name

    robots = {
        name: set(Store(tmp_path / "runs" / name).read_table("images", ["robots"]).column("robots").to_pylist())
        for name in ("bucket", "urls")
    }
    assert robots == {"bucket": {""}, "urls": {"absent"}}  # the state is stored with every row

    asked, read = site.asked.total(), len(objects_read)
    for name, source in settings.items():  # a week later
        report, rows = taken(tmp_path / "runs" / name, "2026.11.08", **source)
        assert (report.new, report.written, rows) == (0, 0, found["folder"]), name
    assert site.asked.total() == asked
    assert set(objects_read[read:]) <= {"week/captions.csv"}  # nothing but the table of captions was read again


def test_a_image_whose_server_was_down_is_taken_a_week_later_and_nothing_twice(tmp_path: Path, site: Site):
    folder = tmp_path / "folder"
    make_world(folder, seed=6, images=4, truth=tmp_path / "truth.jsonl")
    names = sorted(labels_in(folder))
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
    first, before = taken(tmp_path / "run", "2026.11.01", **source)
    assert (first.read, first.written + sum(first.dropped.values()), first.dropped["unreachable"]) == (
        len(names) + 1,
        len(names) + 1,
        2,
    )
    site.down.clear()
    second, after = taken(tmp_path / "run", "2026.11.08", **source)
    # the one that is gone for good (404) is not asked for again
    assert (second.new, second.dropped.get("unreachable", 0)) == (1, 0)
    assert after[: len(before)] == before
    assert all(site.asked[f"/{name}"] == 1 for name in names if name != names[1]) and site.asked["/gone.jpg"] == 1
