"""Options of the trainer, each against its plain form or its formula."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tasks.config import Params
from tasks.config.train_options import RefreshConfig, TeacherConfig, ValidationConfig
from tasks.errors import ConfigError, DataError
from tasks.models.retrievers.clip import ClipRetriever
from tasks.store import Store
from tasks.train.averaging import mean_weights
from tasks.train.batches import Example
from tasks.train.loss import BatchLabels, LossOptions, TeacherScores, info_nce
from tasks.train.optimizer import build_optimizer, learning_rate_at
from tasks.train.refresh import mined_negatives
from tasks.train.run_log import RunLog
from tasks.train.stage import run
from tasks.train.validation import Validation, retrieval_scores
from tests.support.training import fit_clip, with_train


def unit(*rows: list[float]) -> torch.Tensor:
    return F.normalize(torch.tensor(rows), dim=-1)


def candidate_weights(store: Store) -> bytes:
    return store.folder("models", "candidate", "model.safetensors").read_bytes()


def training_report(store: Store) -> dict[str, object]:
    report: dict[str, object] = json.loads(store.folder("reports", "training.json").read_text())
    return report


def test_the_cosine_schedule_falls_from_the_peak_to_nothing():
    rates = [learning_rate_at(n, steps=10, warmup=2, peak=2.0, schedule="cosine") for n in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0] and rates[6] == pytest.approx(1.0)
    assert rates == [rates[0], *sorted(rates[1:], reverse=True)] and 0 < rates[-1] < 0.1


def test_without_decay_of_norms_and_biases_only_matrices_shrink(params: Params):
    """A step without gradient is weight decay alone."""
    changes = {"weight_decay": 0.5, "decay_norms_and_biases": False, "betas": (0.8, 0.9)}
    optimizer_config = params.train.optimizer.model_copy(update=changes)
    for learns_temperature in (False, True):
        config = with_train(params, optimizer=optimizer_config, learn_temperature=learns_temperature).train
        model = ClipRetriever(config.base_model, device="cpu").model
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimizer = build_optimizer(model, config, 0.1)
        assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, value in model.named_parameters():
            factor = 0.95 if value.ndim >= 2 else 1.0
            assert torch.allclose(value, before[name] * factor), name


def test_gradients_are_clipped_at_the_configured_norm(params: Params, store: Store):
    plain, _ = fit_clip(params, store, locked_steps=0, steps=1)
    optimizer = params.train.optimizer.model_copy(update={"max_gradient_norm": 1e-9})
    tight, _ = fit_clip(params, store, locked_steps=0, steps=1, optimizer=optimizer)
    assert not torch.equal(plain, tight)


def test_hard_negatives_weigh_more_by_the_formula():
    """LLaVE: exp(alpha x similarity) is a negative's weight, and has no gradient."""
    queries, candidates = unit([1.0, 0.0]), unit([0.8, 0.6], [0.6, 0.8], [0.0, 1.0])
    labels = BatchLabels(torch.arange(3), torch.tensor([0]), query_image=torch.tensor([2]))
    loss = info_nce(queries, candidates, labels, temperature=0.5, options=LossOptions(hardness_weight=9.0))
    weighted = sum(math.exp(9.0 * s) * math.exp(s / 0.5) for s in (0.6, 0.0))
    assert float(loss.total) == pytest.approx(-math.log(math.exp(1.6) / (math.exp(1.6) + weighted)), rel=1e-5)


def test_the_teachers_divergence_is_zero_where_both_agree_and_leaves_out_what_cannot_be_read():
    queries, candidates = unit([1.0, 0.0]), unit([0.8, 0.6], [0.6, 0.8], [0.0, 1.0])
    similarity = queries @ candidates.T
    excluded = torch.tensor([False, False, True])
    for out in (None, excluded):
        labels = BatchLabels(torch.arange(3), torch.tensor([0]), torch.tensor([1]), excluded=out)

        def distillation(teacher: torch.Tensor, labels: BatchLabels = labels) -> float:
            options = LossOptions(teacher=TeacherScores(teacher, 0.5, 2.0))
            loss = info_nce(queries, candidates, labels, temperature=0.5, options=options)
            assert float(loss.total) == pytest.approx(float(loss.contrast + 2 * loss.distillation), rel=1e-6)
            return float(loss.distillation)

        assert distillation(similarity) == pytest.approx(0.0, abs=1e-6)
        kept = 3 if out is None else 2
        ours, theirs = (F.softmax(x[0, :kept] / 0.5, 0) for x in (similarity, 1 - similarity))
        assert distillation(1 - similarity) == pytest.approx(float((theirs * (theirs / ours).log()).sum()), rel=1e-4)


