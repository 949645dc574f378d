"""Parameters that contradict each other are refused with both keys, both values and the remedy."""

from typing import Any

import pytest

from tasks.config import parse_params, training_run_contradictions
from tasks.errors import ConfigError
from tests.support.parameters import params_with, raw_params

KEPT_CAPTIONS = {"name": "captions", "format": "rows", "path": "caption_to_image", "keep_base": 10.0}

Changes = dict[str, dict[str, Any]]
BENCHMARK = {"protocol": "circo", "path": "/circo"}
MIXED = {"name": "m", "format": "megapairs", "path": "/m.jsonl", "images": "/images"}
WINDOW = {"low": 0.5, "high": 0.9}

# What a run changes, and parts of the message: keys, values, remedy.
CONTRADICTIONS: list[tuple[Changes, list[str]]] = [
    (
        {"mine": {"windows": {"semantic": {"low": 0.9, "high": 0.8}}}},
        ["mine.windows.semantic", "'low' is 0.9", "'high' is 0.8"],
    ),
    (
        {"mine": {"windows": {"pattern": {"low": 0.9, "high": 0.9}}}},
        ["mine.windows.pattern", "'low' is 0.9", "'high' is 0.9"],
    ),
    (
        {"embed": {"encoders": {"semantic": {"model": "plain", "kind": "tfidf"}}}},
        ["'embed.encoders.semantic.kind' is tfidf", "'embed.encoders.semantic.model' is plain", "to image or text"],
    ),
    (
        {"embed": {"encoders": {"words": {"model": "a/clip", "kind": "image"}}}},
        ["'embed.encoders.words.kind' is image", "'embed.encoders.words.model' is a/clip", "to tfidf or text"],
    ),
    (
        {"ingest": {"min_side_px": 300, "max_pixels": 80_000}},
        ["'ingest.min_side_px' is 300", "'ingest.max_pixels' is 80000", "to 90000 or more"],
    ),
    (
        {"select": {"drop_query_copies": True, "copy_similarity": {"semantic": 0.4}}},
        ["'select.copy_similarity.semantic' is 0.4", "'mine.windows.semantic.low' is 0.5", "raise"],
    ),
    (
        {"select": {"same_content_min": {"pattern": 0.2}}},
        ["'select.same_content_min.pattern' is 0.2", "'mine.windows.pattern.low' is 0.3", "raise"],
    ),
    (
        {"select": {"both_directions": True, "pairs_per_batch": 1}},
        ["'select.both_directions' is True", "'select.pairs_per_batch' is 1", "to 2 or more"],
    ),
    (
        {"caption": {"instructions_min": 6}},
        ["'caption.instructions_min' is 6", "'caption.styles' is ['imperative'", "lower caption.instructions_min to 5"],
    ),
    (
        {"judge": {"instructions_min": 6}, "validate": {"triplets": {"instructions_min": 6}}},
        ["'judge.instructions_min' is 6", "'caption.styles' is ['imperative'", "lower judge.instructions_min to 5"],
    ),
    ({"caption": {"description_words": [100, 60]}}, ["'caption.description_words' is [100, 60]", "fewest <= most"]),
    ({"caption": {"description_words": [0, 60]}}, ["'caption.description_words' is [0, 60]", "1 <= fewest"]),
    (
        {"caption": {"same_text_pairs": 32}},
        ["'caption.same_text_pairs' is 32", "'caption.chunk_pairs' is 32", "lower caption.same_text_pairs"],
    ),
    (
        {"judge": {"negatives": 6}},
        ["'judge.negatives' is 6", "'select.negatives' is 5", "raise select.negatives to 6"],
    ),
    (
        {"train": {"negatives": 6}},
        ["'train.negatives' is 6", "'select.negatives' is 5", "lower train.negatives to 5"],
    ),
    (
        {"judge": {"negatives": 3}, "train": {"negatives": 4}},
        ["'train.negatives' is 4", "'judge.negatives' is 3", "lower train.negatives to 3"],
    ),
    (
        {"train": {"locked_candidates": 31}},
        ["'train.locked_candidates' is 31", "'train.locked_batch_triplets' is 32", "to 32 or more"],
    ),
    ({"train": {"datasets": [MIXED, MIXED]}}, ["'train.datasets'", "names must differ", "['m', 'm']"]),
    (
        {"train": {"base_precision": "bfloat16"}},
        ["'train.base_precision' is bfloat16", "'train.lora' is empty", "give train.lora"],
    ),
    (
        {"train": {"locked_steps": 0, "lora": {"rank": 4}}, "promote": {"onnx": True}},
        ["'promote.onnx' is True", "'train.lora' is rank 4", "switch promote.onnx off"],
    ),
    (
        {"train": {"refresh_negatives": {"every_steps": 5, "negatives": 1}}},
        ["'train.negatives' is 2", "'train.refresh_negatives.negatives' is 1", "to 2"],
    ),
    (
        {"train": {"average_seeds": 2, "shard_weights": True}},
        ["'train.average_seeds' is 2", "'train.shard_weights' is True", "switch"],
    ),
    (
        {"train": {"validation": {}, "shard_weights": True}},
        ["'train.validation.keep_best' is True", "'train.shard_weights' is True", "switch"],
    ),
    (
        {"train": {"lora": {}}},
        ["'train.lora' is rank 32", "'train.locked_steps' is 10", "set train.locked_steps to 0"],
    ),
    (
        {"train": {"lora": {}, "locked_steps": 0, "shard_weights": True}},
        ["'train.lora' is rank 32", "'train.shard_weights' is True", "switch train.lora or train.shard_weights off"],
    ),
    (
        {"train": {"datasets": [KEPT_CAPTIONS], "shard_weights": True}},
        ["'train.datasets[].keep_base' is 10", "'train.shard_weights' is True", "switch"],
    ),
    (
        {"train": {"learn_temperature": True, "shard_weights": True}},
        ["'train.learn_temperature' is True", "'train.shard_weights' is True", "switch"],
    ),
    (
        {"validate": {"images": {"rows_min": 61}}, "open_run": {"limit": 60}},
        ["'validate.images.rows_min' is 61", "'open_run.limit' is 60", "lower validate.images.rows_min to 60"],
    ),
    (
        {"validate": {"pairs": {"similarity_min": 0.9, "similarity_max": 0.8}}},
        ["'validate.pairs.similarity_min' is 0.9", "'validate.pairs.similarity_max' is 0.8"],
    ),
    (
        {"validate": {"pairs": {"similarity_max": 0.2}}},
        ["'validate.pairs.similarity_max' is 0.2", "'mine.windows' is from 0.3", "raise validate.pairs.similarity_max"],
    ),
    (
        {
            "mine": {"windows": dict.fromkeys(("semantic", "pattern", "caption"), WINDOW)},
            "validate": {"pairs": {"similarity_min": 0.95}},
        },
        [
            "'validate.pairs.similarity_min' is 0.95",
            "'mine.windows' is up to 0.9",
            "lower validate.pairs.similarity_min",
        ],
    ),
    (
        {"validate": {"pairs": {"rows_min": 81}}},
        ["'validate.pairs.rows_min' is 81", "'select.pairs_per_batch' is 80", "lower validate.pairs.rows_min to 80"],
    ),
    (
        {"validate": {"triplets": {"rows_min": 81}}},
        ["'validate.triplets.rows_min' is 81", "'select.pairs_per_batch' is 80", "lower validate.triplets.rows_min"],
    ),
    (
        {"validate": {"triplets": {"instructions_min": 3, "instructions_max": 2}}},
        ["'validate.triplets.instructions_min' is 3", "'validate.triplets.instructions_max' is 2"],
    ),
    (
        {"validate": {"triplets": {"instructions_min": 4}}},
        [
            "'validate.triplets.instructions_min' is 4",
            "'judge.instructions_min' is 3",
            "raise judge.instructions_min to 4",
        ],
    ),
    (
        {"validate": {"triplets": {"instructions_max": 4}}},
        ["'validate.triplets.instructions_max' is 4", "'caption.styles' is ['imperative'", "to 5 or more"],
    ),
    (
        {"judge": {"threshold": 0.6}},
        ["'validate.triplets.yes_min' is 0.85", "'judge.threshold' is 0.6", "lower validate.triplets.yes_min to 0.6"],
    ),
    (
        {"evaluate": {"benchmark": [{"name": "a", **BENCHMARK}, {"name": "a", **BENCHMARK}]}},
        ["'evaluate.benchmark'", "names must differ", "['a', 'a']"],
    ),
    ({"evaluate": {"template": "find it"}}, ["'evaluate.template' is 'find it'", "{relative_caption}"]),
    ({"evaluate": {"template": "{relative_caption} {hint}"}}, ["{relative_caption} {hint}", "{shared_concept}"]),
]


