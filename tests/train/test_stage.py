"""Options of training: what they promise, each against its plain form. The plain form is the specification."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import tasks.train.batches
import tasks.train.checks
import tasks.train.fit
import tasks.train.stage
from tasks.config import Params, load_params
from tasks.errors import ConfigError, DataError
from tasks.models.retrievers.clip import ClipRetriever
from tasks.store import Store
from tasks.train.accelerator import Machine
from tasks.train.batches import batches, mixed_batches, training_examples
from tasks.train.grad_cache import descend, encoded
from tasks.train.run_log import Course
from tasks.train.stage import Example
from tests.support.tiny import BATCH, save_narrow_clip, save_version


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one narrow layer a tower."""
    return save_narrow_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Eight families of three images: query, target, one mined negative."""
    return save_version(tmp_path / "clone")


@pytest.fixture
def params(base_model: Path) -> Params:
    params = load_params("params.yaml", "test")
    train = {
        "base_model": str(base_model),
        "locked_steps": 4,
        "locked_batch_triplets": 4,
        "steps": 8,
        "batch_triplets": 4,
        "learning_rate": 1e-3,
    }
    return params.model_copy(
        update={
            "train": params.train.model_copy(
                update={**train, "held_out_share": 0.0, "device": "cpu", "checkpoint_steps": 3}
            )
        }
    )


def changed(params: Params, **train: object) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update=train)})


def checkpoints(store: Store) -> list[Path]:
    return sorted(store.folder(".run", "train").glob("checkpoint-*"))


def weights(retriever: ClipRetriever) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in retriever.model.parameters()])


def trained(params: Params, store: Store, **train: object) -> tuple[torch.Tensor, list[dict[str, float]]]:
    config = changed(params, **train).train
    retriever = ClipRetriever(config.base_model, device="cpu", threads=1)
    examples = training_examples(store.read_table("triplets").to_pylist(), set())
    curve = tasks.train.fit.fit(
        retriever, examples, tasks.train.stage.Pixels(store, retriever, workers=config.decode_workers), config, seed=0
    )
    return weights(retriever), curve


def gradients(
    retriever: ClipRetriever, plan: tasks.train.batches.Plan, pixels: torch.Tensor, params: Params, chunk: int | None
) -> dict[str, torch.Tensor]:
    """Of one step's loss, by the trainer's own pieces."""
    retriever.model.zero_grad(set_to_none=True)
    device = torch.device("cpu")
    images, back_images = encoded(lambda at: retriever.image_features(pixels[list(at)]), len(pixels), chunk, device)
    texts, back_texts = encoded(
        lambda at: retriever.text_features([plan.texts[n] for n in at]), len(plan.texts), chunk, device
    )
    tasks.train.fit.contrast_of(params.train, retriever.model, plan, device)(images, texts).total.backward()
    back_images(images.grad)
    back_texts(texts.grad)
    return {k: p.grad.clone() for k, p in retriever.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_gradient_caching_equals_no_caching(params: Params, store: Store, chunk: int):
    retriever = ClipRetriever(params.train.base_model, device="cpu")
    retriever.model.train()
    examples = training_examples(store.read_table("triplets").to_pylist(), set())
    plan = next(tasks.train.batches.plans([(examples, 1.0)], params.train, random.Random(0)))
    pixels = tasks.train.stage.Pixels(store, retriever)(plan.shown)
    images, texts = retriever.image_features(pixels), retriever.text_features(plan.texts)
    retriever.model.zero_grad(set_to_none=True)
    tasks.train.fit.contrast_of(params.train, retriever.model, plan, torch.device("cpu"))(
        images, texts
    ).total.backward()
    plain = {k: p.grad.clone() for k, p in retriever.model.named_parameters() if p.grad is not None}
    cached = gradients(retriever, plan, pixels, params, chunk)
    assert plain.keys() == cached.keys() and len(plain) > 20
    for name, gradient in plain.items():
        assert torch.allclose(gradient, cached[name], rtol=1e-4, atol=1e-6), name


def test_with_dropout_the_second_pass_falls_as_the_first():
    torch.manual_seed(0)
    tower, seen = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)), []

    def encode(at: list[int]) -> torch.Tensor:
        seen.append(tower(torch.arange(20.0).view(5, 4)[list(at)]))
        return seen[-1]

    rows, back = encoded(encode, 5, 2, torch.device("cpu"))
    rows.sum().backward()
    back(rows.grad)
    assert (
        len(seen) == 6
        and torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))
        and torch.equal(torch.cat(seen[:3]), rows)
    )


@pytest.mark.parametrize("option", [{"cache_chunk": 3}, {"gradient_checkpointing": True}, {"decode_workers": 2}])
def test_what_saves_memory_or_time_changes_no_course(params: Params, store: Store, option: dict[str, object]):
    plain, curve = trained(params, store)
    other, other_curve = trained(params, store, **option)
    assert torch.allclose(plain, other, atol=1e-3), (
        "AdamW makes a whole step of a gradient's last bit: so many steps, so much"
    )
    for one, two in zip(curve, other_curve, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-3)
    assert torch.equal(plain, other) or "cache_chunk" in option


def test_bfloat16_trains_and_leaves_float32_weights(params: Params, store: Store):
    plain, curve = trained(params, store, locked_steps=0, steps=2)
    half, half_curve = trained(params, store, locked_steps=0, steps=2, precision="bfloat16")
    assert half.dtype == torch.float32 and not torch.equal(plain, half)
    assert half_curve[0]["loss"] == pytest.approx(curve[0]["loss"], rel=0.05)


def test_with_caching_both_passes_of_bfloat16_are_bfloat16(params: Params, store: Store):
    config = changed(params, precision="bfloat16", cache_chunk=3, locked_steps=0, steps=1).train
    retriever, seen = ClipRetriever(config.base_model, device="cpu", threads=1), []
    retriever.model.visual_projection.register_forward_hook(
        lambda module, given, out: seen.append((out.dtype, torch.is_grad_enabled()))
    )
    examples = training_examples(store.read_table("triplets").to_pylist(), set())
    tasks.train.fit.fit(retriever, examples, tasks.train.stage.Pixels(store, retriever), config, seed=0)
    assert {dtype for dtype, _ in seen} == {torch.bfloat16} and sum(graded for _, graded in seen) == len(seen) / 2 > 1


def test_the_temperature_is_learnt_from_where_it_is_set_and_saved_where_clip_keeps_it(params: Params, store: Store):
    config = changed(params, learn_temperature=True, temperature=0.05, locked_steps=0, learning_rate=1e-2).train
    retriever = ClipRetriever(config.base_model, device="cpu")
    examples = training_examples(store.read_table("triplets").to_pylist(), set())
    curve = tasks.train.fit.fit(retriever, examples, tasks.train.stage.Pixels(store, retriever), config, seed=0)
    learnt = float((-retriever.model.logit_scale.detach()).exp())
    assert (
        curve[-1]["temperature"] == pytest.approx(learnt, abs=1e-3)
        and learnt != pytest.approx(0.05, abs=1e-4)
        and 0.03 < learnt < 0.08
    )
    fixed, _ = trained(params, store, locked_steps=0, steps=1)
    assert float(fixed[0]) == pytest.approx(2.6592, abs=1e-4), "a fixed temperature leaves the model's own alone"
    del retriever.model.logit_scale
    with pytest.raises(ConfigError, match="has no logit_scale"):
        tasks.train.fit.fit(retriever, examples, tasks.train.stage.Pixels(store, retriever), config, seed=0)


def test_mask_and_judge_make_figures_of_their_own(params: Params, store: Store):
    _, curve = trained(params, store, mask_margin=0.1, judge_weight=0.5)
    assert {"masked", "divergence"} <= set(curve[-1]) and curve[-1]["divergence"] > 0
    assert not {"masked", "divergence", "temperature"} & set(trained(params, store, steps=1)[1][-1])


def test_the_judges_scores_stand_at_the_right_images(params: Params, store: Store):
    examples = training_examples(store.read_table("triplets").to_pylist(), set())
    plan = next(
        tasks.train.batches.plans(
            [([*examples[:3], replace(examples[3], judged_target=(), judged={})], 1.0)], params.train, random.Random(1)
        )
    )
    for n in range(4):
        names = [plan.shown[k] for k in plan.columns[n]]
        family_of = names[0][:2]
        assert names == [f"{family_of}b", f"{family_of}a", f"{family_of}c"]
        if family_of == "03":
            assert all(score != score for score in plan.scores[n])  # NaN: nobody judged
        else:
            said = plan.texts[n].startswith("make it")
            assert plan.scores[n] == pytest.approx([0.9 if said else 0.8, 0.1, 0.3], abs=1e-6)


# --- a run that dies ----------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.mark.parametrize("dies_at", [2, 4, 11])
def test_a_run_that_died_goes_on_with_the_same_weights_and_metrics(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, dies_at: int
):
    tasks.train.stage.run(params, store)
    whole = store.folder("models", "candidate", "model.safetensors").read_bytes()
    told = store.folder("reports", "training.json").read_bytes()
    metrics = [
        json.loads(line) for line in store.folder("reports", "training", "metrics.jsonl").read_text().splitlines()
    ]
    note = Course.note

    def dying(self: Course, step: int, *rest: object, **keywords: object) -> None:
        if step == dies_at:
            raise Stopped
        note(self, step, *rest, **keywords)

    monkeypatch.setattr(Course, "note", dying)
    with pytest.raises(Stopped):
        tasks.train.stage.run(params, store)
    assert bool(checkpoints(store)) == (dies_at > 3)
    monkeypatch.setattr(Course, "note", note)
    tasks.train.stage.run(params, store)
    assert store.folder("models", "candidate", "model.safetensors").read_bytes() == whole
    assert store.folder("reports", "training.json").read_bytes() == told
    again = [json.loads(line) for line in store.folder("reports", "training", "metrics.jsonl").read_text().splitlines()]
    without_clocks = [
        [(r["key"], r["step"], r["value"]) for r in rows if r["key"] != "steps_per_s"] for rows in (metrics, again)
    ]
    assert without_clocks[0] == without_clocks[1]
    assert {"key", "value", "step", "timestamp"} == set(again[0])
    assert not list(store.folder(".run", "train").iterdir())


def test_killed_with_sigkill_and_run_again_gives_the_same_weights(params: Params, store: Store, project: Path):
    params = changed(params, steps=60, checkpoint_steps=5)
    raw = params.model_dump(mode="json", by_alias=True)
    store.folder("params.yaml").write_text(yaml.safe_dump(raw))
    env = {k: v for k, v in os.environ.items() if not k.startswith("MEGAPAIRS")} | {"PYTHONPATH": str(project)}
    line = [sys.executable, "-m", "tasks", "train", "--root", str(store.root)]
    process = subprocess.Popen(line, cwd=project, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not checkpoints(store) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert checkpoints(store), output
    done = json.loads((checkpoints(store)[-1] / "course.json").read_text())["step"]
    assert 0 < done < 64 and not store.folder("models", "candidate").exists()
    tasks.train.stage.run(params, store)
    resumed = store.folder("models", "candidate", "model.safetensors").read_bytes()
    tasks.train.stage.run(params, store)  # no checkpoint now: from the start
    assert store.folder("models", "candidate", "model.safetensors").read_bytes() == resumed


def test_a_checkpoint_of_another_recipe_is_not_used(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    course = Course(50, checkpoint=store.folder(".run", "train"), identity="other", checkpoint_steps=1)
    machine = Machine(ClipRetriever(params.train.base_model, device="cpu"), params.train)
    machine.prepare(torch.optim.AdamW(machine.towers.parameters()))
    course.keep(40, "both", 36, machine)
    caplog.set_level("INFO")
    monkeypatch.setattr(Course, "close", lambda self: None)
    tasks.train.stage.run(params, store)
    assert "is of another recipe, data or base model" in caplog.text and "goes on from" not in caplog.text
    assert [p.name for p in checkpoints(store)] == ["checkpoint-000000009"], "ours took its place, lower as its step is"


def test_tensorboard_says_what_the_lines_say(params: Params, store: Store):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tasks.train.stage.run(changed(params, tensorboard=True), store)
    events = EventAccumulator(str(store.folder("reports", "training", "tensorboard"))).Reload()
    curve = json.loads(store.folder("reports", "training.json").read_text())["curve"]
    assert [(e.step, pytest.approx(e.value, abs=1e-4)) for e in events.Scalars("train/loss")] == [
        (p["step"], p["loss"]) for p in curve
    ]


# --- fail fast ----------------------------------------------------------------------------------------------------


def in_place(store: Store) -> Path:
    """A promoted model; whatever fails, it stays as it is."""
    file = store.folder("models", "promoted", "model.safetensors")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"promoted")
    return file


def test_a_missing_image_is_said_before_any_step(params: Params, store: Store):
    promoted = in_place(store)
    images = store.read_table("images").to_pylist()
    store.write(store.table_path("images", BATCH), [r for r in images if r["image_id"] != "03c"], "images")
    with pytest.raises(DataError, match="1 images of the triplets are not in the images table, the first is 03c"):
        tasks.train.stage.run(params, Store(store.root))
    assert promoted.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


@pytest.mark.parametrize(("left", "message"), [(None, "is missing; run `dvc pull --force`"), (100, "has 100 bytes")])
def test_a_shard_that_is_missing_or_cut_short_is_said_before_any_step(
    params: Params, store: Store, left: int | None, message: str
):
    promoted, shard = in_place(store), store.folder("data", "images", f"{BATCH}-00000.tar")
    if left is None:
        shard.unlink()
    else:
        os.truncate(shard, left)
    with pytest.raises(
        DataError,
        match=rf"24 images are not in their shards, the first is 00a: data/images/{BATCH}-00000.tar {message}",
    ):
        tasks.train.stage.run(params, store)
    assert promoted.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


def test_a_wrong_base_revision_is_refused(params: Params, store: Store):
    promoted = in_place(store)
    with pytest.raises(ConfigError, match="'train.revision' pins 0123456789ab"):
        tasks.train.stage.run(changed(params, revision="0123456789ab"), store)
    right = ClipRetriever(params.train.base_model, device="cpu").revision
    tasks.train.checks.check_revision(right, right, "x")
    tasks.train.checks.check_revision(right + "0" * 28, right, "x")
    tasks.train.checks.check_revision("main", right, "x")
    assert promoted.read_bytes() == b"promoted"


def test_a_loss_that_is_not_finite_leaves_the_model_in_place(params: Params, store: Store):
    promoted = in_place(store)
    with pytest.raises(DataError, match="the loss is nan at step"):
        tasks.train.stage.run(changed(params, locked_steps=0, learning_rate=1e30, warmup_steps=0), store)
    assert promoted.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


def test_a_gradient_that_is_not_finite_changes_no_weight(params: Params):
    retriever = ClipRetriever(params.train.base_model, device="cpu", threads=1)
    machine = Machine(retriever, params.train)
    optimizer = machine.prepare(torch.optim.AdamW(retriever.model.parameters()))
    before, images, texts = (
        weights(retriever),
        torch.randn(3, 4, requires_grad=True),
        torch.randn(2, 4, requires_grad=True),
    )
    plan = tasks.train.batches.Plan([0, 1, 2], [0, 1], [1, 2], ["a", "b"], [1] * 3, [[0, 1], [1, 2]], [[0.0] * 2] * 2)

    def back(gradient: torch.Tensor) -> None:
        retriever.model.visual_projection.weight.grad = torch.full_like(
            retriever.model.visual_projection.weight, float("nan")
        )

    contrast = tasks.train.fit.contrast_of(params.train, retriever.model, plan, torch.device("cpu"))
    with pytest.raises(DataError, match="the gradient is nan at step 7"):
        descend(optimizer, contrast, (images, back), (texts, None), rate=0.1, step=7, machine=machine)
    assert torch.equal(weights(retriever), before)


def test_a_version_without_triplets_leaves_the_model_in_place(params: Params, store: Store):
    promoted = in_place(store)
    for file in store.table_files("triplets"):
        file.unlink()
    with pytest.raises(DataError, match="no triplet to train on among 0"):
        tasks.train.stage.run(params, store)
    assert promoted.read_bytes() == b"promoted" and not store.folder("models", "candidate").exists()


def test_an_empty_batch_is_an_error_not_a_hang():
    with pytest.raises(DataError, match="no triplet to make a batch of"):
        next(batches([], 4, random.Random(0)))


# --- several processes --------------------------------------------------------------------------------------------


def test_two_processes_with_gloo_equal_one_with_the_same_global_batch(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, project: Path
):
    params = changed(params, steps=4, locked_steps=2, batch_triplets=5)
    tasks.train.stage.run(params, store)
    one = ClipRetriever(str(store.folder("models", "candidate")), device="cpu")
    curve = json.loads(store.folder("reports", "training.json").read_text())["curve"]
    two = changed(params, processes=2)
    store.folder("params.yaml").write_text(yaml.safe_dump(two.model_dump(mode="json", by_alias=True)))
    monkeypatch.setenv("PYTHONPATH", str(project))
    report = tasks.train.stage.run(two, store)
    shared = ClipRetriever(str(store.folder("models", "candidate")), device="cpu")
    shared_curve = json.loads(store.folder("reports", "training.json").read_text())["curve"]
    assert report.done == 6 and report.figures["loss"] == shared_curve[-1]["loss"]
    for a, b in zip(curve, shared_curve, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
    assert torch.allclose(weights(one), weights(shared), atol=1e-4)
    assert not list(store.folder("models").glob(".*"))


SHARDED = """
import sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU  # accelerate 1.15 shards on GPUs alone; gloo and FSDP2 can on CPUs
import tasks.train.stage
from tasks.config import load_params
from tasks.store import Store
from tasks.train.run_log import Course
note = Course.note
def dying(self, step, *rest, **keywords):
    if step == int(sys.argv[2]):
        raise SystemExit(3)
    note(self, step, *rest, **keywords)