def test_matryoshka_trains_the_first_dimensions_to_work_alone(params: Params, store: Store):
    settings = {"locked_steps": 0, "steps": 12, "learning_rate": 5e-3, "warmup_steps": 2}
    _, curve = fit_clip(params, store, **settings, matryoshka_dimensions=(4,))
    _, plain = fit_clip(params, store, **settings)
    assert curve[0]["loss"] != plain[0]["loss"]
    with pytest.raises(ConfigError, match=r"'train.matryoshka_dimensions' has \[32, 99\].*vectors of 32 dimensions"):
        fit_clip(params, store, **settings, matryoshka_dimensions=(4, 32, 99))


def test_a_teacher_of_the_same_weights_says_nothing_at_first_and_another_one_does(
    params: Params, store: Store, base_model: Path
):
    teacher = TeacherConfig(model=str(base_model), temperature=params.train.temperature)
    run(with_train(params, locked_steps=0, steps=2, learning_rate=1e-9, teacher=teacher), store)
    assert training_report(store)["curve"][-1]["distillation"] == pytest.approx(0.0, abs=1e-4)
    run(with_train(params, locked_steps=0, steps=2, teacher=teacher.model_copy(update={"temperature": 1.0})), store)
    assert training_report(store)["curve"][-1]["distillation"] > 0.01


def test_ranks_count_ties_against_the_target():
    queries, gallery = unit([1.0, 0.0], [0.0, 1.0]), unit([1.0, 0.0], [1.0, 0.0], [0.6, 0.8])
    scores = retrieval_scores(queries, gallery, [0, 2])
    assert scores == {"recall_at_1": 0.5, "mean_reciprocal_rank": pytest.approx(0.75)}


def test_the_best_evaluation_is_kept_and_patience_ends_it():
    validation = Validation(ValidationConfig(every_steps=5, patience=2), [Example("a", "b", ("c",), ("x",))])
    assert [validation.is_due(n, is_last=False) for n in (4, 5)] == [False, True] and validation.is_due(7, is_last=True)
    near, far = unit([0.0, 1.0, 0.0]), unit([0.0, 0.0, 1.0])
    gallery = torch.eye(3)
    for step, queries in ((5, far), (10, near), (15, far), (20, near)):
        validation.score(step, queries, gallery)
        validation.keep(step, {"w": torch.tensor([float(step)])}) if validation.best_step == step else None
        assert validation.is_stale == (step == 20)
    assert validation.best_step == 10 and validation.best_weights()["w"].tolist() == [10.0]


