"""Descriptions checked difference by difference: what is not seen again is not written, what is left out is known."""

import pytest

from tasks.caption.chunk import CaptionSetup, caption_chunk
from tasks.caption.confirm import confirm_descriptions
from tasks.caption.descriptions import Description
from tasks.caption.draft import Draft
from tasks.caption.stage import require_supported
from tasks.errors import ConfigError
from tasks.models.llm.requests import Refusal, Request
from tasks.prompts.prompt_set import read_prompt_set
from tests.support.caption_config import caption_config
from tests.support.descriptions import PROSE
from tests.support.fake_llm import FakeLlm

STANDARD = read_prompt_set("standard", with_checks=True)
SEEN = {"source": {"a red sofa", "a cat"}, "target": {"a green sofa", "a lamp"}}
SOFA = {"kind": "attribute", "source": "a red sofa", "target": "a green sofa"}
LAMP = {"kind": "added", "source": "", "target": "a lamp"}
CAT = {"kind": "removed", "source": "a cat", "target": ""}
DOG = {"kind": "added", "source": "", "target": "a dog"}  # nobody sees it
WINDOW = {"kind": "attribute", "source": "a red sofa", "target": "a red sofa"}  # no difference at all


def describing(*differences: dict[str, str]) -> Draft:
    row = {"shared": "a room", "differences": differences, "prose": "Both pictures show a room. However, ..."}
    structured = Description.model_validate(row)
    return Draft("p", description=structured.prose, structured=structured)


def looker(*known: str) -> FakeLlm:
    """Sees what SEEN says; knows that the images differ in the sofa, the lamp and the cat."""

    def yes(request: Request) -> float:
        if len(request.images) == 2:
            return 0.9 if any(thing not in request.text for thing in known) else 0.1
        return 0.9 if any(thing in request.text for thing in SEEN[str(request.images[0])]) else 0.2

    return FakeLlm(yes=yes)


def confirmed(draft: Draft, model: FakeLlm) -> Draft:
    confirm_descriptions([draft], [("source", "target")], model, STANDARD)
    return draft


def test_only_differences_that_are_seen_again_are_written():
    draft = confirmed(describing(SOFA, DOG, LAMP, WINDOW), looker())
    assert draft.structured is not None
    assert [d.target for d in draft.structured.differences] == ["a green sofa", "a lamp"]
    assert "dog" not in draft.description and "only the target shows a lamp" in draft.description
    whole = confirmed(describing(SOFA, LAMP), looker())
    assert whole.description == "Both pictures show a room. However, ..." and not whole.is_partial


def test_a_description_that_leaves_something_out_is_known_to_be_partial():
    things = ("a green sofa", "a lamp", "a cat")
    assert confirmed(describing(SOFA, LAMP), looker(*things)).is_partial
    assert not confirmed(describing(SOFA, LAMP, CAT), looker(*things)).is_partial
    left_out = describing(SOFA)
    left_out.is_partial = True
    assert left_out.drop_reason() == "incomplete_description"


def test_nothing_confirmed_is_no_description_and_a_refused_question_confirms_nothing():
    draft = confirmed(describing(DOG, WINDOW), looker())
    assert (draft.description, draft.structured, draft.drop_reason()) == ("", None, "unconfirmed")
    refusing = FakeLlm(yes=lambda _: Refusal("request_refused", "400"))
    assert confirmed(describing(SOFA), refusing).drop_reason() == "unconfirmed"


def test_partial_descriptions_get_partial_texts_alone_and_reversed_pairs_follow():
    config = caption_config(prompts="standard", styles=("keep", "short"), check_differences=True, reverse=True)
    row = describing(SOFA, LAMP).structured
    assert row is not None
    captioner = looker("a cat")
    captioner.reply = lambda _: row.model_copy(update={"prose": PROSE}).model_dump_json()
    writer = FakeLlm.in_turn("paint the sofa green", "the sofa in red")
    setup = CaptionSetup(captioner, writer, STANDARD, config)
    columns = {"pair_id": ["p"], "query_image_id": ["source"], "target_image_id": ["target"]}
    images = {name: name for name in SEEN}
    drafts = caption_chunk(columns, images, {}, setup)
    assert [d.is_partial for d in drafts] == [True, True]
    assert [list(d.instructions) for d in drafts] == [["short"], ["short"]]


def test_a_prompt_set_without_the_questions_is_refused():
    config = caption_config(prompts="plain", check_differences=True)
    with pytest.raises(ConfigError, match=r"check\.txt or missing\.txt"):
        require_supported(config, read_prompt_set("plain", with_checks=True))
