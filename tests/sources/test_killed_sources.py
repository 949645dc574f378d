"""Buckets and URLs whose other side fails, and a SIGKILL in the middle: the next run gives the tables of an undisturbed
one.

The undisturbed run reads the same images from servers that answer everything. The other one asks an S3 endpoint that
fails half of its requests, or sites of which one drips a byte a second, and is killed with its workers when half of the
images were asked for.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.config import Params, parse_params, read_raw, resolve
from tasks.ingest import stage as ingest
from tasks.store import Store
from tests.ingest.test_copies_and_lists import image, saved
from tests.ingest.test_stage import tables_of
from tests.sources.conftest import Flaky

# A client that asks again at once, so that the test takes seconds; all else is `python -m tasks ingest`.
IMPATIENT = (
    "import runpy, sys; from botocore.retries.standard import ExponentialBackoff;"
    "ExponentialBackoff.delay_amount = lambda self, context: 0.01;"
    "sys.argv = ['tasks', 'ingest', '--root', sys.argv[1]]; runpy.run_module('tasks', run_name='__main__')"
)
COUNT = 12


def params_for(root: Path, **source: Any) -> Params:
    """Written below the root too, for the command line."""
    changes = {
        "open_run": {"batch": "2026.11.01", "date": "2026-11-01"},
        "ingest": {
            "sources": [{"name": "s", "license_code": "CC0-1.0", "attribution": "me", **source}],
            "shard_images": 4,
            "workers": 1,
        },
    }
    params = parse_params(resolve(read_raw(Path("params.yaml")), "test", changes))
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True, mode="json")))
    return params


def images(folder: Path) -> dict[str, bytes]:
    """Twelve files: ten images, a copy of the first, and one that is none."""
    found = {f"{n:02d}.jpg": saved(image(n), folder / f"{n:02d}.jpg") for n in range(COUNT - 2)}
    return found | {"10.jpg": found["00.jpg"], "11.jpg": b"<html>404</html>"}


def killed_when(root: Path, project: Path, is_time: Callable[[], bool]) -> None:
    """Run ingest and end its whole process group by SIGKILL at that moment; it must not have ended before."""
    child = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, str(root)], cwd=project, start_new_session=True, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and child.poll() is None and not is_time():
        time.sleep(0.002)
    assert child.poll() is None, "it was over before it could be killed"
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not list(root.glob("data/images/*.parquet")), "the batch's marker comes last"


def run_again(root: Path, project: Path) -> dict[str, Any]:
    """The next run, to its end; its report."""
    ended = subprocess.run(
        [sys.executable, "-c", IMPATIENT, str(root)], cwd=project, check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def whole_tables(root: Path) -> dict[str, str]:
    """Everything that is finished; what a dead one was writing aside is not."""
    return {name: content for name, content in tables_of(root).items() if not name.endswith(".tmp")}


def assert_every_file_once(report: dict[str, Any], root: Path) -> None:
    store = Store(root)
    keys = [
        *store.read_table("images", ["source_uri"]).column(0).to_pylist(),
        *store.read_dropped("ingest").column("key").to_pylist(),
    ]
    assert len(keys) == len(set(keys)) == COUNT == report["read"] == report["written"] + sum(report["dropped"].values())


def test_killed_in_the_middle_of_a_bucket_that_fails_half_of_what_it_is_asked(
    tmp_path: Path, project: Path, s3: Any, s3_url: str, flaky: Flaky
):
    for name, content in images(tmp_path / "files").items():
        s3.put_object(Bucket="images", Key=f"week/{name}", Body=content)
    ingest.run(params_for(tmp_path / "whole", path="s3://images/week", endpoint_url=s3_url), Store(tmp_path / "whole"))
    params_for(tmp_path / "killed", path="s3://images/week", endpoint_url=flaky.url)
    keys = [f"GET /images/week/{n:02d}.jpg" for n in range(COUNT)]
    killed_when(tmp_path / "killed", project, lambda: sum(flaky.asked[k] > 0 for k in keys) >= COUNT // 2)
    report = run_again(tmp_path / "killed", project)
    assert_every_file_once(report, tmp_path / "killed")
    changed = {k: v for k, v in whole_tables(tmp_path / "killed").items() if not k.endswith("params.yaml")}
    assert changed == whole_tables(tmp_path / "whole")
    assert sum(flaky.failed[f] for f in ("503", "hang up", "broken")) >= COUNT / 2


class Site(ThreadingHTTPServer):
    """Serves a mapping; `drips` are sent a byte a second."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], drips: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), SiteHandler)
        self.files, self.drips, self.asked = files, drips, set[str]()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up."""


class SiteHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Site = self.server  # type: ignore[assignment]
        name = self.path[1:]
        if name not in site.files:
            return self.send_error(404)
        site.asked.add(name)
        content = site.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name not in site.drips:
            self.wfile.write(content)
            return None
        for byte in content[:60]:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(1)
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    server = Site(images(tmp_path / "files"), drips=("03.jpg",))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_killed_in_the_middle_of_a_table_of_urls_one_of_which_drips(tmp_path: Path, project: Path, site: Site):
    urls = [f"http://127.0.0.1:{site.server_port}/{name}" for name in site.files]
    (tmp_path / "urls.csv").write_text("url,caption\n" + "".join(f"{url},a thing\n" for url in urls))
    source = {
        "path": str(tmp_path / "urls.csv"),
        "contact": "me@example.org",
        "delay_s": 0.0,
        "deadline_s": 2.0,
        "max_wait_s": 1.0,
        "allow_hosts": ["127.0.0.1"],
    }
    ingest.run(params_for(tmp_path / "whole", **source), Store(tmp_path / "whole"))
    dropped = {
        r["key"].rpartition("/")[2]: r["reason"] for r in Store(tmp_path / "whole").read_dropped("ingest").to_pylist()
    }
    assert dropped == {"03.jpg": "unreachable", "10.jpg": "duplicate", "11.jpg": "undecodable"}
    site.asked.clear()
    params_for(tmp_path / "killed", **source)
    killed_when(tmp_path / "killed", project, lambda: len(site.asked) >= COUNT // 2)
    assert_every_file_once(run_again(tmp_path / "killed", project), tmp_path / "killed")
    assert whole_tables(tmp_path / "killed") == whole_tables(tmp_path / "whole")

    site.drips = ()  # a week later it is well again: that image alone is asked for
    site.asked.clear()
    params = params_for(tmp_path / "killed", **source)
    later = params.model_copy(
        update={"open_run": params.open_run.model_copy(update={"batch": "2026.11.08", "date": "2026-11-08"})}
    )
    report = ingest.run(later, Store(tmp_path / "killed"))
    assert (report.new, report.written, site.asked) == (1, 1, {"03.jpg"})
