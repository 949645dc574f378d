"""The writer: a small Llama that turns a description into an instruction of a given style. 0.7 M parameters, 1.4 MB.

Trained on random descriptions rather than on scenes, so that it copies names instead of learning which are likely.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tasks.sample import phrases, tokens
from tasks.sample.common import TrainingLog, cosine_schedule, held_out_pairs, save, seed_training
from tasks.sample.scenes import ATTRIBUTES, BACKGROUNDS, KINDS, PLACES, Edit, difference, random_scene, shared


def build() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """An untrained model and its tokenizer."""
    words = tokens.tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.do_sample = False
    return model, words


def random_difference(rng: random.Random, most: int = 4) -> tuple[list[Edit], list[str]]:
    """One to `most` random edits and random items that both images share; of no two scenes, only of the same words."""
    common = [item.name for item in random_scene(rng).objects][: rng.randint(0, most - 1)]
    if rng.random() < 0.6:
        common.append(f"{rng.choice(tuple(BACKGROUNDS))} background")
    edits = []
    for _ in range(rng.choices(range(1, most + 1), (40, 35, 20, 5)[:most])[0]):
        kind = rng.choice(KINDS)
        name = "" if kind == "background" else rng.choice(random_scene(rng).objects).name
        values = {"background": tuple(BACKGROUNDS), "move": PLACES, "add": PLACES, "remove": ("",)} | ATTRIBUTES
        edits.append(Edit(kind, name, rng.choice(values[kind])))
    return edits, common


def encode_request(words: PreTrainedTokenizerFast, description: str, style: str) -> list[int]:
    """Token ids of the request, up to where the instruction begins."""
    content = tokens.prompt("write").format(style=style, description=description)
    chat = words.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    return words(chat, add_special_tokens=False).input_ids


@torch.no_grad()
def measure(model: LlamaForCausalLM, words: PreTrainedTokenizerFast, count: int = 200) -> dict[str, object]:
    """Held-out pairs: shares of instructions written exactly, by style."""
    model.eval()
    pairs = held_out_pairs(count, seed=81)
    out: dict[str, object] = {}
    for style in phrases.STYLES:
        gold = [phrases.instruction(difference(s, t), shared(s, t), style) for s, t in pairs]
        requests = [encode_request(words, phrases.describe(s, t), style) for s, t in pairs]
        inputs = words.pad({"input_ids": requests}, padding_side="left", return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=64)[:, inputs["input_ids"].shape[1] :]
        texts = [text.strip() for text in words.batch_decode(ids, skip_special_tokens=True)]
        out[style] = round(sum(a == b for a, b in zip(gold, texts, strict=True)) / count, 4)
    model.train()
    return out


def train(folder: Path, *, seed: int = 0, steps: int = 1300, batch: int = 64) -> None:
    """Train from scratch into `folder`."""
    rng = seed_training(seed)
    log = TrainingLog(folder)
    model, words = build()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * cosine_schedule(step, steps)
        rows = []
        for _ in range(batch):
            edits, common = random_difference(
                rng, 1 if step < 0.3 * steps else 4
            )  # copying is learnt on short texts first
            style = rng.choice(phrases.STYLES)
            answer = words(phrases.instruction(edits, common, style), add_special_tokens=False).input_ids + [
                words.eos_token_id
            ]
            rows.append((encode_request(words, phrases.description(edits, common), style), answer))
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        total, count = torch.zeros(()), 0
        for part in (rows[: batch // 2], rows[batch // 2 :]):
            length = max(len(q) + len(a) for q, a in part)
            ids = torch.full((len(part), length), words.pad_token_id)
            labels = torch.full((len(part), length), -100)
            for i, (q, a) in enumerate(part):
                ids[i, : len(q) + len(a)] = torch.tensor(q + a)
                labels[i, len(q) - 1 : len(q) + len(a) - 1] = torch.tensor(a)
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            is_answer = labels != -100
            total = total + F.cross_entropy(model.lm_head(hidden[is_answer]), labels[is_answer], reduction="sum")
            count += int(is_answer.sum())
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            log.write(
                step=step + 1,
                loss=round(float(loss), 4),
                **(measure(model, words, 40) if (step + 1) % 200 == 0 else {}),
            )
    log.write(stage="end", **measure(model, words))
    save(folder, model, words)
