"""Describe, write, check, judge: with models that say what the test tells them, over a store of a few images."""

import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tasks.caption.stage
import tasks.judge.stage
import tasks.prompts.prompt_set
from tasks.config import Params, load_params
from tasks.errors import ConfigError
from tasks.judge.verdict import decide
from tasks.models.llm.captioner import Reply, Request
from tasks.names import stable_id
from tasks.store import Store
from tasks.usage import Usage

BATCH = "2026.01.05"
COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def colour_of(image: Image.Image) -> str:
    names = {
        (255, 0, 0): "red",
        (0, 128, 0): "green",
        (0, 0, 255): "blue",
        (255, 255, 255): "white",
        (0, 0, 0): "black",
        (255, 255, 0): "yellow",
    }
    return names[image.getpixel((0, 0))]  # type: ignore[index]


class Fake:
    """A captioner, writer and judge in one; `says` answers texts, `thinks` gives P(yes) of (query, candidate, text)."""

    name, revision, engine, sampling = "fake", "0123456789ab", "fake 1", "{}"

    def __init__(
        self, says: Callable[[str], str] = str, thinks: Callable[[str, str, str], float] = lambda q, c, t: 0.0
    ) -> None:
        self.says, self.thinks = says, thinks
        self.asked: list[str] = []
        self.spent = Usage()

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        self.asked += [r.text for r in requests]
        return [Reply(self.says(r.text), 10, 2) for r in requests]

    def write(self, prompts: Sequence[str]) -> list[Reply]:
        return self.chat([Request((), p) for p in prompts])

    def yes_probability(self, requests: Sequence[Request]) -> list[float]:
        self.asked += [r.text for r in requests]
        return [self.thinks(colour_of(r.images[0]), colour_of(r.images[1]), r.text) for r in requests]


