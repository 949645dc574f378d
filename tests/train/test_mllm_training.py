"""Training and evaluating the MLLM type: the same loss, loop and protocols as for a CLIP; only adapters change."""

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load_file

import tasks.evaluate.stage
import tasks.train.stage
from tasks.config import LoraConfig, Params, load_params
from tasks.errors import ConfigError
from tasks.models.retrievers.adapters import weight_format
from tasks.models.retrievers.load import load_retriever
from tasks.models.retrievers.mllm import MllmRetriever
from tasks.store import Store
from tasks.train.batches import WeightedDataset, plan_steps
from tasks.train.grad_cache import encode_batch
from tasks.train.loader import ImageLoader
from tasks.train.run_log import RunLog
from tasks.train.trainer import loss_function, prepare_retriever
from tests.support.tiny import save_narrow_clip
from tests.support.tiny_mllm import FAMILIES, TEXTS, images, save_tiny
from tests.support.training import all_examples, fit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random checkpoint of each architecture."""
    return {name: save_tiny(name, tmp_path_factory.mktemp("tiny") / name) for name in FAMILIES}


def short_recipe(base: Path, **train: object) -> Params:
    """A recipe of a few steps with adapters, soft labels and mined negatives."""
    params = load_params("params.yaml", "test")
    recipe = {
        "base_model": str(base),
        "locked_steps": 0,
        "steps": 6,
        "batch_triplets": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "temperature": 0.05,
    }
    recipe |= {
        "negatives": 1,
        "judge_weight": 0.2,
        "lora": LoraConfig(rank=4, alpha=8),
        "held_out_share": 0.0,
        "device": "cpu",
        "checkpoint_steps": 2,
    }
    evaluate = params.evaluate.model_copy(update={"benchmark": None, "truth": None, "device": "cpu", "batch_images": 4})
    return params.model_copy(update={"train": params.train.model_copy(update=recipe | train), "evaluate": evaluate})


def fit_mllm(params: Params, store: Store) -> tuple[MllmRetriever, dict[str, torch.Tensor], list[dict[str, float]]]:
    """The retriever after training, its weights before, the curve."""
    retriever = load_retriever(params.train.base_model, device="cpu", threads=1)
    assert isinstance(retriever, MllmRetriever)
    prepare_retriever(retriever, params.train, seed=0)
    before = {name: value.detach().clone() for name, value in retriever.model.named_parameters()}
    return retriever, before, fit(retriever, params.train, store)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_few_steps_lower_the_loss_and_change_only_adapters(folders: dict[str, Path], store: Store, name: str):
    params = short_recipe(folders[name], steps=16)
    retriever, before, curve = fit_mllm(params, store)
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"], curve
    assert curve[-1]["divergence"] > 0
    changed = {n for n, p in retriever.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".lora_" in n for n in changed)
    vision = "vision_tower" if name == "llava_next" else "visual"
    assert all(any(f".{part}." in n for n in changed) for part in (vision, "language_model"))
    again, _, same = fit_mllm(params, store)
    assert same == curve and all(
        torch.equal(p, q) for p, q in zip(again.model.parameters(), retriever.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_caching_equals_no_caching(folders: dict[str, Path], store: Store, name: str):
    params = short_recipe(folders[name])
    retriever = load_retriever(str(folders[name]), device="cpu")
    prepare_retriever(retriever, params.train, seed=0)
    generator = torch.Generator().manual_seed(2)
    for parameter_name, parameter in retriever.model.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    plan = next(plan_steps([WeightedDataset(all_examples(store), 1.0)], params.train, random.Random(0)))
    inputs, device = ImageLoader(store, retriever.preprocess)(plan.images), torch.device("cpu")

    def encode_images(positions: list[int]) -> torch.Tensor:
        return retriever.image_features([inputs[n] for n in positions])

    def encode_queries(positions: list[int]) -> torch.Tensor:
        return retriever.query_features(
            [inputs[plan.query_image[n]] for n in positions], [plan.texts[n] for n in positions]
        )

    def gradients(chunk: int | None) -> dict[str, torch.Tensor]:
        retriever.model.zero_grad(set_to_none=True)
        candidates = encode_batch(encode_images, len(inputs), chunk, device)
        queries = encode_batch(encode_queries, len(plan.texts), chunk, device)
        compute = loss_function(params.train, retriever.model, plan, device, is_joint=True)
        compute(candidates.features, queries.features).total.backward()
        for batch in (candidates, queries):
            batch.backward(batch.features.grad)
        return {n: p.grad.clone() for n, p in retriever.model.named_parameters() if p.grad is not None}

    whole = gradients(None)
    assert len(whole) > 20 and all(".lora_" in n for n in whole)
    for chunk in (1, 3):
        for parameter_name, gradient in gradients(chunk).items():
            assert torch.allclose(whole[parameter_name], gradient, rtol=1e-3, atol=1e-5), parameter_name


@pytest.mark.parametrize("option", [{"cache_chunk": 3}, {"gradient_checkpointing": True}, {"decode_workers": 2}])
def test_options_that_save_memory_or_time_change_no_result(
    folders: dict[str, Path], store: Store, option: dict[str, object]
):
    _, _, plain = fit_mllm(short_recipe(folders["qwen3_vl"]), store)
    _, _, other = fit_mllm(short_recipe(folders["qwen3_vl"], **option), store)
    assert [p["loss"] for p in other] == pytest.approx([p["loss"] for p in plain], abs=1e-3)


def test_a_run_that_died_resumes_with_the_same_weights_from_a_checkpoint_of_adapters(
    folders: dict[str, Path], store: Store, monkeypatch: pytest.MonkeyPatch
):
    params = short_recipe(folders["qwen2_vl"], steps=4)
    files = ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    tasks.train.stage.run(params, store)
    whole = [store.folder("models", "candidate", name).read_bytes() for name in files]
    report = store.folder("reports", "training.json").read_bytes()
    log_step = RunLog.log_step

    def dying(self: RunLog, step: int, *rest: object, **keywords: object) -> None:
        if step == 3:
            raise KeyboardInterrupt
        log_step(self, step, *rest, **keywords)

    monkeypatch.setattr(RunLog, "log_step", dying)
    with pytest.raises(KeyboardInterrupt):
        tasks.train.stage.run(params, store)
    monkeypatch.setattr(RunLog, "log_step", log_step)
    (checkpoint,) = store.folder(".run", "train").glob("checkpoint-*")
    saved = {name for path in checkpoint.glob("*.safetensors") for name in load_file(path)}
    assert saved and all(".lora_" in name for name in saved), "the base's weights are in no checkpoint"
    tasks.train.stage.run(params, store)
    assert [store.folder("models", "candidate", name).read_bytes() for name in files] == whole
    assert store.folder("reports", "training.json").read_bytes() == report


def test_without_adapters_all_weights_are_trained(folders: dict[str, Path], store: Store):
    retriever, before, _ = fit_mllm(short_recipe(folders["llava_next"], lora=None, steps=2, learning_rate=1e-3), store)
    changed = {n for n, p in retriever.model.named_parameters() if not torch.equal(p, before[n])}
    assert {
        "model.vision_tower.embeddings.patch_embedding.weight",
        "model.language_model.embed_tokens.weight",
        "model.image_newline",
    } <= changed
    assert "lm_head.weight" not in changed


def test_trained_and_evaluated_by_the_stages(folders: dict[str, Path], store: Store):
    """From triplets to scores: held-out triplets, the base, the candidate, each composed, by image and by text."""
    params = short_recipe(folders["llava_next"], held_out_share=0.3, steps=2)
    report = tasks.train.stage.run(params, store)
    recipe = json.loads(store.folder("reports", "training.json").read_text())["recipe"]
    assert (
        recipe["lora"] == {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}
        and report.figures["loss"] > 0
    )
    tasks.evaluate.stage.run(params, store)
    found = json.loads(store.folder("reports", "evaluation.json").read_text())
    assert found["revisions"]["base"] != found["revisions"]["finetuned"]
    for model in ("base", "finetuned"):
        assert set(found["metrics"][model]) == {"composed", "image_only", "text_only"}
    base, tuned = (
        load_retriever(str(folders["llava_next"]), device="cpu"),
        load_retriever(str(store.folder("models", "candidate")), device="cpu"),
    )
    assert np.abs(base.encode(images(2), TEXTS[:2]) - tuned.encode(images(2), TEXTS[:2])).max() > 1e-4


def test_evaluation_encodes_queries_as_a_whole(folders: dict[str, Path], store: Store):
    """A query is encoded with its image and text together, its image or text alone as a query too, a candidate as a
    candidate.
    """
    retriever = load_retriever(str(folders["qwen2_vl"]), device="cpu")
    image = dict(zip("ab", images(2), strict=True))
    reads = []

    def read(key: str) -> Image:
        reads.append(key)
        return image[key]

    encoder = retriever.content_encoder(read, 2)
    encoder.prepare(["a", "b"], TEXTS)
    rows = encoder.encode([("a", TEXTS[0]), ("b", ""), (None, TEXTS[1]), (None, ""), ("a", TEXTS[0])], "query")
    assert np.allclose(rows[0], retriever.encode([image["a"]], TEXTS[:1])[0], atol=1e-5) and np.array_equal(
        rows[0], rows[4]
    )
    assert np.allclose(rows[1], retriever.encode([image["b"]], role="query")[0], atol=1e-5)
    assert np.allclose(rows[2], retriever.encode(texts=[TEXTS[1]], role="query")[0], atol=1e-5) and not rows[3].any()
    assert np.allclose(encoder.encode([("b", "")], "candidate")[0], retriever.encode([image["b"]])[0], atol=1e-5)
    count = len(reads)
    encoder.encode([("b", ""), ("b", "")], "candidate")
    assert len(reads) == count, "known contents are not encoded again"


def test_recipes_that_do_not_suit_the_type_are_refused_with_the_next_step(folders: dict[str, Path], tmp_path: Path):
    clip, mllm = (
        load_retriever(str(f), device="cpu") for f in (save_narrow_clip(tmp_path / "clip"), folders["qwen3_vl"])
    )
    config = short_recipe(folders["qwen3_vl"]).train
    with pytest.raises(ConfigError, match="no tower can be locked; set it to 0"):
        prepare_retriever(mllm, config.model_copy(update={"locked_steps": 5}), 0)
    with pytest.raises(ConfigError, match="is a CLIP, which is trained as a whole"):
        prepare_retriever(clip, config, 0)
    with pytest.raises(ConfigError, match="'train.lora' and 'train.shard_weights' do not go together"):
        prepare_retriever(mllm, config.model_copy(update={"shard_weights": True}), 0)
    prepare_retriever(clip, config.model_copy(update={"lora": None}), 0)
    assert not mllm.is_adapted


def test_the_base_may_be_held_in_bfloat16_under_adapters(folders: dict[str, Path], store: Store, tmp_path: Path):
    params = short_recipe(folders["qwen2_vl"], steps=3)
    half = load_retriever(str(folders["qwen2_vl"]), device="cpu", threads=1, base_precision="bfloat16")
    assert isinstance(half, MllmRetriever)
    prepare_retriever(half, params.train, seed=0)
    kinds = {(".lora_" in name, value.dtype) for name, value in half.model.named_parameters()}
    assert kinds == {(False, torch.bfloat16), (True, torch.float32)}
    curve = fit(half, params.train, store)
    _, _, whole = fit_mllm(params, store)
    assert curve[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.2)
    half.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter" / "adapter_model.safetensors").is_file()
    found = load_retriever(str(tmp_path / "saved"), device="cpu").encode(images(1), TEXTS[:1])
    assert np.allclose(found, half.encode(images(1), TEXTS[:1]), atol=0.05)
    with pytest.raises(ConfigError, match="is a CLIP, whose weights are float32"):
        load_retriever(str(save_narrow_clip(tmp_path / "clip")), device="cpu", base_precision="bfloat16")


def test_without_bitsandbytes_four_bits_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="'train.base_precision' is 4bit, which needs bitsandbytes"):
        weight_format("4bit", "cpu")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes (43 MB) is not installed")
def test_the_base_may_be_held_in_four_bits_under_adapters(folders: dict[str, Path], store: Store, tmp_path: Path):
    """Also on a CPU: the training forgets little, and the adapter is merged into bfloat16 weights."""
    params = short_recipe(folders["qwen2_vl"], steps=3)
    quarter = load_retriever(str(folders["qwen2_vl"]), device="cpu", threads=1, base_precision="4bit")
    prepare_retriever(quarter, params.train, seed=0)
    kinds = {(".lora_" in name, value.dtype) for name, value in quarter.model.named_parameters()}
    assert (False, torch.uint8) in kinds and (True, torch.float32) in kinds
    curve = fit(quarter, params.train, store)
    _, _, whole = fit_mllm(params, store)
    assert curve[0]["loss"] == pytest.approx(whole[0]["loss"], rel=0.3)
    quarter.save(tmp_path / "saved")
    saved = load_retriever(str(tmp_path / "saved"), device="cpu")
    base = MllmRetriever(str(folders["qwen2_vl"]), device="cpu")
    assert saved.model.dtype == torch.float32
    assert not np.allclose(saved.encode(images(1), TEXTS[:1]), base.encode(images(1), TEXTS[:1]), atol=1e-3)