@pytest.mark.parametrize(("changes", "parts"), CONTRADICTIONS)
def test_a_contradiction_is_refused_with_both_keys_both_values_and_the_remedy(changes: Changes, parts: list[str]):
    with pytest.raises(ConfigError) as error:
        params_with(**changes)
    assert [part for part in parts if part not in str(error.value)] == []


def test_an_encoder_without_a_window_is_refused():
    raw = raw_params()
    raw["mine"]["windows"] = {"semantic": WINDOW}
    with pytest.raises(ConfigError, match=r"'embed.encoders.pattern' is .*'mine.windows' is only for \['semantic'\]"):
        parse_params(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"select": {"copy_similarity": {"semantic": 0.8}}},
        {"caption": {"same_text_pairs": 32, "reverse": True}},
        {"validate": {"triplets": {"rows_min": 81}}, "caption": {"reverse": True}},
        {"judge": {"negatives": 5}, "train": {"negatives": 5}},
        {"train": {"locked_steps": 0, "locked_candidates": 31}},
        {"train": {"locked_steps": 0, "lora": {}}},
        {"judge": {"threshold": 0.9}},
        {"judge": {"threshold": 0.6}, "validate": {"triplets": {"yes_min": 0.6}}},
        {"evaluate": {"benchmark": [{"name": "a", **BENCHMARK}, {"name": "b", **BENCHMARK}], "template": "find it"}},
        {
            "train": {
                "negatives": 9,
                "datasets": [MIXED],
            }
        },
    ],
)
def test_what_can_work_is_accepted(changes: Changes):
    params_with(**changes)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train": {"held_out_share": 0}}, ["'train.held_out_share' is 0", "'evaluate.benchmark' is empty"]),
        ({"train": {"warmup_steps": 41}}, ["'train.warmup_steps' is 41", "'train.steps' is 40", "to 40 or less"]),
        ({"train": {"held_out_share": 0}, "evaluate": {"benchmark": "/circo"}}, []),
        ({}, []),
    ],
)
def test_a_training_run_needs_something_to_evaluate_on_and_to_finish_its_warm_up(changes: Changes, parts: list[str]):
    params = params_with(**changes)
    found = training_run_contradictions(params.train, params.evaluate)
    assert len(found) == bool(parts) and all(part in found[0] for part in parts)
