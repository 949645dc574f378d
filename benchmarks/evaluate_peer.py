"""The released evaluation script's way of encoding a gallery; run by benchmarks/evaluate.py, with any Python.

    python benchmarks/evaluate_peer.py FOLDER MODEL OUT [--batch 256] [--workers 8]

What VectorSpaceLab/MegaPairs' eval/flag_mmret.py does with a corpus of images, through the same calls of transformers
and torch, written anew: a DataLoader whose workers open one file and call the image processor on it, tensors stacked,
get_image_features in float32 without gradients, rows scaled to unit length. Writes OUT (.npy, images in order of name)
and prints one JSON object: images, cpu_s (with the workers', without imports and loading the model), transformers.
Imports nothing of this project: the released models recommend transformers 4.45.2, another environment.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import AutoImageProcessor, AutoModel


class Gallery(Dataset):  # type: ignore[type-arg]
    """One preprocessed image an item."""

    def __init__(self, paths: list[Path], processor: Any) -> None:
        self.paths, self.processor = paths, processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.processor(Image.open(self.paths[index]))


def collate(items: list[Any]) -> torch.Tensor:
    """A batch of pixels."""
    return torch.stack([torch.tensor(np.asarray(item["pixel_values"][0])) for item in items])


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = AutoModel.from_pretrained(args.model).eval(), AutoImageProcessor.from_pretrained(args.model)
    paths = sorted(args.folder.glob("*.jpg"))
    start = cpu_seconds()
    rows = []
    loader = DataLoader(
        Gallery(paths, processor), batch_size=args.batch, num_workers=args.workers, shuffle=False, collate_fn=collate
    )
    with torch.no_grad():
        for pixels in loader:
            out = model.get_image_features(pixels)
            rows.append(torch.nn.functional.normalize(getattr(out, "pooler_output", out), dim=-1).numpy())
    del loader
    found = {"images": len(paths), "cpu_s": cpu_seconds() - start, "transformers": transformers.__version__}
    np.save(args.out, np.concatenate(rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
