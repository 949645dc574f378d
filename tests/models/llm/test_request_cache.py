"""What is paid for once is not paid for again, and nothing else is taken for it."""

import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks.models.llm.load import load_captioner, load_writer
from tasks.models.llm.request_cache import RequestCache, folder_for, image_key, key_of, open_cache
from tasks.models.llm.requests import Request

CHECKPOINTS = Path("tasks/sample/checkpoints")


def test_the_first_reply_stays_whoever_writes_and_reads(tmp_path: Path):
    one, two = RequestCache(tmp_path), RequestCache(tmp_path)
    key = key_of({"text": "hello"})
    assert one.get(key) is None
    one.put(key, ["é", 1, 0.1 + 0.2])
    two.put(key, ["another"])
    assert one.get(key) == two.get(key) == ["é", 1, 0.1 + 0.2] and len(two) == 1
    keys = [key_of({"n": n}) for n in range(200)]
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
def test_keys_are_equal_exactly_for_equal_facts(one: dict, other: dict):
    assert (key_of(one) == key_of(other)) == (one == other)
    assert key_of(dict(reversed(one.items()))) == key_of(one)


def test_two_images_never_share_a_key():
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


def test_where_it_lies(tmp_path: Path, monkeypatch):
    assert folder_for(tmp_path, {}) == tmp_path / ".run" / "request-cache"
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config.local").write_text(
        "[core]\n    site_cache_dir = /x\n[cache]\n    dir = /somewhere/dvc-cache\n"
    )
    assert folder_for(tmp_path, {}) == Path("/somewhere/request-cache")
    assert folder_for(tmp_path, {"MEGAPAIRS_CACHE": "/else"}) == Path("/else")
    assert folder_for(tmp_path, {"MEGAPAIRS_CACHE": "off"}) is None
    monkeypatch.delenv("MEGAPAIRS_CACHE", raising=False)
    assert open_cache(tmp_path, served=False) is None
    monkeypatch.setenv("MEGAPAIRS_CACHE", str(tmp_path / "c"))
    assert open_cache(tmp_path, served=False) is not None


def test_a_call_in_process_is_answered_again_with_the_same_bytes_and_other_calls_are_not(tmp_path: Path):
    cache = RequestCache(tmp_path)
    judge = load_captioner(str(CHECKPOINTS / "judge"), device="cpu", max_new_tokens=8, cache=cache)
    images = [Image.new("RGB", (96, 96), c) for c in ("red", "blue", "green")]
    asked = [Request((images[0], p), "Does it fit: make it blue") for p in images[1:]]
    first = judge.yes_probability(asked)
    assert judge.spent.cached == 0 and judge.spent.prompt_tokens > 0
    again = load_captioner(str(CHECKPOINTS / "judge"), device="cpu", max_new_tokens=8, cache=RequestCache(tmp_path))
    same_pixels = [Request((images[0].copy(), r.images[1].copy()), r.text) for r in asked]
    assert again.yes_probability(same_pixels) == first and (
        again.spent.requests,
        again.spent.cached,
        again.spent.prompt_tokens,
    ) == (2, 2, 0)
    again.yes_probability(asked[:1])
    again.yes_probability([Request(r.images[::-1], r.text) for r in asked])
    assert again.spent.cached == 2 and again.spent.requests == 5
    plain = load_captioner(str(CHECKPOINTS / "judge"), device="cpu", max_new_tokens=8)
    assert plain.yes_probability(asked) == first

    writer = load_writer(str(CHECKPOINTS / "writer"), device="cpu", max_new_tokens=8, cache=cache)
    prompts = ["style: short\nboth: nothing; change: remove the small red star"] * 2
    assert writer.write(prompts) == writer.write(prompts) and (writer.spent.requests, writer.spent.cached) == (2, 1)
