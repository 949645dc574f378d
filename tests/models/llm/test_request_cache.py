"""The request cache: a repeated request is answered from it, and no other request is."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.errors import ConfigError, TransientError
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner, load_writer
from tasks.models.llm.request_cache import RequestCache, cache_folder, image_key, open_cache, prune_cache, request_key
from tasks.models.llm.requests import Request

JUDGE = LlmConfig("tasks/sample/checkpoints/judge", device="cpu", max_new_tokens=8)
WRITER = LlmConfig("tasks/sample/checkpoints/writer", device="cpu", max_new_tokens=8)


def test_the_first_reply_of_a_key_stays_with_many_writers(tmp_path: Path):
    one, two = RequestCache(tmp_path), RequestCache(tmp_path)
    key = request_key({"text": "hello"})
    assert one.get(key) is None
    one.put(key, ["é", 1, 0.1 + 0.2])
    two.put(key, ["another"])
    assert one.get(key) == two.get(key) == ["é", 1, 0.1 + 0.2] and len(two) == 1
    keys = [request_key({"n": n}) for n in range(200)]
    threads = [threading.Thread(target=lambda c=c: [c.put(k, k) for k in keys]) for c in (one, two, one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(one) == 201 and all(two.get(k) == k for k in keys)


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=4),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4),
)
def test_keys_are_equal_exactly_for_equal_values(one: dict, other: dict):
    assert (request_key(one) == request_key(other)) == (one == other)
    assert request_key(dict(reversed(one.items()))) == request_key(one)


def test_images_that_differ_have_different_keys():
    images = [
        Image.new("RGB", (8, 8), "red"),
        Image.new("RGB", (16, 4), "red"),
        Image.new("RGB", (8, 8), (254, 0, 0)),
        Image.new("L", (8, 24), 0),
    ]
    changed = images[0].copy()
    changed.putpixel((7, 7), (255, 0, 1))
    assert len({image_key(p) for p in [*images, changed]}) == 5
    assert image_key(images[0]) == image_key(Image.new("RGB", (8, 8), "red"))


def test_the_folder_comes_from_the_environment_or_the_dvc_cache(tmp_path: Path, monkeypatch):
    assert cache_folder(tmp_path, {}) == tmp_path / ".run" / "request-cache"
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config.local").write_text(
        "[core]\n    site_cache_dir = /x\n[cache]\n    dir = /somewhere/dvc-cache\n"
    )
    assert cache_folder(tmp_path, {}) == Path("/somewhere/request-cache")
    assert cache_folder(tmp_path, {"MEGAPAIRS_CACHE": "/else"}) == Path("/else")
    assert cache_folder(tmp_path, {"MEGAPAIRS_CACHE": "off"}) is None
    monkeypatch.delenv("MEGAPAIRS_CACHE", raising=False)
    assert open_cache(tmp_path, served=False) is None
    monkeypatch.setenv("MEGAPAIRS_CACHE", str(tmp_path / "c"))
    assert open_cache(tmp_path, served=False) is not None


def test_only_a_repeated_call_in_process_is_answered_from_the_cache(tmp_path: Path):
    cache = RequestCache(tmp_path)
    judge = load_captioner(replace(JUDGE, cache=cache))
    images = [Image.new("RGB", (96, 96), c) for c in ("red", "blue", "green")]
    requests = [Request((images[0], p), "Does it fit: make it blue") for p in images[1:]]
    first = judge.yes_probability(requests)
    assert judge.usage.cached == 0 and judge.usage.prompt_tokens > 0
    again = load_captioner(replace(JUDGE, cache=RequestCache(tmp_path)))
    same_pixels = [Request((images[0].copy(), r.images[1].copy()), r.text) for r in requests]
    assert again.yes_probability(same_pixels) == first and (
        again.usage.requests,
        again.usage.cached,
        again.usage.prompt_tokens,
    ) == (2, 2, 0)
    again.yes_probability(requests[:1])
    again.yes_probability([Request(r.images[::-1], r.text) for r in requests])
    assert again.usage.cached == 2 and again.usage.requests == 5
    uncached = load_captioner(JUDGE)
    assert uncached.yes_probability(requests) == first

    writer = load_writer(replace(WRITER, cache=cache))
    prompts = ["style: short\nboth: nothing; change: remove the small red star"] * 2
    assert writer.write(prompts) == writer.write(prompts) and (writer.usage.requests, writer.usage.cached) == (2, 1)


WRITER_PROCESS = """
import sys
from pathlib import Path
from tasks.models.llm.request_cache import RequestCache, request_key
cache = RequestCache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for n in range(int(sys.argv[2])):
    cache.put(request_key({"n": n}), {"text": "reply %d " % n + "x" * 5000, "by": sys.argv[3]})
