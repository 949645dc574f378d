"""The version's own rows for other tasks as training examples, in both phases."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.config import ROW_TASKS, MixedDatasetConfig, Params, TrainConfig
from tasks.errors import ConfigError, DataError
from tasks.models.retrievers.clip import ClipRetriever
from tasks.publish.further_rows import RowSources, further_rows
from tasks.store import Store
from tasks.train.batches import Candidate, Example, WeightedDataset, plan_locked_steps
from tasks.train.datasets import read_training_set
from tasks.train.loader import ImageLoader, side_by_side
from tasks.train.spliced import with_spliced
from tasks.train.trainer import Trainer, TrainingData, prepare_retriever
from tasks.train.version_rows import read_version_rows, row_example
from tests.support.training import flat_weights, with_train

CAPTIONS = {"00a": ("a red star", "source"), "00b": ("a blue star", "source"), "01a": ("a green cross", "source")}


def dataset(task: str, **changes: object) -> MixedDatasetConfig:
    return MixedDatasetConfig.model_validate({"name": task, "format": "rows", "path": task, **changes})


def sources() -> RowSources:
    triplets = [
        {
            "triplet_id": f"t{n}",
            "pair_id": f"p{n}",
            "query_image_id": query,
            "target_image_id": target,
            "instructions": [text],
            "styles": ["imperative"],
            "negative_image_ids": [query, "01b"],
            "judge_target": [0.9],
            "description": f"both: a star; change: {text}",
            "captioner": "vlm",
        }
        for n, (query, target, text) in enumerate(
            [("00a", "00b", "change the background to red"), ("00c", "01a", "remove the small cross")]
        )
    ]
    return RowSources("w", sorted(CAPTIONS), CAPTIONS, triplets, {}, {}, "tiny")


@pytest.fixture
def published(store: Store) -> Store:
    """The version with rows of every task."""
    for task in ROW_TASKS:
        store.write(store.folder("data", "rows", task, "w.parquet"), further_rows(task, sources()), "further_rows")
    return store


def examples_of(task: str, store: Store, held_out: set[str] | None = None) -> list[Example]:
    return read_version_rows(dataset(task), store, held_out or set())[0]


def train_on(
    config: TrainConfig, store: Store, *datasets: MixedDatasetConfig
) -> tuple[ClipRetriever, list[dict[str, float]]]:
    """A model trained on the version and these datasets, and the curve of the training."""
    changed = config.model_copy(update={"datasets": datasets})
    retriever = ClipRetriever(config.base_model, device="cpu", threads=1)
    data = TrainingData(read_training_set(changed, store).all, ImageLoader(store, retriever.preprocess))
    return retriever, Trainer(retriever, changed, seed=0).fit(data)


def caption_rows(retriever: ClipRetriever) -> np.ndarray:
    """(n, d) unit rows of CAPTIONS."""
    return retriever.encode(texts=[text for text, _ in CAPTIONS.values()])


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The mean cosine of rows with those of the same place."""
    return float((one * other).sum(1).mean())


def test_each_task_is_a_query_its_answer_and_wrong_answers(published: Store):
    first = {task: examples_of(task, published)[0] for task in ROW_TASKS}
    caption = first["image_to_caption"]
    assert (caption.query, caption.target, caption.instructions) == ("00a", Candidate(None, "a red star"), ("",))
    assert caption.negatives == (Candidate(None, "a blue star"),)
    image = first["caption_to_image"]
    assert (image.query, image.target, image.negatives) == (None, "00a", ("00b",))
    pair = first["description_to_pair"]
    assert (pair.query, pair.target, pair.negatives) == (None, "00a|00b", ("00b|00a", "00a|01b"))
    kind = first["difference_classification"]
    assert (kind.query, kind.target) == ("00a|00b", Candidate(None, "background"))
    choice = first["which_image_fits"]
    assert (choice.query, choice.target, choice.negatives) == ("00a", "00b", ("01b",))
    assert choice.task == "Choose the image that is what the text makes of the query image."


def test_held_out_images_are_neither_asked_for_nor_answers_nor_wrong_answers(published: Store):
    examples, dropped = read_version_rows(dataset("caption_to_image"), published, {"00b"})
    assert [e.target for e in examples] == ["00a", "01a"] and dropped == {"held_out": 1}
    assert examples[0].negatives == ()
    pairs = examples_of("description_to_pair", published, {"01b"})
    assert pairs[0].negatives == ("00b|00a",)
    row = further_rows("caption_to_image", sources())[0] | {"query_text": ""}
    assert row_example(row, set(), dataset("caption_to_image")) == "no_text"


def test_a_version_without_the_rows_says_how_to_have_them(store: Store):
    with pytest.raises(DataError, match=r"no rows of which_image_fits .*version.further_rows"):
        examples_of("which_image_fits", store)


def test_rows_are_the_versions_own_and_no_folder_is_named(tmp_path: Path):
    for wrong in ({"path": "captions"}, {"images": str(tmp_path)}, {"split": "train"}):
        with pytest.raises(ValueError, match=r"expected one of .*caption_to_image"):
            dataset("caption_to_image", **wrong)
    with pytest.raises(ValueError, match="name the folder"):
        MixedDatasetConfig(name="x", format="mmeb", path=str(tmp_path))


