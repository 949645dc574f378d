"""The captioning stage: which rows it writes, what it requests again, what it drops, and how it resumes."""

import json

import pytest

from tasks.caption.stage import require_supported, run
from tasks.config import CaptionConfig, Params
from tasks.errors import ConfigError, DataError
from tasks.models.llm.requests import Refusal, Reply, Request
from tasks.names import stable_id
from tasks.prompts.prompt_set import read_prompt_set
from tasks.store import Store
from tests.support.colour_pairs import (
    BATCH,
    COLOURS,
    DESCRIPTION,
    PAIRS,
    paint,
    table_bytes,
    use_models,
    with_batch,
    with_caption,
)
from tests.support.fake_llm import FakeLlm
from tests.support.parameters import section_with


def test_a_pair_is_described_and_gets_an_instruction_of_every_style(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    use_models(monkeypatch)
    report = run(params, store)
    rows = store.read_table("captioned").to_pylist()
    assert [r["pair_id"] for r in rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert rows[0]["instructions"] == ["paint it, imperative", "paint it, question", "paint it, short"]
    assert rows[0]["styles"] == ["imperative", "question", "short"]
    assert (rows[0]["prompt_tokens"], rows[0]["output_tokens"]) == (40, 8) and len(rows[0]["prompt_sha256"]) == 64
    assert (report.new, report.done, report.written, report.tokens, report.dropped) == (5, 5, 5, 5 * 48, {})
    assert len(store.table_files("captioned")) == 3


def test_a_rejected_reply_is_requested_once_more_with_its_reason_and_then_dropped(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    counts: dict[str, int] = {}

    def describe(request: Request) -> str:
        counts[request.text] = counts.get(request.text, 0) + 1
        if "it is empty" in request.text:
            return DESCRIPTION  # with the reason it does better
        return "" if len(counts) == 1 and counts[request.text] <= 3 else DESCRIPTION

    def refuse_two_styles(request: Request) -> str:
        if "question" in request.text or "short" in request.text:
            return "I'm sorry, I cannot help"
        return paint(request)

    captioner, writer = FakeLlm(describe), FakeLlm(refuse_two_styles)
    use_models(monkeypatch, captioner, writer)
    report = run(params, store)
    assert any("it is empty" in text for text in captioner.texts)
    # two styles of five pairs, requested once more and no third time
    assert sum("it declines" in text for text in writer.texts) == 10
    assert report.dropped == {"refused": 5} and report.written == 0 and report.done == 5
    dropped = store.read_dropped("caption").to_pylist()
    assert json.loads(dropped[0]["detail"])["kept"] == {"imperative": "paint it, imperative"}
    assert report.tokens == sum(json.loads(d["detail"])["tokens"] for d in dropped) > 0


def test_the_targets_caption_and_a_repeated_text_do_not_count_as_instructions(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    use_models(monkeypatch, writer=FakeLlm(lambda _: "show a plain blue wall"))
    assert run(params, store).dropped == {"leaks_target": 1, "same_as_another": 4}


def test_parts_and_reruns_give_the_same_bytes_and_make_only_missing_chunks(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    captioner = FakeLlm(lambda _: DESCRIPTION)
    use_models(monkeypatch, captioner)
    run(params, store)
    whole = table_bytes(store)
    for path in store.table_files("captioned"):
        path.unlink()
    captioner.requests.clear()
    reports = [run(params, store, (2, 2)), run(params, store, (1, 2))]
    assert [r.new for r in reports] == [2, 3] and len(captioner.requests) == 5
    assert table_bytes(store) == whole
    again = run(params, store)
    assert len(captioner.requests) == 5 and (again.written, again.done, again.new) == (0, 5, 5)


def test_rows_of_earlier_batches_are_counted_as_reused(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    use_models(monkeypatch)
    run(params, store)
    row = store.read_table("pairs").to_pylist()[0]
    store.write(store.table_path("pairs", "2026.01.12"), [{**row, "batch": "2026.01.12"}], "pairs")
    report = run(with_batch(params, "2026.01.12"), store)
    assert (report.new, report.done, report.reused) == (1, 1, 5)


def test_the_other_direction_of_a_pair_is_a_row_of_its_own(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    captioner = FakeLlm(lambda _: DESCRIPTION)
    use_models(monkeypatch, captioner)
    report = run(with_caption(params, reverse=True), store)
    pair_ids = {p["pair_id"] for p in store.read_table("pairs").to_pylist()}
    reversed_ids = [r["pair_id"] for r in store.read_table("captioned").to_pylist() if r["pair_id"] not in pair_ids]
    # The ids of this store are short names, so that all five pairs are reversed.
    assert sorted(reversed_ids) == sorted(stable_id(target, query) for query, target in PAIRS)
    assert report.figures["yield"] == 1 and report.figures["reversed_per_pair"] == 1
    # prose cannot be reversed: it is requested again, with the images exchanged
    assert captioner.texts.count(read_prompt_set("tiny").describe) == 10


def test_a_direction_that_select_made_is_not_made_again(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    rows = store.read_table("pairs").to_pylist()
    renamed = [{**r, "pair_id": stable_id(r["query_image_id"], r["target_image_id"])} for r in rows]
    store.write(store.table_path("pairs", BATCH), renamed, "pairs")
    use_models(monkeypatch)
    run(with_caption(params, reverse=True), store)
    ids = store.read_table("captioned").column("pair_id").to_pylist()
    assert len(ids) == len(set(ids)) == 5 + 3  # red-blue and blue-red both exist already


def test_a_structured_description_is_reversed_without_a_request_and_its_differences_are_stored(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    def describe(_: Request) -> str:
        query, target = PAIRS[(len(captioner.requests) - 1) % 5]
        prose = (
            "Both pictures show one plain wall and nothing else at all. "
            f"However, the source has a {query} wall, whereas the target has a {target} wall. "
        )
        difference = {"kind": "attribute", "source": query, "target": target}
        return json.dumps({"shared": "a plain wall", "differences": [difference], "prose": prose * 3})

    def write(request: Request) -> str:
        colour = request.text.rpartition("the target has ")[2].removeprefix("a ").split()[0].rstrip(".")
        return f"what it would be in {colour}, {len(writer.requests)}"

    captioner, writer = FakeLlm(describe), FakeLlm(write)
    use_models(monkeypatch, captioner, writer)
    run(with_caption(params, reverse=True, prompts="standard", max_chars=800), store)
    rows = {r["pair_id"]: r for r in store.read_table("captioned").to_pylist()}
    assert len(rows) == 10 and len(captioner.requests) == 5
    forward, back = rows["p1"], rows[stable_id("green", "red")]
    assert forward["shared_concept"] == back["shared_concept"] == "a plain wall"
    assert forward["differences"] == ["attribute: red -> green"] and back["differences"] == ["attribute: green -> red"]
    assert forward["prompt_tokens"] > back["prompt_tokens"] > 0
    assert all("in green" in text for text in forward["instructions"])
    assert all("in red" in text for text in back["instructions"])


def test_parameters_that_the_prompt_set_has_no_request_for_are_refused():
    standard = read_prompt_set("standard")

    def config(**changes: object) -> CaptionConfig:
        return section_with(CaptionConfig, **{"prompts": "standard", **changes})

    require_supported(config(languages=["de", "en"]), standard)
    with pytest.raises(ConfigError, match="has no field {language}"):
        require_supported(config(languages=["de"], prompts="tiny"), read_prompt_set("tiny"))
    require_supported(config(styles=["short", "short 2"]), standard)
    with pytest.raises(ConfigError, match=r"\['short 2'\], and 'plain' has no describe.schema.json"):
        require_supported(config(styles=["short", "short 2"], prompts="plain"), read_prompt_set("plain"))


def refused(words: str) -> Reply:
    return Reply("", 0, 0, refusal=Refusal("request_refused", words))


def test_a_refused_pair_is_dropped_with_the_servers_words_and_not_requested_again(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    red_green = (COLOURS["red"], COLOURS["green"])
    captioner = FakeLlm(
        lambda r: refused("400 too wide") if tuple(i.getpixel((0, 0)) for i in r.images) == red_green else DESCRIPTION
    )
    use_models(monkeypatch, captioner)
    report = run(params, store)
    assert report.dropped == {"request_refused": 1} and report.written == 4 and len(captioner.requests) == 5
    [row] = store.read_dropped("caption").to_pylist()
    detail = json.loads(row["detail"])
    assert row["key"] == "p1" and detail["replies"] == {"description": "400 too wide"} and detail["tokens"] == 0
    assert any("request_refused 1" in note for note in report.notes)


def test_a_refused_instruction_leaves_the_others(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    use_models(monkeypatch, writer=FakeLlm(lambda r: refused("413") if "question" in r.text else paint(r)))
    with pytest.raises(DataError, match="caption.refused_share_max: 4 of 4 rows were refused.*413"):
        run(params, store)  # in every pair: that is the server, not the pairs
    use_models(monkeypatch, writer=FakeLlm(lambda r: refused("413") if "question" in r.text else paint(r)))
    report = run(with_caption(params, refused_share_max=1.0), store)
    assert report.dropped == {} and {len(r["instructions"]) for r in store.read_table("captioned").to_pylist()} == {2}


def test_a_reply_that_was_cut_off_is_requested_with_more_room_and_then_dropped(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    captioner = FakeLlm(lambda r: Reply(DESCRIPTION, 10, 80, is_cut=r.max_tokens is None))
    writer = FakeLlm(lambda r: Reply(paint(r), 10, 80, is_cut="short" in r.text))
    use_models(monkeypatch, captioner, writer)
    report = run(with_caption(params, instructions_min=3), store)
    assert [r.max_tokens for r in captioner.requests][:4] == [None, None, 160, 160]
    assert report.dropped == {"cut_off": 5} and sum(r.max_tokens == 160 for r in writer.requests) == 5
    assert json.loads(store.read_dropped("caption").to_pylist()[0]["detail"])["problems"] == {"short": "cut_off"}
