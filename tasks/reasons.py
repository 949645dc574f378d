"""Why a row is dropped: all reasons of each stage, with one sentence for people. A stage gives no other reason.

Reports count them, pages and mails show the sentences. The codes are published data: they never change.
"""

from __future__ import annotations

# Reasons of judge that people gave, about triplets of earlier versions (tasks/judge/reviewed.py).
REVIEWED_WRONG, REVIEWED_TEXT, REVIEWED_NEGATIVE = "reviewed_wrong", "reviewed_text", "reviewed_negative"
REVIEWED = (REVIEWED_WRONG, REVIEWED_TEXT, REVIEWED_NEGATIVE)
# Reason of judge for a triplet of an earlier version that was made anew, or withdrawn by that (tasks/renewal).
RENEWED = "renewed"

REASONS: dict[str, dict[str, str]] = {
    "ingest": {
        "undecodable": "named like an image file, but no decoder can read it",
        "too_small": "its shorter side is below ingest.min_side_px",
        "too_large": "more pixels than ingest.max_pixels or more bytes than ingest.max_size_bytes",
        "too_costly": "decoding it takes more memory or CPU time than ingest allows",
        "extreme_ratio": "so long and thin that models cannot read its stored form",
        "duplicate": "the same bytes as an image that is in the dataset already",
        "near_duplicate": "a copy of an image in the dataset: re-encoded, resized or slightly cropped",
        "licence": "its licence is not in ingest.allowed_licenses",
        "blocked": "it is on a blocklist, or is a copy of an image that is",
        "taken_down": "it is on the takedown list, or is a copy of an image that is",
        "benchmark": "it is an image of a benchmark, or a copy of one",
        "low_quality": "it has a quality flag that ingest.drop_flags names",
        "filtered": "a classifier of ingest.filters refused it",
        "not_a_picture": "a file of another kind, not an image",
        "unsupported_format": "an image of a format that is not read, such as GIF, BMP, TIFF or HEIC",
        "unreachable": "it does not exist, cannot be read, or did not arrive in time",
        "unsafe": "a private network address, a malicious file name, a link or a device",
        "opted_out": "robots.txt, X-Robots-Tag or the page itself forbids its use",
        "changed": "its bytes do not have the SHA-256 that the source's table states",
    },
    "recaption": {
        "empty_reply": "the model's reply was empty, twice",
        "too_long": "a caption longer than it may be, twice",
        "cut_off": "the reply did not come to its end, even with twice the room",
        "not_text": "the reply is not a sentence: one word repeated, punctuation, or code",
        "refused": "the model declined, or wrote about itself",
        "copy_of_prompt": "the reply repeats the request",
        "names_a_file": "the reply contains a file name or an address",
        "speaks_to_model": "the reply passes on a command to a model, such as one written in an image",
        "request_refused": "the model's server refuses the request; its words are in the row",
        "bad_image": "the model's processor cannot take an image of this shape",
    },
    "embed": {
        "no_caption": "it has no caption for the text encoder",
        "bad_vector": "the encoder returned only zeros, or values that are not finite",
    },
    "select": {
        "over_quota": "a pair beyond the quotas of one image, encoder, source or run",
        "copy_of_query": "a pair whose target is a copy of its query, by one of the encoders",
        "same_content": "a pair that shows the same thing in two shots, as an encoder's similarity tells",
        "too_different": "a pair that the judge would hardly accept: too much differs, as cosines and captions tell",
        "taken_down": "a pair of an earlier version with an image that was taken down",
        "near_duplicate_negative": "a negative that is a copy of the target; its pair may stay",
    },
    "caption": {
        "empty_reply": "the model's reply was empty, twice",
        "too_long": "longer than caption.max_chars or than the words requested, twice",
        "too_short": "a description of far fewer words than requested, twice",
        "refused": "the model declined, or wrote about itself",
        "copy_of_prompt": "the reply repeats the request",
        "not_text": "the reply is not a sentence: one word repeated, punctuation, or code",
        "names_a_file": "the reply contains a file name or an address",
        "same_as_another": "it says the same as another instruction of the pair",
        "leaks_target": "the reply repeats the caption of the target image",
        "leaks_source": "the reply says what only the query image shows",
        "wrong_language": "the reply is not in the language requested, twice",
        "copy_of_demonstration": "the reply repeats an example of the prompt",
        "speaks_to_model": "the reply passes on a command to a model, such as one written in an image",
        "contradicts_itself": "the reply contradicts itself, twice: it removes a thing and moves it, for example",
        "not_in_description": "the instruction names what its description does not, twice: quoted writing, for example",
        "not_json": "the reply is not a JSON object of the schema, twice",
        "cut_off": "the reply did not come to its end, even with twice the room",
        "request_refused": "the model's server refuses the request; its words are in the row",
        "bad_image": "the model's processor cannot take an image of this shape",
        "unconfirmed": "none of the differences described was seen again when asked for one by one",
        "incomplete_description": "the images differ in more than the description states, and too few texts state one",
        "too_different": "the two images differ in more than a text can state",
        "same_for_many": "the same text was written for many pairs",
        "too_few_instructions": "a pair with fewer instructions than caption.instructions_min",
    },
    "judge": {
        "wrong_target": "a pair: too few of its instructions fit its target",
        "ambiguous": "a pair: too few of its instructions fit its target and nothing else",
        "duplicate": "a pair: an earlier version has it as a triplet",
        "wrong_instruction": "an instruction: according to the judge, it does not fit the target",
        "query_fits": "an instruction: the query image itself fits it",
        "partial_fits": "an instruction: it states one of several changes, and a negative fits it too",
        "false_negative": "a negative: it fits an instruction of the pair",
        "request_refused": "the model's server refuses the request; its words are in the row",
        "bad_image": "the model's processor cannot take an image of this shape",
        "shortcut": "a pair: its text or its image alone finds the target, and more such pairs than allowed exist",
        RENEWED: "a triplet of an earlier version: newer models described or judged its pair again, and it changed",
        REVIEWED_WRONG: "a triplet: people who reviewed it judged one of its texts wrong",
        REVIEWED_TEXT: "an instruction: people who reviewed it wrote another text in its place",
        REVIEWED_NEGATIVE: "a negative: people who reviewed it found it to fit better than the target",
    },
}

# Why an image was withdrawn after it was published: the code stands in data/withdrawn, beside the date.
WITHDRAWAL_REASONS: dict[str, str] = {
    "request": "somebody asked for it, without stating why",
    "privacy": "it shows or concerns a person who does not want that",
    "copyright": "a holder of rights objects",
    "licence": "its licence was withdrawn, or stated wrongly",
    "illegal": "its content may not be published",
    "source": "its whole source was withdrawn",
    "quality": "it should never have come in",
}

# Reasons of ingest that count as unreadable: files that are damaged, or that cost more to decode than is allowed.
UNREADABLE_REASONS = ("undecodable", "too_large", "too_costly")
# Reasons of ingest that count as copies: of an image of an earlier run or of the same one.
COPY_REASONS = ("duplicate", "near_duplicate")


def why(stage: str, reason: str) -> str:
    """The sentence of a stage's reason; empty for an unknown one."""
    return REASONS.get(stage, {}).get(reason, "")