def test_two_images_are_shown_side_by_side_in_one_square():
    shown = side_by_side([Image.new("RGB", (10, 10), "red"), Image.new("RGB", (40, 20), "blue")])
    assert shown.size == (30, 30)
    assert [shown.getpixel(at) for at in ((0, 15), (20, 15), (20, 5))] == [(255, 0, 0), (0, 0, 255), (0, 0, 0)]


@pytest.mark.slow
def test_both_phases_train_on_rows_and_the_same_seed_gives_the_same_weights(params: Params, published: Store):
    rows = [{"name": task, "format": "rows", "path": task} for task in ROW_TASKS]
    changes = {"datasets": tuple(map(MixedDatasetConfig.model_validate, rows)), "held_out_share": 0.0}
    config = with_train(params, steps=4, locked_steps=4, **changes).train
    training_set = read_training_set(config, published)
    assert [d.is_locked for d in training_set.all] == [False, False, True, False, False, True]
    weights = []
    for version in (training_set.all, training_set.all, training_set.all[:1]):
        retriever = ClipRetriever(config.base_model, device="cpu", threads=1)
        Trainer(retriever, config, seed=0).fit(TrainingData(version, ImageLoader(published, retriever.preprocess)))
        weights.append(flat_weights(retriever))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_symmetric_dataset_teaches_the_caption_of_an_image_too(params: Params, published: Store):
    config = with_train(params, steps=1, locked_steps=6, held_out_share=0.0, version_weight=1e-9).train
    similarities = []
    for symmetric in (False, True):
        captions = dataset("caption_to_image", symmetric=symmetric)
        training_set = read_training_set(config.model_copy(update={"datasets": (captions,)}), published)
        assert {e.is_symmetric for e in training_set.more[0].examples} == {symmetric}
        assert not any(e.is_symmetric for e in training_set.version.examples)
        retriever, _ = train_on(config, published, captions)
        loader = ImageLoader(published, retriever.preprocess)
        images = retriever.encode(images=[loader.read(i) for i in CAPTIONS])
        logits = torch.from_numpy(caption_rows(retriever) @ images.T) / config.temperature
        similarities.append(float(logits.T.log_softmax(1).diag().mean()))  # of the own caption, given the image
    assert similarities[1] > similarities[0]


def test_what_the_base_knows_of_captions_is_kept(params: Params, published: Store):
    config = with_train(params, steps=2, locked_steps=6, held_out_share=0.0).train
    base = caption_rows(ClipRetriever(config.base_model, device="cpu", threads=1))
    cosines, curves = [], []
    for weight in (0, 50):
        retriever, curve = train_on(config, published, dataset("caption_to_image", keep_base=weight))
        cosines.append(cosine(caption_rows(retriever), base))
        curves.append(curve)
    assert cosines[0] < cosines[1] <= 1.0001
    assert "drift" not in curves[0][0] and curves[1][-1]["drift"] > 0


@pytest.mark.slow
def test_captions_that_are_not_contrasted_only_hold_both_towers_to_the_base(params: Params, published: Store):
    rows = dataset("caption_to_image", contrast=False, keep_base=1.0)
    config = with_train(params, steps=8, locked_steps=0, held_out_share=0.0, learning_rate=1e-3).train

    def rows_of(retriever: ClipRetriever) -> tuple[np.ndarray, np.ndarray]:
        loader = ImageLoader(published, retriever.preprocess)
        return caption_rows(retriever), retriever.encode(images=[loader.read(image_id) for image_id in CAPTIONS])

    before = rows_of(ClipRetriever(config.base_model, device="cpu", threads=1))

    def cosines(more: tuple[MixedDatasetConfig, ...], version_weight: float) -> list[float]:
        """Of captions and of images, by the model before and after a training."""
        after, _ = train_on(config.model_copy(update={"version_weight": version_weight}), published, *more)
        return [cosine(a, b) for a, b in zip(before, rows_of(after), strict=True)]

    contrasted = dataset("caption_to_image")
    moved, alone = cosines((contrasted,), 1e-9), cosines((rows,), 1e-9)  # hardly a triplet
    assert moved[0] < alone[0] and moved[1] < alone[1], "no contrast pulls the model away from where it is"
    free, held = cosines((), 1.0), cosines((rows.model_copy(update={"keep_base": 20.0}),), 1.0)
    assert free[0] < held[0] and free[1] < held[1]


