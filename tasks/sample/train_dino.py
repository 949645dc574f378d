"""A small DINOv2 encoder, self-supervised: a student and a slowly following teacher see different crops of an image.

No label and no caption is used: the student's prototype scores of every crop must match the teacher's (centred,
sharpened) of another crop of the same image (DINO, arXiv:2104.14294). The CLS token is the embedding. 0.7 M parameters,
1.4 MB.

DINOv2's KoLeo term (arXiv:2304.07193, section 4) spreads the student's CLS over the sphere. Without it, images
collapsed into clusters within 400 steps: the median nearest neighbour had a cosine of 1.0000, and mining got worse the
longer it was trained.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from tasks.sample.common import (
    TrainingLog,
    cosine_schedule,
    render_view,
    save,
    seed_training,
    to_pixel_values,
    train_scene,
)
from tasks.sample.scenes import SIDE_PX, draw, family

PROTOTYPES = 512
KOLEO = 0.1  # weight of the term, as in DINOv2


def build() -> tuple[Dinov2Model, object]:
    """An untrained model and its image processor (the class of `facebook/dinov2-large`; Pillow, no torchvision)."""
    try:
        from transformers import BitImageProcessorPil as ImageProcessor
    except ImportError:
        ImageProcessor = BitImageProcessor
    config = Dinov2Config(
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        mlp_ratio=4,
        image_size=SIDE_PX,
        patch_size=16,
        layerscale_value=0.5,
    )
    half = [0.5] * 3
    side = {"height": SIDE_PX, "width": SIDE_PX}
    return Dinov2Model(config), ImageProcessor(
        size={"shortest_edge": SIDE_PX}, crop_size=side, image_mean=half, image_std=half
    )


class Head(nn.Module):
    """CLS (n, 128) -> prototype scores (n, PROTOTYPES): cosine with learnt directions."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 64))
        self.directions = nn.Parameter(torch.randn(PROTOTYPES, 64))

    def forward(self, cls: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.mlp(cls), dim=-1) @ F.normalize(self.directions, dim=-1).T


def crops(values: torch.Tensor, share: tuple[float, float], side_px: int, generator: torch.Generator) -> torch.Tensor:
    """One random square crop of each image, scaled to `side_px`, its brightness and contrast shifted a little.

    Args:
        values: (n, 3, h, h) in [-1, 1].
        share: least and greatest side of the crop, as a share of the image's.
    """
    n = values.shape[0]
    noise = torch.rand(5, n, generator=generator)
    scale = share[0] + (share[1] - share[0]) * noise[0]
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = (2 * noise[1] - 1) * (1 - scale), (2 * noise[2] - 1) * (1 - scale)
    grid = F.affine_grid(theta, [n, 3, side_px, side_px], align_corners=False)
    out = F.grid_sample(values, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return out * (0.85 + 0.3 * noise[3])[:, None, None, None] + (0.2 * noise[4] - 0.1)[:, None, None, None]


def koleo(cls: torch.Tensor) -> torch.Tensor:
    """Mean of -log of the distance to the nearest other row; `cls` (n, d) is scaled to unit length first."""
    unit = F.normalize(cls, dim=-1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return -((unit - unit[nearest]).norm(dim=-1) + 1e-8).log().mean()


@torch.no_grad()
def measure(model: Dinov2Model, families: int = 120, members: int = 4) -> dict[str, object]:
    """Held-out families: how often an image's nearest neighbour is of its family, and the mean cosine to all others."""
    model.eval()
    rng = random.Random(80)
    scenes = [s for _ in range(families) for s in family(rng, "benchmark", members)]
    out = [
        model(pixel_values=to_pixel_values([draw(s, rendering=3) for s in scenes[i : i + 240]]))
        for i in range(0, len(scenes), 240)
    ]
    vectors = F.normalize(torch.cat([o.last_hidden_state[:, 0] for o in out]), dim=-1)
    near = vectors @ vectors.T
    mean = float(near.mean())
    near.fill_diagonal_(-9)
    same = near.argmax(1) // members == torch.arange(len(scenes)) // members
    model.train()
    return {"neighbour_of_family": round(float(same.float().mean()), 3), "mean_cosine": round(mean, 3)}


def train(folder: Path, *, seed: int = 0, steps: int = 300, batch: int = 128) -> None:
    """Train from scratch into `folder`; what is saved is the teacher."""
    rng = seed_training(seed)
    generator = torch.Generator().manual_seed(seed)
    log = TrainingLog(folder)
    model, images = build()
    student = nn.ModuleList([model, Head()]).train()
    teacher = copy.deepcopy(student).requires_grad_(False)
    centre = torch.zeros(PROTOTYPES)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.04, fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * cosine_schedule(step, steps)
        values = to_pixel_values([render_view(train_scene(rng), rng) for _ in range(batch)])
        wide = [crops(values, (0.75, 1.0), SIDE_PX, generator) for _ in range(2)]
        narrow = [crops(values, (0.4, 0.65), SIDE_PX // 2, generator) for _ in range(2)]
        with torch.no_grad():
            scores = teacher[1](teacher[0](pixel_values=torch.cat(wide)).last_hidden_state[:, 0])
            goals = ((scores - centre) / 0.05).softmax(-1).chunk(2)
            centre = 0.9 * centre + 0.1 * scores.mean(0)
        cls = student[0](pixel_values=torch.cat(wide)).last_hidden_state[:, 0]
        guesses = list(student[1](cls).chunk(2))
        guesses += student[1](student[0](pixel_values=torch.cat(narrow)).last_hidden_state[:, 0]).chunk(2)
        terms = [
            -(g * (p / 0.1).log_softmax(-1)).sum(-1).mean()
            for i, g in enumerate(goals)
            for j, p in enumerate(guesses)
            if i != j
        ]
        loss = torch.stack(terms).mean() + KOLEO * torch.stack([koleo(c) for c in cls.chunk(2)]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        pace = 1 - 0.01 * cosine_schedule(step, steps, warm=1, floor=0.1)
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(pace).add_(fast, alpha=1 - pace)
        if (step + 1) % 20 == 0:
            log.write(
                step=step + 1, loss=round(float(loss), 4), **(measure(teacher[0]) if (step + 1) % 100 == 0 else {})
            )
    log.write(stage="end", **measure(teacher[0]))
    save(folder, teacher[0], images)
