"""What is paid for once is not paid for again, and nothing else is taken for it; the ledger adds up."""

import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tasks import usage as ledger
from tasks.models.llm.load import load_captioner, load_writer
from tasks.models.llm.request_cache import RequestCache, folder_for, image_key, key_of, open_cache
from tasks.models.llm.requests import Request
from tasks.usage import Ledger

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


def test_the_ledger_adds_up_over_parts_and_tries(tmp_path: Path):
    one = Ledger(
        requests=10, cached=4, prompt_tokens=100, output_tokens=20, seconds=1.5, cpu_s=1.0, rejected={"refused": 2}
    )
    for part in ((1, 2), (2, 2), (2, 2)):
        ledger.append(tmp_path, "caption", part, one)
    ledger.append(tmp_path, "judge", None, Ledger(requests=30, prompt_tokens=50, gpu_s=2.0))
    with open(tmp_path / ".run" / "ledger" / "judge.jsonl", "ab") as file:
        file.write(b'{"requests": 5, "pro')  # cut off by a crash
    read = ledger.read(tmp_path)
    assert read["caption"] == Ledger(30, 12, 300, 60, 4.5, 3.0, 0.0, {"refused": 6}) and read["judge"].requests == 30
    cost = ledger.cost(read, triplets=10, pairs=20)
    assert cost["per_triplet"] == {
        "requests": 6.0,
        "prompt_tokens": 35.0,
        "output_tokens": 6.0,
        "cpu_s": 0.3,
        "gpu_s": 0.2,
    }
    assert cost["stages"]["caption"]["cached_share"] == 0.4
    assert ledger.cost({}, triplets=0, pairs=0) == {} and "40% from the cache" in one.sentence()
