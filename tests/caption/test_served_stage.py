"""Captioning and judging with a server that fails in every way: equal tables, and no request is paid for twice."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tasks.errors import ConfigError, TransientError
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner
from tasks.models.llm.openai_server import ServedCaptioner
from tasks.models.llm.request_cache import RequestCache
from tasks.models.llm.requests import Request
from tasks.store import Store

BATCH = "2026.01.05"
PAIRS = 12


def served(url: str, *, tries: int = 8, **config: Any) -> ServedCaptioner:
    """A client of the model `tiny` that does not wait between tries."""
    config = {"max_new_tokens": 9, **config}
    return ServedCaptioner(LlmConfig("tiny", engine="openai", url=url, **config), tries=tries, sleep=lambda _: None)


class Start:
    """Calling it starts a fake server (again, on the same port) and gives its URL. What it was paid for is in `log`."""

    def __init__(self, program: Path, log: Path) -> None:
        self.program, self.log = program, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._running: list[subprocess.Popen[str]] = []

    def stop(self) -> None:
        while self._running:
            process = self._running.pop()
            process.kill()
            process.communicate()

    def __call__(self, **options: Any) -> str:
        self.stop()
        command = [sys.executable, str(self.program), str(self.port), str(self.log), json.dumps(options)]
        self._running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        out = self._running[0].stdout
        assert out and out.readline() == "ready\n"
        return f"http://127.0.0.1:{self.port}/v1"

    def process(self) -> subprocess.Popen[str]:
        return self._running[0]


@pytest.fixture
def start(tmp_path: Path, project: Path) -> Iterator[Start]:
    started = Start(project / "tests" / "support" / "fake_server.py", tmp_path / "paid")
    yield started
    started.stop()


def paid(tmp_path: Path) -> list[str]:
    path = tmp_path / "paid"
    return path.read_text().split() if path.exists() else []


def worktree(root: Path, project: Path, url: str, **caption: Any) -> Store:
    """Twelve pairs over thirteen images, and params for the served engine."""
    store = Store(root)
    shard, images, pairs = b"", [], []
    for n in range(PAIRS + 1):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (20 * n, 255 - 20 * n, 99)).save(file, "PNG")
        blank = {
            "source_uri": f"s:{n}",
            "source_sha256": "",
            "license_code": "",
            "attribution": "",
            "fetched_at": "",
            "phash": "",
            "thumbnail": b"",
        }
        where = {"shard": f"{BATCH}-00000.tar", "offset_bytes": len(shard), "size_bytes": len(file.getvalue())}
        images.append(
            {
                "image_id": f"i{n:02d}",
                "batch": BATCH,
                "width_px": 16,
                "height_px": 16,
                "caption": f"number {n}",
                "caption_source": "source",
                **blank,
                **where,
            }
        )
        shard += file.getvalue()
    for n in range(PAIRS):
        ids = {
            "pair_id": f"p{n:02d}",
            "batch": BATCH,
            "query_image_id": f"i{n:02d}",
            "target_image_id": f"i{n + 1:02d}",
            "mined_by": ["semantic"],
        }
        scores = {
            "similarity_semantic": 0.9,
            "similarity_pattern": None,
            "similarity_caption": None,
            "rank": 0,
            "negative_similarity": [0.9, 0.8],
        }
        pairs.append({**ids, "negative_image_ids": [f"i{n:02d}", f"i{(n + 5) % 13:02d}"], **scores})
    store.write_bytes(store.folder("data", "images", f"{BATCH}-00000.tar"), shard)
    store.write(store.table_path("images", BATCH), images, "images")
    store.write(store.table_path("pairs", BATCH), pairs, "pairs")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params.pop("profiles")
    params["open_run"]["batch"] = BATCH
    served = {"engine": "openai", "url": url, "model": "tiny", "chunk_pairs": 5, "in_flight": 4, "timeout_s": 2.0}
    params["caption"] |= (
        served
        | {
            "writer_url": url,
            "writer": "tiny",
            "styles": ["imperative", "question"],
            "instructions_min": 1,
            "canaries": None,
        }
        | caption
    )
    params["judge"] |= served | {"labelled": None, "threshold": 0.5, "negative_threshold": 0.99, "instructions_min": 1}
    store.write_bytes(root / "params.yaml", yaml.safe_dump(params).encode())
    return store


def run(stage: str, root: Path, project: Path, pid_file: Path | None = None) -> tuple[int, str]:
    """`python -m tasks <stage>`; exit code and output."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")} | {"PYTHONPATH": str(project)}
    with subprocess.Popen(
        [sys.executable, "-m", "tasks", stage],
        cwd=root,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        if pid_file:
            pid_file.write_text(str(process.pid))
        output, _ = process.communicate(timeout=120)
    return process.returncode, output


def tables(store: Store) -> dict[str, bytes]:
    wanted = [p for t in ("captioned", "triplets", "dropped") for p in store.folder("data", t).rglob("*.parquet")]
    return {str(p.relative_to(store.root)): p.read_bytes() for p in sorted(wanted)}


def test_killed_and_run_again_the_tables_are_the_same_and_nothing_is_paid_twice(
    tmp_path: Path, project: Path, start: Start
):
    url = start()
    whole = worktree(tmp_path / "whole", project, url)
    for stage in ("caption", "judge"):
        assert run(stage, whole.root, project)[0] == 0
    once = paid(tmp_path)
    assert len(set(once)) == len(once) > 40
    known = (
        "captioner_revision",
        "engine",
        "prompt_sha256",
        "sampling",
        "judge_revision",
        "judge_engine",
        "judge_prompt_sha256",
    )
    rows = whole.read_table("triplets").to_pylist() + whole.read_table("captioned").to_pylist()
    assert (
        rows
        and all(row[name] for row in rows for name in known if name in row)
        and {row["seed"] for row in rows} == {0}
    )
    assert {row["judge_engine"] for row in rows if "judge_engine" in row} == {"openai, vllm 0.fake"}

    (tmp_path / "paid").unlink()
    killed = worktree(tmp_path / "killed", project, url)
    for stage, n in (("caption", 17), ("judge", 9)):
        start(kill=[str(tmp_path / "pid"), n])
        code, output = run(stage, killed.root, project, tmp_path / "pid")
        assert code == -signal.SIGKILL, output
        start()
        code, output = run(stage, killed.root, project)
        assert code == 0 and "from the cache" in output, output
    assert tables(killed) == tables(whole)
    again = paid(tmp_path)
    # A reply that was on its way when its client died is lost; at most in_flight of them a kill, and no other request
    # twice.
    assert set(again) == set(once) and len(again) - len(set(again)) <= 2 * 4

    (tmp_path / "paid").unlink()
    for path in [p for t in ("captioned", "triplets") for p in killed.folder("data", t).iterdir()]:
        path.unlink()
    for stage in ("caption", "judge"):
        code, output = run(stage, killed.root, project)
        assert code == 0 and "100% from the cache), paid 0 prompt and 0 output tokens" in output, output
    assert tables(killed) == tables(whole) and paid(tmp_path) == []


@pytest.mark.parametrize("fault", ["500", "429", "half", "hang"])
def test_a_server_that_fails_now_and_then_gives_the_same_replies(fault: str, tmp_path: Path, start: Start):
    asked = [Request((), f"style: {n}") for n in range(30 if fault != "hang" else 8)]

    def replies(url: str) -> list[Any]:
        return served(url, in_flight=4, timeout_s=1.0).chat(asked)

    expected = replies(start())
    assert replies(start(fault=fault, every=4)) == expected


def test_a_server_killed_half_way_and_started_again_gives_the_same_tables_and_repeats_only_what_was_on_its_way(
    tmp_path: Path, project: Path, start: Start
):
    whole = worktree(tmp_path / "whole", project, start())
    assert run("caption", whole.root, project)[0] == 0
    once = paid(tmp_path)
    (tmp_path / "paid").unlink()

    broken = worktree(tmp_path / "broken", project, start(die=len(once) // 2))

    def restart() -> None:
        start.process().wait(120)
        start()

    again = threading.Thread(target=restart)
    again.start()
    code, output = run("caption", broken.root, project)
    again.join()
    assert code == 0, output
    assert tables(broken) == tables(whole)
    assert set(paid(tmp_path)) == set(once) and len(paid(tmp_path)) - len(once) <= 4  # in_flight


@pytest.mark.parametrize(
    ("back_as", "said"),
    [
        ({"model": "other"}, "serves ['other'], not 'tiny'"),
        ({"root": "/weights/b"}, "is /weights/b there now and was /weights/a"),
    ],
)
def test_a_stage_whose_server_comes_back_with_another_model_ends_without_a_retry(
    tmp_path: Path, project: Path, start: Start, back_as: dict[str, str], said: str
):
    store = worktree(tmp_path / "tree", project, start(die=20, root="/weights/a"))

    def restart() -> None:
        start.process().wait(120)
        start(**back_as)

    again = threading.Thread(target=restart)
    again.start()
    code, output = run("caption", store.root, project)
    again.join()
    assert code == ConfigError.exit_code and said in output, output


def test_no_more_than_in_flight_are_asked_at_once_and_all_places_are_used(tmp_path: Path, start: Start):
    model = load_captioner(LlmConfig("tiny", engine="openai", url=start(together=5), in_flight=5, timeout_s=20.0))
    assert len(model.chat([Request((), f"style: {n}") for n in range(25)])) == 25
    assert int((tmp_path / "paid.most").read_text()) == 5


def test_a_busy_server_is_given_fewer_at_once_and_more_again_as_it_recovers(tmp_path: Path, start: Start):
    url = start(together=3, busy=2)
    model = served(url, in_flight=8, timeout_s=20.0, tries=40)
    asked = [Request((), f"style: {n}") for n in range(24)]
    replies = model.chat(asked)
    limiter = model.replicas[0].limiter
    assert [r.text.rpartition(" ")[2] for r in replies] == [str(n) for n in range(24)] and len(paid(tmp_path)) == 24
    assert limiter.limit < 8  # halved at each 429
    start()
    model.chat([Request((), f"style: {n} more") for n in range(60)])
    assert limiter.limit == 8


def test_a_server_that_hangs_is_given_up_after_the_deadline(start: Start):
    url = start(fault="hang", every=1)
    model = served(url, in_flight=2, timeout_s=0.3, tries=2)
    with pytest.raises(TransientError, match="after 2 tries"):
        model.chat([Request((), "style: short")])


def test_a_server_that_was_restarted_with_another_model_is_refused(tmp_path: Path, start: Start):
    model = load_captioner(LlmConfig("tiny", engine="openai", url=start(root="/weights/a"), in_flight=2, timeout_s=2.0))
    assert len(model.chat([Request((), f"style: {n}") for n in range(4)])) == 4
    start(root="/weights/b", fault="500", every=1)
    with pytest.raises(ConfigError, match=r"is /weights/b there now and was /weights/a"):
        model.chat([Request((), "style: more")])
    with pytest.raises(ConfigError, match=r"serves \['other'\], not 'tiny'"):
        load_captioner(LlmConfig("tiny", engine="openai", url=start(model="other"))).chat([Request((), "style: more")])
    with pytest.raises(ConfigError, match="answers as 'another'"):
        load_captioner(LlmConfig("tiny", engine="openai", url=start(fault="alien", every=1))).chat(
            [Request((), "style: more")]
        )


def test_replicas_share_the_work_and_one_may_be_dead(tmp_path: Path, start: Start):
    url = start()
    model = served(f"http://127.0.0.1:9/v1,{url}", in_flight=4, cache=RequestCache(tmp_path / "cache"))
    replies = model.chat([Request((), f"style: {n}") for n in range(12)])
    assert [r.text.rpartition(" ")[2] for r in replies] == [str(n) for n in range(12)] and len(paid(tmp_path)) == 12
    assert model.chat([Request((), f"style: {n}") for n in range(12)]) == replies and len(paid(tmp_path)) == 12
    assert (model.usage.requests, model.usage.cached, model.usage.output_tokens) == (24, 12, 84)


def test_a_reply_of_ten_thousand_tokens_is_refused_and_its_retry_does_not_quote_it(
    tmp_path: Path, project: Path, start: Start
):
    url = start(fault="long", every=1)
    store = worktree(tmp_path / "tree", project, url)
    code, output = run("caption", store.root, project)
    assert code == 0, output
    [reason] = {d["reason"] for d in store.read_dropped("caption").to_pylist()}
    assert reason == "too_long" and store.read_table("captioned").num_rows == 0


def test_a_budget_stops_politely_and_a_larger_one_goes_on(tmp_path: Path, project: Path, start: Start):
    url = start()
    whole = worktree(tmp_path / "whole", project, url)
    assert run("caption", whole.root, project)[0] == 0
    small = worktree(tmp_path / "small", project, url, budget_tokens=100)
    code, output = run("caption", small.root, project)
    assert code == 0 and "7 of 12 pairs are left" in output, output
    assert len(small.table_files("captioned")) == 1
    worktree(tmp_path / "small", project, url, budget_tokens=100_000)
    assert run("caption", small.root, project)[0] == 0
    assert {k: v for k, v in tables(small).items() if "captioned" in k} == {
        k: v for k, v in tables(whole).items() if "captioned" in k
    }
