"""The training loop and its options, each against its plain form."""

import pytest
import torch

from tasks.config import Params
from tasks.errors import ConfigError
from tasks.models.retrievers.clip import ClipRetriever
from tasks.store import Store
from tasks.train.trainer import Trainer, learning_rate_at
from tests.support.training import fit, fit_clip, training_data, with_train


def test_the_learning_rate_rises_and_falls_linearly():
    rates = [learning_rate_at(n, steps=10, warmup=2, peak=1.0) for n in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[-1] == 1 / 8
    assert all(0 < later <= earlier for earlier, later in zip(rates[2:], rates[3:], strict=False))


@pytest.mark.parametrize("option", [{"cache_chunk": 3}, {"gradient_checkpointing": True}, {"decode_workers": 2}])
def test_options_that_save_memory_or_time_change_no_result(params: Params, store: Store, option: dict[str, object]):
    plain, curve = fit_clip(params, store)
    other, other_curve = fit_clip(params, store, **option)
    assert torch.allclose(plain, other, atol=1e-3), "AdamW turns a gradient's last bit into a whole step"
    for one, two in zip(curve, other_curve, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-3)
    assert torch.equal(plain, other) or "cache_chunk" in option


def test_the_locked_phase_changes_the_text_tower_alone_and_learns(params: Params, store: Store):
    config = with_train(params, locked_steps=20, locked_batch_triplets=8, locked_learning_rate=2e-3).train
    retriever = ClipRetriever(config.base_model, device="cpu", threads=1)
    before = {k: v.clone() for k, v in retriever.model.state_dict().items()}
    curve = Trainer(retriever, config, seed=0).fit_text_tower(training_data(store, retriever))
    changed = {k.split(".")[0] for k, v in retriever.model.state_dict().items() if not v.equal(before[k])}
    assert changed == {"text_model", "text_projection"}
    assert curve[-1]["loss"] < curve[0]["loss"] and curve[0]["images"] == 24, "every image is a candidate"


def test_bfloat16_trains_and_leaves_float32_weights(params: Params, store: Store):
    plain, curve = fit_clip(params, store, locked_steps=0, steps=2)
    half, half_curve = fit_clip(params, store, locked_steps=0, steps=2, precision="bfloat16")
    assert half.dtype == torch.float32 and not torch.equal(plain, half)
    assert half_curve[0]["loss"] == pytest.approx(curve[0]["loss"], rel=0.05)


def test_with_gradient_caching_both_passes_of_bfloat16_are_bfloat16(params: Params, store: Store):
    config = with_train(params, precision="bfloat16", cache_chunk=3, locked_steps=0, steps=1).train
    retriever, passes = ClipRetriever(config.base_model, device="cpu", threads=1), []
    retriever.model.visual_projection.register_forward_hook(
        lambda module, given, out: passes.append((out.dtype, torch.is_grad_enabled()))
    )
    fit(retriever, config, store)
    assert {dtype for dtype, _ in passes} == {torch.bfloat16}
    assert sum(has_gradient for _, has_gradient in passes) == len(passes) / 2 > 1


def test_a_learnt_temperature_starts_at_the_configured_one_and_is_saved_as_logit_scale(params: Params, store: Store):
    config = with_train(params, learn_temperature=True, temperature=0.05, locked_steps=0, learning_rate=1e-2).train
    retriever = ClipRetriever(config.base_model, device="cpu")
    curve = fit(retriever, config, store)
    learnt = float((-retriever.model.logit_scale.detach()).exp())
    assert curve[-1]["temperature"] == pytest.approx(learnt, abs=1e-3)
    assert learnt != pytest.approx(0.05, abs=1e-4) and 0.03 < learnt < 0.08
    fixed, _ = fit_clip(params, store, locked_steps=0, steps=1)
    assert float(fixed[0]) == pytest.approx(2.6592, abs=1e-4), "a fixed temperature leaves the model's own alone"
    del retriever.model.logit_scale
    with pytest.raises(ConfigError, match="has no logit_scale"):
        fit(retriever, config, store)


def test_options_of_the_loss_have_figures_of_their_own(params: Params, store: Store):
    _, curve = fit_clip(params, store, mask_margin=0.1, judge_weight=0.5)
    assert {"masked", "divergence"} <= set(curve[-1]) and curve[-1]["divergence"] > 0
    assert not {"masked", "divergence", "temperature"} & set(fit_clip(params, store, steps=1)[1][-1])