"""


def start_writer(folder: Path, count: int, name: str) -> "subprocess.Popen[str]":
    """A process that writes `count` replies once it is told to."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER_PROCESS, str(folder), str(count), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout and writer.stdout.readline() == "ready\n"
    return writer


def test_processes_that_write_at_once_and_are_killed_leave_whole_replies(tmp_path: Path):
    writers = [start_writer(tmp_path, count, name) for name, count in (("a", 300), ("b", 300), ("killed", 10**6))]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(60) for writer in writers[:2]] == [0, 0]
    writers[2].send_signal(signal.SIGKILL)
    writers[2].wait(60)
    cache = RequestCache(tmp_path)
    replies = [cache.get(request_key({"n": n})) for n in range(300)]
    assert [r["text"][:-5000] for r in replies] == [f"reply {n} " for n in range(300)]
    assert {r["by"] for r in replies} <= {"a", "b", "killed"}
    for file in (tmp_path / "replies").rglob("*.json"):
        json.loads(file.read_bytes())
    for writer in writers:
        writer.communicate()


def test_a_reply_without_its_content_is_asked_again(tmp_path: Path):
    cache, key = RequestCache(tmp_path), request_key({"n": 1})
    cache.put(key, "reply")
    next((tmp_path / "replies").rglob("*.json")).write_bytes(b"")
    assert cache.get(key) is None
    cache.put(key, "again")
    assert cache.get(key) == "again"


@pytest.mark.parametrize("content", ["sqlite", "damaged"])
def test_replies_of_earlier_releases_are_read(content: str, tmp_path: Path):
    path, key = tmp_path / "replies.sqlite", request_key({"n": 1})
    if content == "sqlite":
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE replies (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID")
            db.execute("INSERT INTO replies VALUES (?, ?)", (bytes.fromhex(key), json.dumps(["old", 1, 2])))
        db.close()
    else:
        path.write_bytes(b"no database" * 100)
    cache = RequestCache(tmp_path)
    assert cache.get(key) == (["old", 1, 2] if content == "sqlite" else None)
    assert cache.get(request_key({"n": 2})) is None
    cache.close()
    path.unlink()
    assert RequestCache(tmp_path).get(key) == (["old", 1, 2] if content == "sqlite" else None)


def test_without_hard_links_a_reply_is_renamed_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "link", no_links)
    cache, key = RequestCache(tmp_path), request_key({"n": 1})
    cache.put(key, "reply")
    assert cache.get(key) == "reply" and not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, TransientError), (errno.EROFS, ConfigError)])
def test_a_disk_that_takes_no_reply_is_a_clear_error(
    code: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = RequestCache(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(error, match=os.strerror(code)):
        cache.put(request_key({"n": 1}), "reply")
    with pytest.raises(ConfigError, match="MEGAPAIRS_CACHE"):
        (tmp_path / "file").touch()
        RequestCache(tmp_path / "file")


def test_pruning_removes_what_is_too_old_then_the_oldest(tmp_path: Path):
    cache, keys = RequestCache(tmp_path), [request_key({"n": n}) for n in range(5)]
    day = 86_400
    for n, key in enumerate(keys):
        cache.put(key, "x" * 5000)
        os.utime(cache._path(key), (n * day, n * day))
    left = cache._path(keys[0]).with_name(".killed.host.1.2.tmp")
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    pruned = prune_cache(tmp_path, max_age_days=3.5, now_s=5 * day)
    assert [cache.get(key) is not None for key in keys] == [False, False, True, True, True]
    assert pruned.files == 3 and pruned.size_bytes > 10_000 and not left.exists()
    kept = cache._path(keys[4]).stat().st_blocks * 512
    assert prune_cache(tmp_path, max_age_days=99, max_bytes=2 * kept, now_s=5 * day).files == 1
    assert [cache.get(key) is not None for key in keys[2:]] == [False, True, True]
    assert prune_cache(tmp_path / "none", max_age_days=1) == (0, 0)
