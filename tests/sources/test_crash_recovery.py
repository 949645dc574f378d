"""After failing servers and a SIGKILL in the middle, the next run writes the tables of an undisturbed one.

The undisturbed run reads the same images from servers that answer everything. The other one reads from an S3 endpoint
that fails half of its requests, or from a site that sends one file a byte a second, and is killed with its workers when
half of the images were requested.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.config import Params
from tasks.ingest import stage as ingest
from tasks.store import Store
from tests.support.flaky_proxy import FAILURES, FlakyProxy
from tests.support.images import save_jpeg, smooth_image
from tests.support.ingest import hash_finished_files, ingest_params
from tests.support.killing import kill_when
from tests.support.web import running

pytestmark = pytest.mark.slow

# `python -m tasks ingest` with an S3 client that retries at once, so that the test takes seconds.
IMPATIENT = (
    "import runpy, sys; from botocore.retries.standard import ExponentialBackoff;"
    "ExponentialBackoff.delay_amount = lambda self, context: 0.01;"
    "sys.argv = ['tasks', 'ingest', '--root', sys.argv[1]]; runpy.run_module('tasks', run_name='__main__')"
)
COUNT = 12


def write_params(root: Path, **source: Any) -> Params:
    """Parameters for one source; also written below the root, for the command line."""
    params = ingest_params([{"name": "s", **source}], "2026.11.01", shard_images=4, workers=1)
    root.mkdir(exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True, mode="json")))
    return params


def write_images(folder: Path) -> dict[str, bytes]:
    """Twelve files: ten images, a copy of the first, and one that is none."""
    files = {f"{n:02d}.jpg": save_jpeg(smooth_image(n), folder / f"{n:02d}.jpg") for n in range(COUNT - 2)}
    return files | {"10.jpg": files["00.jpg"], "11.jpg": b"<html>404</html>"}


def ingest_command(root: Path) -> list[str]:
    return [sys.executable, "-c", IMPATIENT, str(root)]


def kill_ingest_when(is_time: Callable[[], bool], root: Path, project: Path) -> None:
    """Run ingest and kill it, with its workers, at that moment."""
    kill_when(is_time, ingest_command(root), project)
    assert not list(root.glob("data/images/*.parquet")), "the batch's marker comes last"


def rerun(root: Path, project: Path) -> dict[str, Any]:
    """The next run, to its end; its report."""
    ended = subprocess.run(ingest_command(root), cwd=project, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def assert_every_file_once(report: dict[str, Any], root: Path) -> None:
    store = Store(root)
    keys = [
        *store.read_table("images", ["source_uri"]).column(0).to_pylist(),
        *store.read_dropped("ingest").column("key").to_pylist(),
    ]
    assert len(keys) == len(set(keys)) == COUNT == report["read"] == report["written"] + sum(report["dropped"].values())


def test_killed_while_reading_a_bucket_that_fails_half_of_its_requests(
    tmp_path: Path, project: Path, s3: Any, s3_url: str, flaky: FlakyProxy
):
    for name, content in write_images(tmp_path / "files").items():
        s3.put_object(Bucket="images", Key=f"week/{name}", Body=content)
    ingest.run(
        write_params(tmp_path / "whole", path="s3://images/week", endpoint_url=s3_url), Store(tmp_path / "whole")
    )
    write_params(tmp_path / "killed", path="s3://images/week", endpoint_url=flaky.url)
    keys = [f"GET /images/week/{n:02d}.jpg" for n in range(COUNT)]
    kill_ingest_when(lambda: sum(flaky.requests[k] > 0 for k in keys) >= COUNT // 2, tmp_path / "killed", project)
    report = rerun(tmp_path / "killed", project)
    assert_every_file_once(report, tmp_path / "killed")
    changed = {k: v for k, v in hash_finished_files(tmp_path / "killed").items() if not k.endswith("params.yaml")}
    assert changed == hash_finished_files(tmp_path / "whole")
    assert sum(flaky.outcomes[f] for f in FAILURES) >= COUNT / 2


class Site(ThreadingHTTPServer):
    """Serves a mapping; the files in `slow` are sent a byte a second."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], slow: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), SiteHandler)
        self.files, self.slow, self.requests = files, slow, set[str]()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up."""


class SiteHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        site: Site = self.server  # type: ignore[assignment]
        name = self.path[1:]
        if name not in site.files:
            return self.send_error(404)
        site.requests.add(name)
        content = site.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if name not in site.slow:
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
    with running(Site(write_images(tmp_path / "files"), slow=("03.jpg",))) as server:
        yield server


def test_killed_while_reading_a_table_of_urls_one_of_which_is_slow(tmp_path: Path, project: Path, site: Site):
    urls = [f"http://127.0.0.1:{site.server_port}/{name}" for name in site.files]
    (tmp_path / "urls.csv").write_text("url,caption\n" + "".join(f"{url},a thing\n" for url in urls))
    source = {
        "path": str(tmp_path / "urls.csv"),
        "contact": "me@example.org",
        "delay_s": 0.0,
        "deadline_s": 4.0,
        "max_wait_s": 1.0,
        "allow_hosts": ["127.0.0.1"],
    }
    ingest.run(write_params(tmp_path / "whole", **source), Store(tmp_path / "whole"))
    dropped = {
        r["key"].rpartition("/")[2]: r["reason"] for r in Store(tmp_path / "whole").read_dropped("ingest").to_pylist()
    }
    assert dropped == {"03.jpg": "unreachable", "10.jpg": "duplicate", "11.jpg": "undecodable"}
    site.requests.clear()
    write_params(tmp_path / "killed", **source)
    kill_ingest_when(lambda: len(site.requests) >= COUNT // 2, tmp_path / "killed", project)
    assert_every_file_once(rerun(tmp_path / "killed", project), tmp_path / "killed")
    assert hash_finished_files(tmp_path / "killed") == hash_finished_files(tmp_path / "whole")

    site.slow = ()  # a week later it answers: only that image is requested
    site.requests.clear()
    params = write_params(tmp_path / "killed", **source)
    later = params.model_copy(
        update={"open_run": params.open_run.model_copy(update={"batch": "2026.11.08", "date": "2026-11-08"})}
    )
    report = ingest.run(later, Store(tmp_path / "killed"))
    assert (report.new, report.written, site.requests) == (1, 1, {"03.jpg"})
