"""The request cache: a repeated request is answered from it, and no other request is."""

import threading
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner, load_writer
from tasks.models.llm.request_cache import RequestCache, cache_folder, image_key, open_cache, request_key
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