@pytest.fixture
def params() -> Params:
    params = load_params("params.yaml", "test")
    return params.model_copy(
        update={
            "open_run": params.open_run.model_copy(update={"batch": BATCH}),
            "caption": params.caption.model_copy(
                update={
                    "chunk_pairs": 2,
                    "styles": ("imperative", "question", "short"),
                    "instructions_min": 2,
                    "canaries": None,
                }
            ),
            "judge": params.judge.model_copy(
                update={
                    "labelled": None,
                    "chunk_pairs": 2,
                    "threshold": 0.5,
                    "negative_threshold": 0.5,
                    "instructions_min": 1,
                }
            ),
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six plain images, named by colour, and five pairs with two mined negatives each."""
    store = Store(tmp_path)
    shard, images = b"", []
    for colour in COLOURS:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(file, "PNG")
        content = file.getvalue()
        empty = {
            "source_uri": f"s:{colour}.png",
            "source_sha256": "",
            "license_code": "",
            "attribution": "",
            "fetched_at": "",
            "phash": "",
            "thumbnail": b"",
        }
        where = {"shard": f"{BATCH}-00000.tar", "offset_bytes": len(shard), "size_bytes": len(content)}
        images.append(
            {
                "image_id": colour,
                "batch": BATCH,
                "width_px": 8,
                "height_px": 8,
                "caption": f"a plain {colour} wall",
                "caption_source": "source",
                **empty,
                **where,
            }
        )
        shard += content
    store.write_bytes(store.folder("data", "images", f"{BATCH}-00000.tar"), shard)
    store.write(store.table_path("images", BATCH), images, "images")
    pairs = []
    for n, (query, target) in enumerate(
        (("red", "blue"), ("red", "green"), ("blue", "red"), ("green", "white"), ("white", "black"))
    ):
        negatives = [c for c in COLOURS if c not in (query, target)][:2]
        scores = {
            "similarity_semantic": 0.9,
            "similarity_pattern": None,
            "similarity_caption": 0.8,
            "rank": 0,
            "negative_similarity": [0.9, 0.8, 0.7],
        }
        row = {
            "pair_id": f"p{n}",
            "batch": BATCH,
            "query_image_id": query,
            "target_image_id": target,
            "mined_by": ["semantic"],
        }
        pairs.append({**row, "negative_image_ids": [query, *negatives], **scores})
    store.write(store.table_path("pairs", BATCH), pairs, "pairs")
    return store


def use(monkeypatch: pytest.MonkeyPatch, model: Fake, writer: Fake, judge: Fake) -> None:
    monkeypatch.setattr(tasks.caption, "load_captioner", lambda *a, **k: model)
    monkeypatch.setattr(tasks.caption, "load_writer", lambda *a, **k: writer)
    monkeypatch.setattr(tasks.judge, "load_judge", lambda *a, **k: judge)


def writes(prompt: str) -> str:
    style = prompt.splitlines()[0].removeprefix("style: ")
    return f"paint it, {style}"


def contents(store: Store) -> dict[str, bytes]:
    return {str(p.relative_to(store.root)): p.read_bytes() for p in sorted(store.folder("data").rglob("*.parquet"))}


def test_a_pair_is_described_and_gets_an_instruction_of_every_style(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    use(monkeypatch, Fake(lambda t: "the wall got another colour"), Fake(writes), Fake())
    report = tasks.caption.stage.run(params, store)
    rows = store.read_table("captioned").to_pylist()
    assert [r["pair_id"] for r in rows] == ["p0", "p1", "p2", "p3", "p4"]
    assert rows[0]["instructions"] == ["paint it, imperative", "paint it, question", "paint it, short"] and rows[0][
        "styles"
    ] == [
        "imperative",
        "question",
        "short",
    ]
    assert (rows[0]["prompt_tokens"], rows[0]["output_tokens"]) == (40, 8) and len(rows[0]["prompt_sha256"]) == 64
    assert (report.new, report.done, report.written, report.tokens, report.dropped) == (5, 5, 5, 5 * 48, {})
    assert len(store.table_files("captioned")) == 3


def test_one_retry_with_the_error_and_then_a_reason_never_a_default(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    tries: dict[str, int] = {}

    def says(prompt: str) -> str:
        tries[prompt] = tries.get(prompt, 0) + 1
        if "it is empty" in prompt:
            return "the wall got another colour"  # told what was wrong, it does better
        return "" if len(tries) == 1 and tries[prompt] <= 3 else "the wall got another colour"

    def sulks(prompt: str) -> str:
        return "I'm sorry, I cannot help" if "question" in prompt or "short" in prompt else writes(prompt)

    model, writer = Fake(says), Fake(sulks)
    use(monkeypatch, model, writer, Fake())
    report = tasks.caption.stage.run(params, store)
    assert any("it is empty" in text for text in model.asked)
    # two styles of five pairs, asked once more and no third time
    assert sum("it declines" in text for text in writer.asked) == 10
    assert report.dropped == {"refused": 5} and report.written == 0 and report.done == 5
    dropped = store.read_dropped("caption").to_pylist()
    assert json.loads(dropped[0]["detail"])["kept"] == {"imperative": "paint it, imperative"}
    assert report.tokens == sum(json.loads(d["detail"])["tokens"] for d in dropped) > 0


def test_a_text_that_is_the_targets_caption_or_another_text_again_does_not_count(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    use(monkeypatch, Fake(lambda t: "the wall got another colour"), Fake(lambda p: "show a plain blue wall"), Fake())
    report = tasks.caption.stage.run(params, store)
    assert report.dropped == {"leaks_target": 1, "same_as_another": 4}


def test_parts_and_reruns_give_the_same_bytes_and_do_only_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    judge = Fake(thinks=lambda q, c, t: 0.9 if c == "blue" else 0.25)
    model = Fake(lambda t: "the wall got another colour")
    use(monkeypatch, model, Fake(writes), judge)
    tasks.caption.stage.run(params, store)
    tasks.judge.stage.run(params, store)
    whole = contents(store)
    for path in list(store.folder("data", "captioned").iterdir()) + list(store.folder("data", "triplets").iterdir()):
        path.unlink()
    model.asked.clear()
    reports = [tasks.caption.stage.run(params, store, (2, 2)), tasks.caption.stage.run(params, store, (1, 2))]
    assert [r.new for r in reports] == [2, 3]
    assert len(model.asked) == 5
    tasks.judge.stage.run(params, store, (1, 2))
    tasks.judge.stage.run(params, store, (2, 2))
    assert contents(store) == whole
    again = tasks.caption.stage.run(params, store)
    assert len(model.asked) == 5 and (again.written, again.done, again.new) == (0, 5, 5)


def test_earlier_batches_are_reused_and_counted(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    use(
        monkeypatch,
        Fake(lambda t: "the wall got another colour"),
        Fake(writes),
        Fake(thinks=lambda q, c, t: 0.9 if c == "blue" else 0.25),
    )
    tasks.caption.stage.run(params, store)
    tasks.judge.stage.run(params, store)
    later = params.model_copy(update={"open_run": params.open_run.model_copy(update={"batch": "2026.01.12"})})
    row = store.read_table("pairs").to_pylist()[0]
    store.write(store.table_path("pairs", "2026.01.12"), [{**row, "batch": "2026.01.12"}], "pairs")
    captioned, judged = tasks.caption.stage.run(later, store), tasks.judge.stage.run(later, store)
    assert (captioned.new, captioned.done, captioned.reused) == (1, 1, 5)
    assert (judged.new, judged.done, judged.reused, judged.dropped) == (1, 1, 1, {"duplicate": 1})


def test_the_judge_keeps_what_fits_the_target_alone(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    def thinks(query: str, candidate: str, text: str) -> float:
        if (query, candidate) == ("red", "blue"):
            return 0.1 if "question" in text else 0.875
        if (query, candidate) == ("red", "white") and "imperative" in text:
            return 0.75  # a mined negative that fits as well
        return 0.25

    judge = Fake(thinks=thinks)
    use(monkeypatch, Fake(lambda t: "the wall got another colour"), Fake(writes), judge)
    tasks.caption.stage.run(params, store)
    report = tasks.judge.stage.run(params, store)
    [triplet] = store.read_table("triplets").to_pylist()
    assert (triplet["query_image_id"], triplet["target_image_id"]) == ("red", "blue")
    assert triplet["instructions"] == ["paint it, imperative", "paint it, short"] and triplet["judge_target"] == [
        0.875,
        0.875,
    ]
    assert triplet["negative_image_ids"] == ["red", "green"] and triplet["judge_negative"] == [0.25, 0.25]
    assert report.dropped == {"wrong_target": 4, "wrong_instruction": 1, "false_negative": 1}
    assert (
        report.figures["yield"] == 0.2
        and report.figures["negatives_mean"] == 1
        and report.figures["false_negative_share"] == 0.5
    )
    assert len(judge.asked) == 5 * 3 + 2 * 3  # negatives are asked about only for the two instructions that passed
    detail = {d["reason"]: json.loads(d["detail"]) for d in store.read_dropped("judge").to_pylist()}
    assert (
        detail["false_negative"] == {"image_id": "white", "p_yes": 0.75}
        and detail["wrong_instruction"]["style"] == "question"
    )


def test_candidates_that_stand_in_are_counted(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    """One mined negative a triplet is wanted of two candidates; the first, green, fits as well as the target."""
    judge = Fake(thinks=lambda q, c, t: {"blue": 0.9, "green": 0.895}.get(c, 0.25) if q == "red" else 0.0)
    use(monkeypatch, Fake(lambda t: "the wall got another colour"), Fake(writes), judge)
    tasks.caption.stage.run(params, store)
    strict = params.model_copy(
        update={
            "judge": params.judge.model_copy(
                update={"negative_threshold": 1.0, "negative_margin": 0.01, "negatives": 1}
            )
        }
    )
    report = tasks.judge.stage.run(strict, store)
    row = next(t for t in store.read_table("triplets").to_pylist() if t["target_image_id"] == "blue")
    assert (
        row["negative_image_ids"] == ["red", "white"]
        and row["judge_negative"] == [0.25, 0.25]
        and row["judge_target"] == pytest.approx([0.9] * 3)
    )
    assert report.figures["negatives_replaced"] > 0 and report.dropped["false_negative"] >= 1


def reversing(params: Params, **more) -> Params:
    return params.model_copy(update={"caption": params.caption.model_copy(update={"reverse": True, **more})})


def test_the_other_direction_of_a_pair_is_written_judged_and_stored_as_a_triplet_of_its_own(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    model = Fake(lambda t: "the wall got another colour")
    use(
        monkeypatch,
        model,
        Fake(writes),
        Fake(thinks=lambda q, c, t: 0.9 if (q, c) in (("red", "green"), ("green", "red")) else 0.25),
    )
    captioned = tasks.caption.stage.run(reversing(params), store)
    pairs = {p["pair_id"]: p for p in store.read_table("pairs").to_pylist()}
    back = [r for r in store.read_table("captioned").to_pylist() if r["pair_id"] not in pairs]
    # Ids of this store are short names, so all five are reversed; where select made the other direction itself, its id
    # is known.
    assert len(back) == 5 and captioned.figures["yield"] == 1 and captioned.figures["reversed_per_pair"] == 1
    # no form to turn round: asked for again, images exchanged
    assert model.asked.count(tasks.prompts.prompt_set.read_prompts("tiny").describe) == 10
    tasks.judge.stage.run(reversing(params), store)
    one, other = sorted(store.read_table("triplets").to_pylist(), key=lambda t: t["query_image_id"])
    assert (one["query_image_id"], one["target_image_id"], one["negative_image_ids"]) == (
        "green",
        "red",
        ["green", "blue", "white"],
    )
    assert (other["query_image_id"], other["target_image_id"], other["negative_image_ids"]) == (
        "red",
        "green",
        ["red", "blue", "white"],
    )
    assert (
        one["pair_id"] == stable_id("green", "red")
        and one["triplet_id"] != other["triplet_id"]
        and one["judge_target"] == pytest.approx([0.9] * 3)
    )


def test_a_direction_that_select_made_is_not_made_again(monkeypatch: pytest.MonkeyPatch, store: Store, params: Params):
    rows = store.read_table("pairs").to_pylist()
    store.write(
        store.table_path("pairs", BATCH),
        [{**r, "pair_id": stable_id(r["query_image_id"], r["target_image_id"])} for r in rows],
        "pairs",
    )
    use(monkeypatch, Fake(lambda t: "the wall got another colour"), Fake(writes), Fake())
    tasks.caption.stage.run(reversing(params), store)
    ids = store.read_table("captioned").column("pair_id").to_pylist()
    assert len(ids) == len(set(ids)) == 5 + 3  # red-blue and blue-red are both there already


def test_a_form_is_turned_round_without_asking_again_and_its_tags_are_stored(
    monkeypatch: pytest.MonkeyPatch, store: Store, params: Params
):
    shown = [("red", "blue"), ("red", "green"), ("blue", "red"), ("green", "white"), ("white", "black")]

    def form(_: str) -> str:
        query, target = shown[len(model.asked) % 5 - 1]
        prose = (
            f"Both pictures show one plain wall and nothing else at all. However, the source has a {query} wall, whereas the target has a {target} wall. "
            * 3
        )
        return json.dumps(
            {
                "shared": "a plain wall",
                "differences": [{"kind": "attribute", "source": query, "target": target}],
                "prose": prose,
            }
        )

    model, writer = (
        Fake(form),
        Fake(
            lambda prompt: (
                "what it would be in "
                + prompt.rpartition("the target has ")[2].removeprefix("a ").split()[0].rstrip(".")
                + f", {len(writer.asked)}"
            )
        ),
    )
    use(monkeypatch, model, writer, Fake())
    tasks.caption.stage.run(reversing(params, prompts="standard", max_chars=800), store)
    rows = {r["pair_id"]: r for r in store.read_table("captioned").to_pylist()}
    assert len(rows) == 10 and len(model.asked) == 5
    there, back = rows["p1"], rows[stable_id("green", "red")]
    assert there["shared_concept"] == back["shared_concept"] == "a plain wall"
    assert (
        len(there["differences"]) == len(back["differences"]) == 1
        and there["prompt_tokens"] > back["prompt_tokens"] > 0
    )
    source, target = there["differences"][0].removeprefix("attribute: ").split(" -> ")
    assert back["differences"] == [f"attribute: {target} -> {source}"]
    assert all(f"in {target}" in text for text in there["instructions"]) and all(
        f"in {source}" in text for text in back["instructions"]
    )


def verdict(
    target: list[float], negatives: dict[int, list[float]], partial: list[bool], instructions_min: int = 1, **more
):
    return decide(
        target,
        negatives,
        is_partial=partial,
        threshold=0.7,
        negative_threshold=0.5,
        instructions_min=instructions_min,
        **more,
    )


@pytest.mark.parametrize(
    ("margin", "kept"),
    # meets from 0.5, 0.45, 0.35, 0.05 on
    [(None, [0, 1, 2, 3]), (0.45, [0, 1, 2, 3]), (0.55, [0, 2, 3]), (0.85, [0, 3])],
)
def test_a_negative_that_comes_within_the_margin_of_the_target_is_a_false_one(margin: float | None, kept: list[int]):
    found = verdict([0.9], {0: [0.01, 0.4, 0.3, 0.04]}, [False], negative_margin=margin)
    assert found.negatives == kept and set(found.false_negatives) == {1, 2, 3} - set(kept)


def test_the_margin_never_lets_a_negative_through_that_the_threshold_stops():
    assert verdict([0.9], {0: [0.1, 0.5]}, [False], negative_margin=0.1).negatives == [0]
    # each text has its own line
    assert verdict([0.75], {0: [0.1, 0.3]}, [False], negative_margin=0.5).false_negatives == {1: 0.3}


def test_the_query_itself_must_stay_outside_the_margin_too():
    assert verdict([0.9], {0: [0.4]}, [False], negative_margin=0.45).reason is None
    found = verdict([0.9], {0: [0.4]}, [False], negative_margin=0.55)
    assert found.reason == "ambiguous" and found.dropped == {0: ("query_fits", 0.4)}


def test_the_next_candidate_stands_in_for_a_false_negative():
    scores = {0: [0.1, 0.6, 0.2, 0.9, 0.3, 0.05]}
    found = verdict([0.9], scores, [False], negatives_max=2)
    assert found.negatives == [0, 2, 4] and found.false_negatives == {1: 0.6, 3: 0.9}
    assert found.judge_negative == [0.1, 0.2, 0.3]
    # none is left: fewer, never a wrong one
    assert verdict([0.9], {0: [0.1, 0.6]}, [False], negatives_max=2).negatives == [0]


def test_one_change_of_several_is_kept_only_where_no_stored_negative_meets_it():
    met = verdict([0.9, 0.9], {0: [0.1, 0.2, 0.2], 1: [0.1, 0.6, 0.2]}, [False, True])
    assert (met.instructions, met.negatives, met.dropped) == ([0], [0, 1, 2], {1: ("partial_fits", 0.6)})
    # the negative fits the whole change: it goes, the text stays
    gone = verdict([0.9, 0.9], {0: [0.1, 0.8, 0.2], 1: [0.1, 0.6, 0.2]}, [False, True])
    assert (gone.instructions, gone.negatives, gone.false_negatives) == ([0, 1], [0, 2], {1: 0.8})
    alone = verdict([0.9], {0: [0.1, 0.6]}, [True])
    assert (alone.reason, alone.instructions) == ("ambiguous", [])


def test_every_short_text_may_be_partial_whatever_its_number(store: Store, params: Params):
    """White fits the second difference alone: that text goes; a whole text that it fits takes the negative out instead."""
    rows = [
        {
            "instructions": ["a", "b"],
            "styles": styles,
            "query_image_id": "red",
            "target_image_id": "blue",
            "negative_image_ids": ["red", "white"],
        }
        for styles in (["keep", "short 2"], ["keep", "question"])
    ]
    images = {c: store.read_image(c) for c in ("red", "blue", "white")}
    judge = Fake(thinks=lambda q, c, t: 0.9 if c == "blue" else 0.8 if c == "white" and t == "b" else 0.0)
    short, whole = tasks.judge.stage.judge_rows(rows, images, judge, "{instruction}", params.judge)
    assert (short.instructions, short.negatives, short.dropped) == ([0], [0, 1], {1: ("partial_fits", 0.8)})
    assert (whole.instructions, whole.negatives) == ([0, 1], [0])


def test_a_text_that_the_query_itself_meets_says_nothing():
    assert verdict([0.9, 0.9], {0: [0.5, 0.1], 1: [0.49, 0.1]}, [False, False]).instructions == [1]
    assert verdict([0.9], {0: [0.5, 0.1]}, [False]).reason == "ambiguous"
    assert verdict([0.1], {}, [False]).reason == "wrong_target"
    assert verdict([0.9, 0.1], {0: [0.1]}, [False, False], instructions_min=2).reason == "wrong_target"


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_what_is_kept_is_right_for_the_target_and_for_nothing_else(instructions: int, negatives: int, seed: int):
    rng = random.Random(seed)
    target = [rng.random() for _ in range(instructions)]
    asked = {n: [rng.random() for _ in range(negatives)] for n, p in enumerate(target) if p >= 0.7}
    found = verdict(target, asked, [rng.random() < 0.3 for _ in range(instructions)])
    if found.reason is None:
        assert found.negatives[0] == 0 and found.instructions
        assert all(target[n] >= 0.7 for n in found.instructions)
        assert all(asked[n][k] < 0.5 for n in found.instructions for k in found.negatives)
        assert found.judge_target == [target[n] for n in found.instructions]
        assert found.judge_negative == [max(asked[n][k] for n in found.instructions) for k in found.negatives]
    assert set(found.instructions) | set(found.dropped) == set(range(instructions)) or found.reason is not None


@pytest.mark.parametrize("folder", [p.name for p in tasks.prompts.prompt_set.PROMPTS.iterdir() if p.is_dir()])
def test_every_prompt_set_is_whole(folder: str):
    prompts = tasks.prompts.prompt_set.read_prompts(folder)
    assert (
        prompts.describe
        and "{instruction}" in tasks.judge.stage.read_prompt(folder)
        and (tasks.prompts.prompt_set.PROMPTS / folder / "caption.txt").read_text().strip()
    )
    assert "{" not in prompts.describing(80)  # every field is one that is filled


def test_a_prompt_set_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no such prompt"):
        tasks.prompts.prompt_set.read_prompts("none")


@given(st.text(max_size=30), st.text(max_size=30))
def test_filling_leaves_braces_in_the_values_alone(style: str, description: str):
    assert (
        tasks.prompts.prompt_set.filled("a {style} b {description} {c} {", style=style, description=description)
        == f"a {style} b {description} {{c}} {{"
    )
