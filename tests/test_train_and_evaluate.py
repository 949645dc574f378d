"""Fine-tuning learns, repeats itself, sees no held-out image; evaluation follows CIRCO and alone reads the truth."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

import tasks.evaluate.benchmarks
import tasks.evaluate.scores
import tasks.evaluate.stage
import tasks.train.stage
from tasks.config import Params, load_params
from tasks.errors import ConfigError, DataError
from tasks.models.retrievers.clip import ClipRetriever
from tasks.sample.phrases import instruction
from tasks.sample.scenes import difference, draw, family, shared
from tasks.store import Store
from tasks.store.shards import shard_path
from tasks.train.batches import WeightedDataset, training_examples
from tasks.train.loader import ImageLoader
from tasks.train.splits import held_out_images
from tasks.train.trainer import Trainer, TrainingData
from tests.support.tiny import drawn_families, save_narrow_clip

BATCH = "2026.01.05"


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one narrow layer a tower."""
    return save_narrow_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Twelve families of three images; in each the first leads to the second, with the third as its negative."""
    store, triplets, truth = Store(tmp_path), [], []
    families, shard, images = drawn_families(12, BATCH)
    for f, scenes in enumerate(families):
        for m, scene in enumerate(scenes):
            truth.append({"path": f"{f}/{m}.png", "kind": "original", "scene": scene.to_record()})
        edits = difference(scenes[0], scenes[1])
        row = {
            "triplet_id": f"t{f:02d}",
            "pair_id": f"p{f:02d}",
            "batch": BATCH,
            "styles": ["imperative"],
            "mined_by": ["semantic"],
            "tokens": 1,
        }
        row |= {
            "query_image_id": f"{f:02d}a",
            "target_image_id": f"{f:02d}b",
            "negative_image_ids": [f"{f:02d}a", f"{f:02d}c"],
        }
        row |= {
            "instructions": [instruction(edits, shared(scenes[0], scenes[1]), "imperative")],
            "judge_target": [0.9],
            "judge_negative": [0.1, 0.1],
        }
        triplets.append(
            {
                **row,
                **dict.fromkeys(
                    ("description", "captioner", "captioner_revision", "prompt_sha256", "judge", "judge_revision"), "x"
                ),
            }
        )
    store.write_bytes(shard_path(store.root, f"{BATCH}-00000.tar"), shard)
    store.write(store.table_path("images", BATCH), images, "images")
    store.write(store.table_path("triplets", BATCH, 0), triplets, "triplets")
    store.write_bytes(store.folder("truth.jsonl"), "\n".join(map(json.dumps, truth)).encode())
    return store


@pytest.fixture
def params(base_model: Path) -> Params:
    params = load_params("params.yaml", "test")
    train = {
        "base_model": str(base_model),
        "steps": 30,
        "batch_triplets": 6,
        "learning_rate": 2e-3,
        "held_out_share": 0.25,
        "device": "cpu",
    }
    evaluate = {"device": "cpu", "benchmark": None, "truth": None}
    return params.model_copy(
        update={"train": params.train.model_copy(update=train), "evaluate": params.evaluate.model_copy(update=evaluate)}
    )


@pytest.mark.slow
def test_training_learns_and_repeats_itself(store: Store, params: Params):
    report = tasks.train.stage.run(params, store)
    weights = store.folder("models", "candidate", "model.safetensors").read_bytes()
    training = json.loads(store.folder("reports", "training.json").read_text())
    assert training["curve"][-1]["loss"] < 0.8 * training["curve"][0]["loss"]
    assert (training["triplets"], training["held_out_triplets"], training["held_out_images"]) == (9, 3, 6)
    assert report.figures["loss"] == training["curve"][-1]["loss"] and report.dropped == {"held_out": 3}
    assert not any(word in json.dumps(training) for word in ("second", "wall", "time"))
    tasks.train.stage.run(params, store)
    assert store.folder("models", "candidate", "model.safetensors").read_bytes() == weights


def test_both_towers_are_trained_and_held_out_images_never_loaded(store: Store, params: Params, base_model: Path):
    triplets = store.read_table("triplets").to_pylist()
    triplets[0]["negative_image_ids"] += [t["target_image_id"] for t in triplets[1:]]
    held_out = held_out_images([(t["query_image_id"], t["target_image_id"]) for t in triplets], 0.25)
    retriever = ClipRetriever(str(base_model), device="cpu")
    before = {k: v.clone() for k, v in retriever.model.state_dict().items()}
    loader, loaded = ImageLoader(store, retriever.preprocess), set()

    def spy(image_ids: list[str]):
        loaded.update(image_ids)
        return loader(image_ids)

    data = TrainingData([WeightedDataset(training_examples(triplets, held_out), 1.0)], spy)
    Trainer(retriever, params.train.model_copy(update={"steps": 12}), seed=0).fit(data)
    changed = {k.split(".")[0] for k, v in retriever.model.state_dict().items() if not v.equal(before[k])}
    assert {"text_model", "vision_model", "text_projection", "visual_projection"} <= changed
    assert loaded and not loaded & held_out


@pytest.mark.slow
def test_evaluation_of_the_held_out_split_and_the_truth(store: Store, params: Params):
    tasks.train.stage.run(params, store)
    truth = params.model_copy(
        update={"evaluate": params.evaluate.model_copy(update={"truth": str(store.folder("truth.jsonl"))})}
    )
    tasks.evaluate.stage.run(truth, store)
    found = json.loads(store.folder("reports", "evaluation.json").read_text())
    assert set(found["metrics"]) == {"base", "finetuned"} and found["queries"] == 3 and found["gallery"] == 9
    assert {"map_at_5", "recall_at_1", "recall_at_10"} <= set(found["metrics"]["finetuned"]["composed"])
    # the reference stays in the gallery, as in CIRCO
    assert found["metrics"]["base"]["image_only"]["recall_at_1"] == 0.0
    assert (
        found["truth"]["instructions_true"] == found["truth"]["instructions_complete"] == 1.0
        and found["truth_counts"]["texts"] == 12
    )
    (store.folder("models") / "candidate").rename(store.folder("models", "promoted"))
    with pytest.raises(DataError, match="run `python -m tasks train` first"):
        tasks.evaluate.stage.run(params, store)
    tasks.train.stage.run(params, store)
    tasks.evaluate.stage.run(params, store)
    found = json.loads(store.folder("reports", "evaluation.json").read_text())
    assert found["metrics"]["promoted"] == found["metrics"]["finetuned"] and "truth" not in found


def test_a_benchmark_in_circos_format(tmp_path: Path, base_model: Path):
    (tmp_path / "images").mkdir()
    for n, scene in enumerate(family(random.Random(9), "benchmark", 4)):
        Image.fromarray(draw(scene)).save(tmp_path / "images" / f"{n}.jpg")
    annotation = {
        "id": 0,
        "reference_img_id": 0,
        "target_img_id": 2,
        "gt_img_ids": [2, 3],
        "relative_caption": "make it blue",
        "shared_concept": "a star",
    }
    (tmp_path / "annotations.json").write_text(json.dumps([annotation]))
    benchmark = tasks.evaluate.benchmarks.read_benchmark(tmp_path, "find {shared_concept} but {relative_caption}")
    (task,) = benchmark.tasks
    assert [(q.text, q.ground_truths) for q in task.queries] == [
        ("find a star but make it blue", ("2", "3"))
    ] and task.gallery == ["0", "1", "2", "3"]
    scores = tasks.evaluate.scores.score_retriever(
        ClipRetriever(str(base_model), device="cpu"), benchmark, batch_size=3
    )
    assert (
        scores["image_only"]["recall_at_1"] == 0
        and scores["composed"]["recall_at_5"] == 1
        and 0 < scores["text_only"]["map_at_5"] <= 1
    )
    with pytest.raises(ConfigError, match="relative_caption"):
        tasks.evaluate.benchmarks.read_benchmark(tmp_path, "{text}")
    (tmp_path / "images" / "3.jpg").unlink()
    with pytest.raises(DataError, match=r"query 0 names images \[3\]"):
        tasks.evaluate.benchmarks.read_benchmark(tmp_path, "{relative_caption}")
    with pytest.raises(ConfigError, match="annotations.json"):
        tasks.evaluate.benchmarks.read_benchmark(tmp_path / "images", "{relative_caption}")


def test_without_a_small_component_evaluation_says_what_to_do(store: Store):
    with pytest.raises(DataError, match="raise the share, or name a folder"):
        tasks.evaluate.benchmarks.held_out_benchmark(
            store.read_table("triplets").to_pylist(), 0.01, "{relative_caption}", store.read_image
        )
