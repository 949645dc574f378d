"""Canaries: a captioner that does not see its images stops the part before it costs anything."""

from pathlib import Path

import pytest
from PIL import Image

from tasks.caption.canaries import Canary, canary_shares, check_canaries, read_canaries
from tasks.config import load_params
from tasks.errors import ConfigError, DataError
from tasks.models.llm.base import LlmConfig
from tasks.models.llm.load import load_captioner
from tasks.models.llm.requests import Request
from tests.support.fake_llm import FakeLlm

SAMPLE = Path("tasks/sample")


def test_a_captioner_that_sees_passes_and_one_that_guesses_or_is_blind_does_not():
    canaries = [
        Canary(Image.new("RGB", (8, 8), a), Image.new("RGB", (8, 8), b), ((b, "light " + b), ("wall",)))
        for a, b in (("red", "blue"), ("blue", "red"))
    ]
    names = {(255, 0, 0): "red", (0, 0, 255): "blue"}

    def see(request: Request) -> str:
        return f"the wall is {names.get(request.images[1].getpixel((0, 0)), 'grey')} now"  # type: ignore[arg-type]

    assert check_canaries(FakeLlm(see), "Compare.", canaries, seen_min=1.0, blank_max=0.0) == (1.0, 0.0)
    constant = FakeLlm.in_turn("the wall is blue")
    with pytest.raises(DataError, match="states the known difference of 50% of 2 pairs"):
        check_canaries(constant, "Compare.", canaries, seen_min=0.6, blank_max=1.0)
    guessing = FakeLlm.in_turn("a wall, red or blue")
    with pytest.raises(DataError, match="blank images fits 100%"):
        check_canaries(guessing, "Compare.", canaries, seen_min=0.6, blank_max=0.34)


def test_only_whole_words_count():
    canary = Canary(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8)), (("red",), ("wall",)))
    assert canary_shares(["redder wall", "red wall"], "", [canary, canary]) == (0.5, 0.0)


def test_the_words_of_the_json_itself_do_not_count():
    canaries = [Canary(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red"), (("count", "replaced", "target"),))]
    reply = (
        '{"shared": "a wall", "differences": [{"kind": "count", "source": "one", "target": "two"}], '
        '"prose": "Both show a wall. However, one has less."}'
    )
    with pytest.raises(DataError, match="the known difference of 0%"):
        check_canaries(
            FakeLlm.in_turn(reply), "Compare.", canaries, seen_min=1.0, blank_max=1.0, schema={"type": "object"}
        )


def test_the_sample_captioner_sees_the_sample_canaries():
    params = load_params("params.yaml")
    shares = check_canaries(
        load_captioner(LlmConfig(params.caption.model, device="cpu", max_new_tokens=80)),
        "Compare the pictures.",
        read_canaries(SAMPLE / "canaries"),
        seen_min=params.caption.canaries_min,
        blank_max=params.caption.blank_max,
    )
    assert shares.seen >= 0.9 and shares.guessed <= 0.1


def test_the_plain_canaries_accept_many_wordings_and_no_blind_guess():
    """For real models: what a person would write passes, what is said of no image does not."""
    canaries = read_canaries(SAMPLE / "plain" / "canaries")
    descriptions = [
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
    assert len(canaries) == 12
    assert all(c.query.size == (336, 336) and c.query.tobytes() != c.target.tobytes() for c in canaries)
    assert all(any(c.is_seen(text) for text in descriptions) for c in canaries)
    for blank in (
        "Both pictures show a plain grey square. There is no difference between them.",
        "",
        "a picture of something",
        "I see two images.",
    ):
        assert canary_shares([""] * 12, blank, canaries).guessed <= 1 / 12


def test_profiles_of_real_models_name_the_plain_canaries():
    for profile in ("small", "production"):
        assert load_params("params.yaml", profile).caption.canaries == "tasks/sample/plain/canaries"


def test_an_incomplete_folder_of_canaries_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"canaries\.csv cannot be read"):
        read_canaries(tmp_path)
    (tmp_path / "canaries.csv").write_text("query,target,expect\na.png,b.png,\n")
    with pytest.raises(ConfigError, match="at least one row"):
        read_canaries(tmp_path)
    (tmp_path / "canaries.csv").write_text("query,target,expect\na.png,b.png,red\n")
    with pytest.raises(ConfigError, match="an image cannot be read"):
        read_canaries(tmp_path)