def test_captions_are_held_in_the_steps_of_other_datasets_too(params: Params, published: Store):
    config = with_train(params, steps=6, locked_steps=6, held_out_share=0.0).train
    base = caption_rows(ClipRetriever(config.base_model, device="cpu", threads=1))
    cosines, curves = [], []
    for count in (0, 2):
        rows = dataset("caption_to_image", keep_base=20.0, held_beside=count, weight=0.0 if count else 1e-9)
        retriever, curve = train_on(config, published, rows)
        cosines.append(cosine(caption_rows(retriever), base))
        curves.append(curve)
    assert cosines[0] < cosines[1] and curves[0][-1]["drift"] == 0 < curves[1][-1]["drift"]
    for wrong in ({"weight": 0.0}, {"keep_base": 1.0, "held_spliced": 0.5}):
        with pytest.raises(ValueError, match="expected held_beside above 0"):
            dataset("caption_to_image", **wrong)
    with pytest.raises(ValueError, match="held_beside' of 'caption_to_image' is 2, and keep_base 0"):
        dataset("caption_to_image", held_beside=2)
    twice = [dataset("caption_to_image", keep_base=1.0, held_beside=2).model_dump() | {"name": n} for n in ("a", "b")]
    with pytest.raises(ValueError, match="held_beside is set for a, b; expected one at most"):
        TrainConfig.model_validate(config.model_dump() | {"datasets": twice})


def test_held_captions_are_spliced_from_two():
    captions = [f"{n} first words of it and last words {n}" for n in range(200)]
    spliced = with_spliced(captions, 0.5, random.Random(0))
    changed = [(a, b) for a, b in zip(captions, spliced, strict=True) if a != b]
    assert 70 < len(changed) < 130
    for own, text in changed:
        assert text.split()[0] == own.split()[0] and text.split()[-1] in {c.split()[-1] for c in captions}
    assert spliced == with_spliced(captions, 0.5, random.Random(0))
    assert len({len(text.split()) for text in spliced}) == 1, "both are cut at the same place"
    for whole in (["word", "another"], ["一只猫坐在垫子上", "一只狗"], ["only one caption"]):
        assert with_spliced(whole, 1.0, random.Random(0)) == whole
    for seed in range(50):
        assert all(with_spliced(["a b", "c d", "a long caption of seven words"], 1.0, random.Random(seed)))


def test_spliced_captions_are_held_and_those_of_other_datasets_are_not(published: Store):
    captions = examples_of("caption_to_image", published)
    held = WeightedDataset(captions, 0.0, is_locked=True, held_beside=3, held_spliced=1.0)
    triplets = [Example("00a", "00b", (), ("change the background to red",))] * 4
    config = TrainConfig.model_construct(locked_batch_triplets=2, locked_candidates=16, version_weight=1.0)
    plans = plan_locked_steps(triplets, ["00a", "00b", "01a"], config, random.Random(0), [held])
    drawn = [next(plans) for _ in range(20)]
    assert {text for plan in drawn for text in plan.texts} == {"change the background to red"}, "no batch of captions"
    whole = {text for text, _ in CAPTIONS.values()}
    assert any(set(plan.held_texts) - whole for plan in drawn) and all(len(p.held_texts) == 3 for p in drawn)


def test_without_a_main_phase_the_image_tower_stays_as_it_was(params: Params, published: Store):
    config = with_train(params, steps=0, warmup_steps=0, locked_steps=4, held_out_share=0.0).train
    retriever, curve = train_on(config, published)
    before = ClipRetriever(config.base_model, device="cpu", threads=1)
    loader = ImageLoader(published, retriever.preprocess)
    images = [loader.read(image_id) for image_id in CAPTIONS]
    assert np.array_equal(retriever.encode(images=images), before.encode(images=images))
    assert not np.array_equal(caption_rows(retriever), caption_rows(before))
    assert curve[-1]["step"] == 4
    with pytest.raises(ValueError, match=r"train.steps' and 'train.locked_steps' are 0"):
        TrainConfig.model_validate(config.model_dump() | {"locked_steps": 0})
    unread = {"datasets": [dataset("image_to_caption").model_dump()], "teacher": {"model": "m"}}
    with pytest.raises(ValueError, match=r"train.steps' is 0, and only .* reads datasets image_to_caption, teacher;"):
        TrainConfig.model_validate(config.model_dump() | unread)


def test_keeping_the_base_is_for_captions_and_for_models_with_two_towers(params: Params):
    with pytest.raises(ValueError, match="caption_to_image"):
        dataset("which_image_fits", keep_base=1.0)
    for wrong in ({}, {"keep_base": 1.0, "symmetric": True}):
        with pytest.raises(ValueError, match="switch contrast on"):
            dataset("caption_to_image", contrast=False, **wrong)
    config = with_train(params, datasets=(dataset("caption_to_image", keep_base=1.0),), shard_weights=True).train
    with pytest.raises(ConfigError, match="keep_base is for models of the CLIP type"):
        prepare_retriever(ClipRetriever(config.base_model, device="cpu", threads=1), config, seed=0)


def test_a_query_of_an_image_alone_is_that_image(params: Params, published: Store):

    from tasks.train.batches import plan_steps
    from tasks.train.objective import queries_and_candidates

    examples = examples_of("image_to_caption", published)
    plan = next(plan_steps([WeightedDataset(examples, 1.0)], params.train, random.Random(0)))
    images, texts = torch.randn(len(plan.images), 4), torch.randn(len(plan.texts) + len(plan.candidate_texts), 4)
    queries, _ = queries_and_candidates(plan, images, texts, is_joint=False)
    assert torch.equal(queries, images[plan.query_image])
