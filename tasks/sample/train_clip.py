"""A small CLIP: two towers of 3 layers of width 128, contrastive over scenes and captions; 1.4 M parameters, 2.8 MB.

Trained on captions only, not on instructions, like the public base model, so that the effect of fine-tuning on the
factory's triplets can be measured. Good enough to mine with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from tasks.sample import phrases, tokens
from tasks.sample.common import (
    TrainingLog,
    cosine_schedule,
    held_out_pairs,
    render_view,
    save,
    seed_training,
    to_pixel_values,
    train_scene,
)
from tasks.sample.scenes import SIDE_PX, draw

TEXT_LENGTH = 77  # tokens, as in openai/clip-vit-large-patch14


def build() -> tuple[CLIPModel, CLIPProcessor]:
    """An untrained model and its processor."""
    try:
        from transformers import CLIPImageProcessorPil as ImageProcessor
    except ImportError:
        from transformers import CLIPImageProcessor as ImageProcessor  # type: ignore[assignment]
    words = tokens.tokenizer(clip=True)
    half = [0.5] * 3
    side = {"height": SIDE_PX, "width": SIDE_PX}
    images = ImageProcessor(size={"shortest_edge": SIDE_PX}, crop_size=side, image_mean=half, image_std=half)
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(words), "max_position_embeddings": TEXT_LENGTH},
        vision_config={**tower, "image_size": SIDE_PX, "patch_size": 16},
        projection_dim=128,
    )
    return CLIPModel(config), CLIPProcessor(image_processor=images, tokenizer=words)


def image_vectors(model: CLIPModel, values: torch.Tensor) -> torch.Tensor:
    """(n, 128) of unit length, from (n, 3, 96, 96) pixels."""
    out = model.get_image_features(pixel_values=values)
    return F.normalize(getattr(out, "pooler_output", out), dim=-1)


def text_vectors(model: CLIPModel, processor: CLIPProcessor, texts: Sequence[str]) -> torch.Tensor:
    """(n, 128) of unit length, from texts."""
    tokenized = processor.tokenizer(
        list(texts), padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
    )
    out = model.get_text_features(input_ids=tokenized.input_ids, attention_mask=tokenized.attention_mask)
    return F.normalize(getattr(out, "pooler_output", out), dim=-1)


@torch.no_grad()
def measure(model: CLIPModel, processor: CLIPProcessor, queries: int = 400) -> dict[str, object]:
    """Recall at 1 and 10 on held-out pairs: caption -> image, image -> target, image + instruction (summed) -> target.

    The gallery is every query and target image of the `queries` pairs; for the last two without the query image itself.
    """
    model.eval()
    pairs = held_out_pairs(queries, seed=79)
    of_query = image_vectors(model, to_pixel_values([draw(s, rendering=1) for s, _ in pairs]))
    of_target = image_vectors(model, to_pixel_values([draw(t, rendering=2) for _, t in pairs]))
    gallery = torch.cat([of_target, of_query])
    texts = [phrases.instruction(phrases.difference(s, t), phrases.shared(s, t), "imperative") for s, t in pairs]
    instructions = text_vectors(model, processor, texts)
    captions = text_vectors(model, processor, [phrases.caption(t) for _, t in pairs])
    rows = torch.arange(queries)
    out: dict[str, object] = {}
    for name, vectors in (
        ("caption", captions),
        ("image", of_query),
        ("composed", F.normalize(of_query + instructions, dim=-1)),
    ):
        scores = vectors @ gallery.T
        if name != "caption":
            scores[rows, queries + rows] = -9.0
        rank = (scores > scores.gather(1, rows[:, None])).sum(1)
        out[f"{name}_recall_1_10"] = [round(float((rank < k).float().mean()), 3) for k in (1, 10)]
    model.train()
    return out


def train(folder: Path, *, seed: int = 0, steps: int = 480, batch: int = 192) -> None:
    """Train from scratch into `folder`."""
    rng = seed_training(seed)
    log = TrainingLog(folder)
    model, processor = build()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    rows = torch.arange(batch)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * cosine_schedule(step, steps)
        scenes = [train_scene(rng) for _ in range(batch)]
        texts = [phrases.web_caption(s, rng) if rng.random() < 0.7 else phrases.caption(s) for s in scenes]
        images = image_vectors(model, to_pixel_values([render_view(s, rng, 0.5) for s in scenes]))
        logits = model.logit_scale.exp() * images @ text_vectors(model, processor, texts).T
        loss = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        if (step + 1) % 20 == 0:
            log.write(
                step=step + 1,
                loss=round(float(loss), 4),
                **(measure(model, processor) if (step + 1) % 120 == 0 else {}),
            )
    log.write(stage="end", **measure(model, processor))
    save(folder, model, processor)
