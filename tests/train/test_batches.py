"""Examples and batches: every example once per pass, neighbours together, one dataset per batch, scores in place."""

import random
from dataclasses import replace

import pytest

from tasks.config import Params
from tasks.errors import DataError
from tasks.store import Store
from tasks.train.batches import Example, WeightedDataset, batches, mixed_batches, plan_locked_steps, plan_steps
from tests.support.training import all_examples, with_train


def test_every_pass_contains_every_example_once_and_keeps_neighbours_together():
    examples = [Example(f"f{n // 4}", f"t{n}", (), ("x",)) for n in range(40)]
    stream = batches(examples, 8, random.Random(0))
    passes = [[e for _ in range(5) for e in next(stream)] for _ in range(2)]
    for one_pass in passes:
        assert sorted(one_pass, key=lambda e: e.target) == sorted(examples, key=lambda e: e.target)
    assert passes[0] != passes[1]
    assert all(len({e.query for e in passes[0][i : i + 8]}) == 2 for i in range(0, 40, 8))


def test_an_empty_dataset_is_an_error_not_a_hang():
    with pytest.raises(DataError, match="no triplet to make a batch of"):
        next(batches([], 4, random.Random(0)))


def test_a_batch_comes_from_one_dataset_in_proportion_to_its_weight():
    ours, theirs = ([Example(f"{n}q{i}", f"{n}t{i}", (), ("x",)) for i in range(20)] for n in "AB")
    stream = mixed_batches([WeightedDataset(ours, 3.0), WeightedDataset(theirs, 1.0)], 5, random.Random(0))
    drawn = [{e.query[0] for e in next(stream)} for _ in range(2000)]
    assert all(len(names) == 1 for names in drawn)
    assert 0.71 < sum(names == {"A"} for names in drawn) / 2000 < 0.79
    alone = mixed_batches([WeightedDataset(ours, 3.0)], 5, random.Random(4))
    plain = batches(ours, 5, random.Random(4))
    assert [next(alone) for _ in range(9)] == [next(plain) for _ in range(9)], "a single dataset takes no random draw"


def test_the_judges_scores_belong_to_the_right_images(params: Params, store: Store):
    examples = all_examples(store)
    unjudged = replace(examples[3], target_scores=(), image_scores={})
    dataset = WeightedDataset([*examples[:3], unjudged], 1.0)
    plan = next(plan_steps([dataset], params.train, random.Random(1)))
    for n in range(4):
        names = [plan.images[k] for k in plan.own_candidates[n]]
        family = names[0][:2]
        assert names == [f"{family}b", f"{family}a", f"{family}c"]
        if family == "03":
            assert all(score != score for score in plan.own_scores[n])  # NaN: not judged
        else:
            is_first_instruction = plan.texts[n].startswith("make it")
            expected = [0.9 if is_first_instruction else 0.8, 0.1, 0.3]
            assert plan.own_scores[n] == pytest.approx(expected, abs=1e-6)


def test_a_locked_step_with_few_candidates_still_has_the_batchs_own_images(params: Params, store: Store):
    examples = all_examples(store)
    pool = list(dict.fromkeys(i for e in examples for i in (e.query, e.target, *e.negatives)))
    whole = next(plan_locked_steps(examples, pool, params.train, random.Random(0)))
    assert whole.images == list(range(len(pool)))
    few = next(plan_locked_steps(examples, pool, with_train(params, locked_candidates=2).train, random.Random(0)))
    assert 8 <= len(few.images) <= 10
    assert [pool[few.images[n]][2] for n in (*few.positive, *few.query_image)] == [*"bbbb", *"aaaa"]