Course.note = dying
tasks.train.stage.run(load_params(sys.argv[1] + "/params.yaml"), Store(sys.argv[1]))
"""


def test_sharded_weights_on_two_processes_equal_one_process_and_go_on_after_a_death(
    params: Params, store: Store, project: Path, tmp_path: Path
):
    """FSDP2 by gloo: its average, its clipping and its checkpoints, with a batch that does not divide by two and
    gradient caching.
    """
    params = changed(params, steps=5, locked_steps=4, batch_triplets=5, cache_chunk=3)
    tasks.train.stage.run(params, store)
    one = ClipRetriever(str(store.folder("models", "candidate")), device="cpu")
    curve = json.loads(store.folder("reports", "training.json").read_text())["curve"]
    sharded = changed(params, shard_weights=True)
    store.folder("params.yaml").write_text(yaml.safe_dump(sharded.model_dump(mode="json", by_alias=True)))
    (tmp_path / "sharded.py").write_text(SHARDED)
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(tmp_path / "sharded.py"),
        str(store.root),
    ]
    env = os.environ | {"PYTHONPATH": str(project)}
    died = subprocess.run([*line, "8"], env=env, capture_output=True, text=True, timeout=240)
    assert died.returncode and checkpoints(store), died.stderr[-3000:]
    assert json.loads((checkpoints(store)[-1] / "course.json").read_text())["step"] == 6
    done = subprocess.run([*line, "0"], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    shared = ClipRetriever(str(store.folder("models", "candidate")), device="cpu")
    for a, b in zip(curve, json.loads(store.folder("reports", "training.json").read_text())["curve"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
    assert {k: v.shape for k, v in one.model.state_dict().items()} == {
        k: v.shape for k, v in shared.model.state_dict().items()
    }
    assert torch.allclose(weights(one), weights(shared), atol=2e-4)


def test_sharding_that_cannot_be_is_refused(params: Params, store: Store):
    with pytest.raises(ConfigError, match="needs several processes on GPUs"):
        tasks.train.stage.run(changed(params, shard_weights=True), store)
    assert not store.folder("models", "candidate").exists()


def test_what_a_process_says_by_its_exit_code_is_raised(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch, project: Path
):
    two = changed(params, processes=2, base_model=str(store.folder("nowhere")))
    store.folder("params.yaml").write_text(yaml.safe_dump(two.model_dump(mode="json", by_alias=True)))
    monkeypatch.setenv("PYTHONPATH", str(project))
    with pytest.raises(ConfigError, match="ended with exit code 78"):
        tasks.train.stage.run(two, store)


# --- mixtures -----------------------------------------------------------------------------------------------------


def test_a_batch_comes_from_one_dataset_as_often_as_it_weighs():
    ours, theirs = ([Example(f"{n}q{i}", f"{n}t{i}", (), ("x",)) for i in range(20)] for n in "AB")
    stream = mixed_batches([(ours, 3.0), (theirs, 1.0)], 5, random.Random(0))
    drawn = [{e.query[0] for e in next(stream)} for _ in range(2000)]
    assert all(len(names) == 1 for names in drawn)
    assert 0.71 < sum(names == {"A"} for names in drawn) / 2000 < 0.79
    alone, plain = mixed_batches([(ours, 3.0)], 5, random.Random(4)), batches(ours, 5, random.Random(4))
    assert [next(alone) for _ in range(9)] == [next(plain) for _ in range(9)], "one dataset alone costs no draw"