@pytest.mark.slow
def test_training_with_evaluation_ends_early_with_the_best_model_and_resumes(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch
):
    """With a rate that wrecks the model, the first evaluation is the best."""
    config = ValidationConfig(share=0.3, every_steps=2, patience=2)
    params = with_train(params, validation=config, locked_steps=0, steps=40, learning_rate=0.5, warmup_steps=6)
    report = run(params, store)
    weights, written = candidate_weights(store), training_report(store)
    assert report.dropped["validation"] == written["validation_triplets"] == 2 and written["triplets"] == 6
    (one,) = written["validation"]
    steps = [point["step"] for point in one["history"]]
    assert steps[-1] < 40 and steps[-1] == one["best_step"] + 4 and not list(store.folder(".run").glob("train/*"))
    log_step = RunLog.log_step

    def dying(self: RunLog, step: int, *rest: object, **keywords: object) -> None:
        if step == 5:
            raise KeyboardInterrupt
        log_step(self, step, *rest, **keywords)

    monkeypatch.setattr(RunLog, "log_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(params, store)
    monkeypatch.setattr(RunLog, "log_step", log_step)
    run(params, store)
    assert candidate_weights(store) == weights and training_report(store) == written


def test_a_split_that_is_too_small_is_refused(params: Params, store: Store):
    with pytest.raises(DataError, match="no triplet to evaluate on among 8: .*raise train.validation.share"):
        run(with_train(params, validation=ValidationConfig(share=0.01)), store)


def test_mined_negatives_are_near_and_neither_own_nor_right():
    examples = [Example("q", "t", ("old",), ("x",)), Example("q", "u", ("old",), ("y",))]
    ids = ["q", "t", "u", "near", "far", "twin"]
    images = unit([1.0, 0.0], [0.9, 0.5], [0.8, 0.6], [0.7, 0.7], [0.0, 1.0], [0.9, 0.45])
    queries = unit([0.9, 0.5], [0.0, 1.0])
    config = RefreshConfig(every_steps=1, negatives=2, positive_share_max=0.98)
    assert mined_negatives(examples, ids, queries, images, config) == [["near", "far"], ["twin"]]
    assert mined_negatives(examples, ids[:3], queries, images[:3], config) == [["old"]] * 2, "none is left"


@pytest.mark.slow
def test_refreshed_negatives_change_the_training_and_a_killed_run_ends_alike(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch
):
    plain = with_train(params, locked_steps=0, checkpoint_steps=2)
    run(plain, store)
    without = candidate_weights(store)
    params = with_train(plain, refresh_negatives=RefreshConfig(every_steps=4, negatives=3, positive_share_max=1.0))
    run(params, store)
    weights = candidate_weights(store)
    assert weights != without
    log_step = RunLog.log_step
    for dies_at in (5, 8):  # after the checkpoint of step 4, before the mining; after the one of step 6, which holds it

        def dying(self: RunLog, step: int, *rest: object, dies_at: int = dies_at, **keywords: object) -> None:
            if step == dies_at:
                raise KeyboardInterrupt
            log_step(self, step, *rest, **keywords)

        monkeypatch.setattr(RunLog, "log_step", dying)
        with pytest.raises(KeyboardInterrupt):
            run(params, store)
    monkeypatch.setattr(RunLog, "log_step", log_step)
    run(params, store)
    assert candidate_weights(store) == weights


def test_the_mean_of_state_dicts_keeps_types_and_integers():
    one = {"w": torch.tensor([1.0, 2.0], dtype=torch.float16), "n": torch.tensor(3)}
    two = {"w": torch.tensor([2.0, 4.0], dtype=torch.float16), "n": torch.tensor(4)}
    mean = mean_weights(iter([one, two]))
    assert mean["w"].dtype == torch.float16 and mean["w"].tolist() == [1.5, 3.0] and mean["n"] == 3


@pytest.mark.slow
def test_several_seeds_are_averaged_and_finished_ones_are_not_trained_again(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch
):
    short = with_train(params, locked_steps=0, steps=2)
    alone = []
    for seed in (0, 1):
        run(short.model_copy(update={"open_run": short.open_run.model_copy(update={"seed": seed})}), store)
        alone.append(ClipRetriever(str(store.folder("models", "candidate")), device="cpu").model.state_dict())
    short = short.model_copy(update={"open_run": short.open_run.model_copy(update={"seed": 0})})
    soup = with_train(short, average_seeds=2)
    log_step, steps = RunLog.log_step, []

    def dying(self: RunLog, step: int, *rest: object, **keywords: object) -> None:
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        log_step(self, step, *rest, **keywords)

    monkeypatch.setattr(RunLog, "log_step", dying)
    with pytest.raises(KeyboardInterrupt):
        run(soup, store)
    run(soup, store)
    assert steps == [1, 2, 1, 1, 2], "the first seed is trained once"
    found = ClipRetriever(str(store.folder("models", "candidate")), device="cpu").model.state_dict()
    assert all(torch.allclose(found[name], (alone[0][name] + alone[1][name]) / 2) for name in found)
    assert not list(store.folder(".run").glob("train/*"))


def test_trackers_get_the_metrics_and_a_missing_one_is_named(
    params: Params, store: Store, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError, match="'train.trackers' names wandb, which is not installed; `pip install wandb`"):
        run(with_train(params, trackers=("wandb",)), store)
    from accelerate import tracking
    from accelerate.utils import LoggerType

    logged, ended = [], []

    class Recorder(tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only = "mlflow", False, True
        tracker = None

        def __init__(self, run_name: str, **_: object) -> None:
            self.run_name = run_name

        def store_init_configuration(self, values: dict[str, object]) -> None:
            logged.append((0, values))

        def log(self, values: dict[str, object], step: int | None = None, **_: object) -> None:
            logged.append((step, values))

        def finish(self) -> None:
            ended.append(True)

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Recorder)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.MLFLOW])
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.MLFLOW])
    run(with_train(params, trackers=("mlflow",)), store)
    assert logged[0][1]["steps"] == "8" and [step for step, _ in logged[1:]] == [4, 12] and ended == [True]
    assert {"loss", "accuracy", "steps_per_s"} <= set(logged[-1][1])
