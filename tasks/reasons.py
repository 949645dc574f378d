"""Why a row is left out: the closed list, per stage, with a sentence for a person. Read by the gallery and by tests."""

from __future__ import annotations

REASONS: dict[str, dict[str, str]] = {
    "ingest": {
        "undecodable": "its name says image, no decoder reads it",
        "too_small": "a side below ingest.min_side_px",
        "too_large": "more pixels or bytes than ingest allows",
        "too_costly": "decoding it took more memory or time than a worker has",
        "duplicate": "the same bytes as an image that was kept",
        "near_duplicate": "a kept image, re-encoded, resized or slightly cropped",
        "licence": "a licence that ingest.allowed_licenses does not name",
        "blocked": "it stands in a blocklist, or is a copy of what does",
        "taken_down": "it is on the takedown list, or is a copy of an image on it",
        "benchmark": "a benchmark's image, or a near copy of one",
        "low_quality": "a quality flag that ingest.drop_flags names",
        "filtered": "a classifier of ingest.filters refuses it",
        "not_a_picture": "a file of another kind in the folder",
        "unreachable": "not there, not readable, or not within the time",
        "unsafe": "a private address, a hostile name, a link or a device",
        "opted_out": "robots.txt, X-Robots-Tag or the page says no",
        "changed": "not the bytes whose sha256 the source's table states",
    },
    "recaption": {"empty_reply": "the model wrote nothing"},
    "embed": {"no_caption": "nothing for the text encoder to read", "bad_vector": "a vector of zeros or of no numbers"},
    "select": {
        "over_quota": "a pair beyond those that one image, or one run, may add",
        "copy_of_query": "a pair whose target is a copy of its query to one of the encoders",
        "taken_down": "a pair of an earlier version, one of its images is taken down",
        "near_duplicate_negative": "a negative that is a copy of the target; its pair may stay",
    },
    "caption": {
        "empty_reply": "the model wrote nothing, twice",
        "too_long": "a reply longer than caption.max_chars, or than the words asked for, twice",
        "too_short": "a description of far fewer words than asked for, twice",
        "refused": "the model declined, or spoke of itself",
        "copy_of_prompt": "the reply repeats the request",
        "not_text": "no sentence: a word over and over, marks, code",
        "names_a_file": "the reply names a file or an address",
        "same_as_another": "its instructions say the same",
        "leaks_target": "the reply repeats the target's caption",
        "leaks_source": "the reply tells what only the query image shows",
        "wrong_language": "the reply is in another language, twice",
        "copy_of_demonstration": "the reply repeats an example",
        "speaks_to_model": "the reply passes on an order, as painted into an image",
        "not_json": "no JSON object of the schema, twice",
        "same_for_many": "many pairs have the very same text",
        "too_few_instructions": "fewer than caption.instructions_min",
    },
    "judge": {
        "wrong_target": "a pair: too few instructions lead to its target",
        "ambiguous": "a pair: the instructions that lead to its target fit others too",
        "duplicate": "a pair that is a triplet already",
        "wrong_instruction": "a text: the judge does not see the target in it",
        "query_fits": "a text: the query image itself meets it",
        "partial_fits": "a text: it states one change of several, and a negative meets it",
        "false_negative": "a negative that meets the instruction",
        "shortcut": "a pair: text or image alone finds its target, and there are enough such",
    },
}

# Dropped by ingest because no image could be read from the file: broken, or more work than the limits allow.
UNREADABLE_REASONS = ("undecodable", "too_large", "too_costly")
# Dropped by ingest because an image that the factory has already, or took in the same run, is the same one.
COPY_REASONS = ("duplicate", "near_duplicate")


def why(stage: str, reason: str) -> str:
    """The sentence of a reason; empty for one that the list does not know."""
    return REASONS.get(stage, {}).get(reason, "")
