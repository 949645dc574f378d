"""What names a recipe, and what names a training."""

from tasks.config import BenchmarkConfig, Params
from tasks.train.batches import Example, WeightedDataset
from tasks.train.recipe import recipe_id, training_identity
from tests.support.training import with_train


def with_benchmarks(params: Params, *names: str) -> Params:
    benchmarks = tuple(BenchmarkConfig(name=n, protocol="circo", path=f"/data/{n}", split="val") for n in names)
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"benchmark": benchmarks})})


def with_run(params: Params, **changes: object) -> Params:
    return params.model_copy(update={"open_run": params.open_run.model_copy(update=changes)})


def test_a_recipe_is_what_changes_scores(params: Params):
    assert recipe_id(params) == recipe_id(with_train(params, device="cuda:1", decode_workers=8, cache_chunk=4))
    assert recipe_id(params) != recipe_id(with_train(params, steps=7))
    assert recipe_id(with_benchmarks(params, "a")) != recipe_id(with_benchmarks(params, "a", "b"))
    other_run = with_run(params, seed=5, batch="2026.02.02")
    assert recipe_id(other_run) == recipe_id(params), "seed and version are what varies between runs of a recipe"


def test_a_training_is_what_changes_weights(params: Params):
    datasets = [WeightedDataset([Example("q", "t", (), ("x",))], 1.0)]

    def identity(params: Params, revision: str = "r", datasets: list[WeightedDataset] = datasets) -> str:
        return training_identity(params, revision, datasets, threads=2)

    assert identity(params) == identity(with_train(params, device="cuda:1", decode_workers=8, checkpoint_steps=7))
    others = [
        identity(with_train(params, cache_chunk=4)),
        identity(with_run(params, seed=5)),
        identity(params, revision="s"),
        identity(params, datasets=[WeightedDataset(datasets[0].examples, 2.0)]),
        training_identity(params, "r", datasets, threads=3),
    ]
    assert len({identity(params), *others}) == 6
