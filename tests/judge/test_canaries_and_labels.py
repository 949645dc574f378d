"""A model that does not see its images, and a judge that does not judge, stop the part before it costs anything."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks.caption.canaries import Canary, read_canaries, shares, show
from tasks.config import load_params
from tasks.errors import ConfigError, DataError
from tasks.judge import label_draft
from tasks.judge.label_draft import questions
from tasks.judge.labelled import measured, questions_of, read_labelled, require, standing
from tasks.models.llm.load import load_captioner
from tasks.models.llm.requests import Reply, Request
from tasks.store import Store

HERE = Path("tasks/sample")


class Says:
    """Describes images by a rule."""

    name, revision, engine = "fake", "1", "fake 1"

    def __init__(self, rule):
        self.rule = rule

    def chat(self, requests: Sequence[Request]) -> list[Reply]:
        return [Reply(self.rule(r.images), 1, 1) for r in requests]

    def yes_probability(self, requests: Sequence[Request]) -> list[float]:
        return [self.rule(r.images) for r in requests]


def test_a_model_that_sees_passes_and_one_that_guesses_or_is_blind_does_not():
    canaries = [
        Canary(Image.new("RGB", (8, 8), a), Image.new("RGB", (8, 8), b), ((b, "light " + b), ("wall",)))
        for a, b in (("red", "blue"), ("blue", "red"))
    ]
    names = {(255, 0, 0): "red", (0, 0, 255): "blue"}
    sees = Says(lambda images: f"the wall is {names.get(images[1].getpixel((0, 0)), 'grey')} now")
    assert show(sees, "Compare.", canaries, least=1.0, blank_most=0.0) == (1.0, 0.0)
    with pytest.raises(DataError, match="says the known difference of 50% of 2 pairs"):
        show(Says(lambda images: "the wall is blue"), "Compare.", canaries, least=0.6, blank_most=1.0)
    with pytest.raises(DataError, match="blank pictures fits 100%"):
        show(Says(lambda images: "a wall, red or blue"), "Compare.", canaries, least=0.6, blank_most=0.34)
    assert shares(["redder wall", "red wall"], "", canaries) == (0.5, 0.0)  # whole words


def test_the_shipped_model_sees_the_shipped_canaries():
    params = load_params("params.yaml")
    model = load_captioner(params.caption.model, device="cpu", max_new_tokens=80)
    seen, guessed = show(
        model,
        "Compare the pictures.",
        read_canaries(HERE / "canaries"),
        least=params.caption.canaries_min,
        blank_most=params.caption.blank_max,
    )
    assert seen >= 0.9 and guessed <= 0.1


def test_the_plain_canaries_take_plain_words_and_no_blind_guess():
    """For real models: what a person would write passes, in any of several wordings; what is said of no image does not."""
    canaries = read_canaries(HERE / "plain" / "canaries")
    seen = [
        "both show a house on green ground; the target also has a tree beside it",
        "an arrow that pointed left now points upwards",
        "the circle is blue instead of red",
        "one star became three stars in a row",
        "the smiling face is frowning now",
        "the star stands before a black background",
        "a red heart was added at the right",
        "the solid disc has stripes",
        "the dot moved to the right side",
        "the square turned into a triangle",
        "the disc is much larger and fills the picture",
        "the word CAT was replaced by DOG",
    ]
    assert len(canaries) == 12 and all(
        c.query.size == (336, 336) and c.query.tobytes() != c.target.tobytes() for c in canaries
    )
    assert all(sum(c.is_seen(text) for text in seen) >= 1 for c in canaries)
    for blank in (
        "Both pictures show a plain grey square. There is no difference between them.",
        "",
        "a picture of something",
        "I see two images.",
    ):
        assert shares([""] * 12, blank, canaries)[1] <= 1 / 12


def test_a_description_by_a_form_is_heard_without_the_forms_own_words():
    canaries = [Canary(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red"), (("count", "replaced", "target"),))]
    form = '{"shared": "a wall", "differences": [{"kind": "count", "source": "one", "target": "two"}], "prose": "Both show a wall. However, one has less."}'
    with pytest.raises(DataError, match="the known difference of 0%"):
        show(Says(lambda images: form), "Compare.", canaries, least=1.0, blank_most=1.0, schema={"type": "object"})


def test_the_plain_questions_come_in_pairs_of_right_and_wrong():
    rows = read_labelled(HERE / "plain" / "labels.csv")
    assert len(rows) == 48 and [r["fits"] for r in rows] == [True, False] * 24
    assert all(
        a["instruction"] == b["instruction"] and a["query"] == b["query"] and a["candidate"] != b["candidate"]
        for a, b in zip(rows[::2], rows[1::2], strict=True)
    )
    assert len(questions_of(rows, HERE / "plain")) == 48


@pytest.mark.parametrize("says", [0.0, 0.3, 1.0])
def test_a_judge_that_sees_nothing_is_found_out_whatever_the_share_of_no(says: float):
    config, fits = load_params("params.yaml").judge, [True] + [False] * 19
    found = standing([says] * 20, fits, config.threshold)
    assert found.auc == 0.5
    with pytest.raises(DataError, match="judge.auc_min"):
        require(found, config, "blind")
    require(standing([0.95] + [0.1] * 19, fits, config.threshold), config, "sees")


def test_the_real_models_profiles_show_the_plain_probes():
    for profile in ("small", "production"):
        assert load_params("params.yaml", profile).caption.canaries == "tasks/sample/plain/canaries"
    assert load_params("params.yaml", "production").judge.labelled == "tasks/sample/plain/labels.csv"


def test_canaries_of_a_team_must_be_whole(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"canaries\.csv cannot be read"):
        read_canaries(tmp_path)
    (tmp_path / "canaries.csv").write_text("query,target,expect\na.png,b.png,\n")
    with pytest.raises(ConfigError, match="at least one row"):
        read_canaries(tmp_path)
    (tmp_path / "canaries.csv").write_text("query,target,expect\na.png,b.png,red\n")
    with pytest.raises(ConfigError, match="a picture cannot be read"):
        read_canaries(tmp_path)


def test_a_standing_is_counted_as_by_hand():
    found = standing([0.9, 0.6, 0.4, 0.6, 0.1, 0.2], [True, True, True, False, False, False], threshold=0.5)
    assert (found.accuracy, found.true_yes, found.false_yes) == (
        pytest.approx(4 / 6),
        pytest.approx(2 / 3),
        pytest.approx(1 / 3),
    )
    assert found.auc == pytest.approx((3 + 2.5 + 2) / 9)
    with pytest.raises(DataError, match="both kinds are needed"):
        standing([0.5], [True], 0.5)


def test_csv_and_parquet_say_the_same_and_odd_answers_are_refused(tmp_path: Path):
    rows = read_labelled(HERE / "labelled" / "labels.csv")
    assert len(rows) == 120 and sum(r["fits"] for r in rows) == 60
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels.parquet")
    assert read_labelled(tmp_path / "labels.parquet") == rows
    (tmp_path / "labels.csv").write_text("query,candidate,instruction,fits\na.png,b.png,make it red,perhaps\n")
    with pytest.raises(ConfigError, match="row 1: 'fits' is 'perhaps'"):
        read_labelled(tmp_path / "labels.csv")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_labelled(tmp_path / "none.csv")


def test_the_shipped_judge_stands_above_its_floors_and_a_yes_man_does_not(tmp_path: Path):
    params, path = load_params("params.yaml"), HERE / "labelled" / "labels.csv"
    judge = load_captioner(params.judge.model, device="cpu")
    found = measured(judge, "Does it fit: {instruction}", params.judge, path, Store(tmp_path))
    require(found, params.judge, judge.name)
    assert found.accuracy >= 0.8 and found.false_yes <= 0.1 and found.auc >= 0.9
    before = judge.spent.requests
    assert (
        measured(judge, "Does it fit: {instruction}", params.judge, path, Store(tmp_path)) == found
        and judge.spent.requests == before
    )
    yes_man = measured(Says(lambda images: 1.0), "{instruction}", params.judge, path, Store(tmp_path))
    with pytest.raises(DataError, match=r"right on 50\.0% of 120 .* takes 100\.0% of the wrong candidates"):
        require(yes_man, params.judge, "yes-man")


def test_a_draft_is_drawn_by_ids_alone_and_asks_for_its_answers(tmp_path: Path):
    ids = [f"{n:02d}" for n in range(40)]
    pairs = {
        i: {"query_image_id": f"q{i}", "target_image_id": f"t{i}", "negative_image_ids": [f"q{i}", f"n{i}", f"m{i}"]}
        for i in ids
    }
    rows = [{"pair_id": i, "instructions": [f"make it {i}", f"a {i} one"]} for i in ids]
    drawn = questions(rows, pairs, 30)
    assert (
        drawn == questions(list(reversed(rows)), pairs, 30) and len({(r["query"], r["candidate"]) for r in drawn}) == 30
    )
    assert Counter(r["candidate"][0] for r in drawn) == Counter({"t": 12, "q": 6}) + Counter(
        r["candidate"][0] for r in drawn if r["candidate"][0] in "nm"
    )
    assert len(questions(rows[:10], pairs, 30)) == 20  # no pair is asked about more than twice
    alone = {i: {**p, "negative_image_ids": p["negative_image_ids"][:1]} for i, p in pairs.items()}
    assert {r["candidate"][0] for r in questions(rows, alone, 30)} == {"t", "q"}
    with pytest.raises(DataError, match="no captioned pair"):
        label_draft.write(Store(tmp_path), tmp_path / "out", 10)


def test_the_form_that_a_team_fills_is_read_and_an_empty_answer_is_named(tmp_path: Path):
    rows = read_labelled(Path("docs/labelled/labels.csv"))
    assert [r["fits"] for r in rows] == [True, False, True, False]
    (tmp_path / "labels.csv").write_text("query,candidate,instruction,fits\na.jpg,b.jpg,make it red,\n")
    with pytest.raises(ConfigError, match="row 1: expected a value in each of"):
        read_labelled(tmp_path / "labels.csv")
