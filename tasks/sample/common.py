"""What the training scripts share: worker processes, images as tensors, the learning-rate schedule, saving, the log."""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from transformers import PreTrainedModel

from tasks.sample.scenes import SIDE_PX, Scene, assign_split, difference, draw, family, random_scene


def seed_training(seed: int) -> random.Random:
    """Seed torch, set its threads by OMP_NUM_THREADS (2 by default), and return the run's random generator."""
    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    return random.Random(seed)


WORKERS = 2  # processes of one thread each; fixed, so that training does the same work on any machine


def run_workers(work: Callable[..., None], *arguments: object) -> None:
    """Run `work(rank, *arguments)` in WORKERS processes, which call `average_gradients` once a step.

    Two processes of one thread each synchronise once a step, two threads of one process thousands of times: measured on
    two cores shared with one other busy process, the first kept 2/3 of its speed, the second 1/8.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run_worker, args=(work, f"file://{folder}/rendezvous", arguments), nprocs=WORKERS, daemon=True)


def _run_worker(rank: int, work: Callable[..., None], init_method: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=WORKERS)
    try:
        work(rank, *arguments)
    finally:
        dist.destroy_process_group()


def average_gradients(weights: Iterable[torch.nn.Parameter]) -> None:
    """Replace each worker's gradients by their mean over all workers."""
    grads = [w.grad for w in weights if w.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= WORKERS
    for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def train_scene(rng: random.Random) -> Scene:
    """A random scene of the split 'train'."""
    while True:
        scene = random_scene(rng)
        if assign_split(scene) == "train":
            return scene


def degrade(image: np.ndarray, rng: random.Random, strength: float = 1.0) -> np.ndarray:
    """The image (h, w, 3) uint8 degraded as web images are: JPEG, resized and back, noise, or unchanged.

    Args:
        image: (h, w, 3) uint8.
        rng: draws the kind and its parameters.
        strength: scales the share of degraded images; 1: half of them.
    """
    draw_share = rng.random() / max(strength, 1e-9)
    if draw_share < 0.15:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=rng.randint(55, 95))
        return np.asarray(Image.open(file))
    if draw_share < 0.27:
        side = rng.choice((64, 72, 128, 160, 192))
        filters = (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BICUBIC)
        resized = Image.fromarray(image).resize((side, side), rng.choice(filters))
        return np.asarray(resized.resize((SIDE_PX, SIDE_PX), rng.choice(filters)))
    if draw_share < 0.5:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 8), image.shape)
        return np.clip(image + noise + rng.uniform(-8, 8), 0, 255).astype(np.uint8)
    return image


def to_pixel_values(images: Sequence[np.ndarray]) -> torch.Tensor:
    """(n, 3, 96, 96) float32 in [-1, 1], as the processors give for 96 px images (mean and deviation 0.5)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def render_view(scene: Scene, rng: random.Random, strength: float = 1.0) -> np.ndarray:
    """A new drawing of the scene, degraded."""
    return degrade(draw(scene, rendering=rng.getrandbits(30)), rng, strength)


def held_out_pairs(count: int, seed: int, split: str = "benchmark") -> list[tuple[Scene, Scene]]:
    """Ordered pairs of one family from a split that training never sees, in 50/35/15% of 1/2/3 edits."""
    rng = random.Random(seed)
    edit_counts = [1] * round(0.5 * count) + [2] * round(0.35 * count)
    edit_counts += [3] * (count - len(edit_counts))
    pairs = []
    for edits in edit_counts:
        while True:
            one, other = rng.sample(family(rng, split, 4), 2)
            if len(difference(one, other)) == edits:
                pairs.append((one, other))
                break
    return pairs


def cosine_schedule(step: int, steps: int, warm: int = 40, floor: float = 0.03) -> float:
    """Share of the peak learning rate at a step: linear warm-up of `warm` steps, then half a cosine down to `floor`."""
    return (
        (step + 1) / warm if step < warm else floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
    )


def save(folder: Path, model: PreTrainedModel, *others: object) -> None:
    """Save the model in float16 with its processors or tokenizer: under a temporary name, then renamed to `folder`."""
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    for path in (temporary, old):
        shutil.rmtree(path, ignore_errors=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    dtype = getattr(model.config, "dtype", None)
    model.config.dtype = torch.float16
    model.save_pretrained(temporary, state_dict=state)
    model.config.dtype = dtype
    for other in others:
        other.save_pretrained(temporary)  # type: ignore[attr-defined]
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


class TrainingLog:
    """The training curve: one JSON line per record, to stdout and to `<folder>/../curves/<name>.jsonl`."""

    def __init__(self, folder: Path, *, is_silent: bool = False) -> None:
        self.path = folder.parent / "curves" / f"{folder.name}.jsonl"
        self.start, self.is_silent = time.process_time(), is_silent
        if not is_silent:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("")

    def write(self, **record: object) -> None:
        """Write one record, with the CPU seconds of this process so far; nothing where `is_silent`."""
        if self.is_silent:
            return
        record["cpu_s"] = round(time.process_time() - self.start, 1)
        line = json.dumps(record)
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")
