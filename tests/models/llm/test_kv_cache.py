"""Key-value caches: a growing one equals a plain one; a prefill is whole although it skips work."""

import torch
from transformers.cache_utils import DynamicCache

from tasks.models.llm.kv_cache import growing_cache, prefill_cache, select_rows
from tasks.models.llm.local_captioner import LocalCaptioner


def test_a_growing_cache_holds_what_a_plain_one_holds(small_batches: LocalCaptioner):
    config = small_batches.model.config
    plain, growing = DynamicCache(config=config), growing_cache(config)
    torch.manual_seed(0)
    for tokens in (5, 1, 1, 70, 1, 3, 200):  # within its room, beyond it, and beyond twice of it
        for layer in range(2):
            keys, values = torch.randn(2, 6, tokens, 32), torch.randn(2, 6, tokens, 32)
            expected, states = plain.update(keys, values, layer), growing.update(keys, values, layer)
            assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True))
        assert growing.get_seq_length() == plain.get_seq_length()
        assert growing.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)


def test_a_prefill_skips_the_rest_of_the_last_layer_and_its_rows_can_be_selected(small_batches: LocalCaptioner):
    config, body = small_batches.model.config, small_batches.model.model
    rows = torch.randn(3, 7, config.text_config.hidden_size, generator=torch.Generator().manual_seed(1))
    inputs = {"inputs_embeds": rows, "attention_mask": torch.ones(3, 7, dtype=torch.long)}
    last_layer_calls: list[int] = []
    with torch.inference_mode():
        expected = body(**inputs, use_cache=True).past_key_values
        hook = body.text_model.layers[-1].mlp.register_forward_pre_hook(lambda *_: last_layer_calls.append(1))
        cache = prefill_cache(body, config, **inputs)
        hook.remove()
    assert last_layer_calls == []
    assert len(cache.layers) == len(expected.layers) and cache.get_seq_length() == 7
    for a, b in zip(cache.layers, expected.layers, strict=True):
        assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
    selected = select_rows(cache, torch.tensor([2, 0, 2]), 12)
    assert selected.get_mask_sizes(2, 0) == (12, 0) and selected.get_seq_length() == 7
    new = torch.ones(3, 6, 2, 32)
    keys, _ = selected.update(new, new, 0)
    assert keys.shape[2] == 12 and torch.equal(keys[:, :, :7], cache.layers[0].keys[[2, 0, 2]])
    assert torch.equal(keys[:, :, 7:9], new) and not keys[:, :, 9:].any()
    assert cache.get_seq_length() == 7  # the cache that it was selected from is unchanged
