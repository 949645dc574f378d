"""The vectors that benchmarks of the search are measured on, float16 unit rows, made once and kept in a folder.

    clustered   Gaussian around 2,000 themes and n / 30 subjects, a power-law spectrum, 3% near-copies: what the
                vectors of image encoders look like
    scenes      images of the sample world under the committed CLIP (tasks/sample/checkpoints/clip)

Each file is made in a process of its own, so that the benchmark's peak memory is the search's.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tasks.store.atomic import atomic_write

ROWS = 100_000  # rows at a time; part of the definition of `clustered`: it orders the random draws


def clustered(n: int, d: int = 512, seed: int = 0) -> np.ndarray:
    """(n, d) float32 unit rows; the draws are those of the project's first measurements, so their figures compare."""
    rng = np.random.default_rng(seed)
    spread = (np.arange(1, d + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(np.random.default_rng(7).standard_normal((d, d)))[0].astype(np.float32)
    themes, subjects = 2000, max(1, n // 30)
    middles = rng.standard_normal((themes, d), dtype=np.float32) * spread
    middles = (
        middles[rng.integers(0, themes, subjects)] + 0.7 * rng.standard_normal((subjects, d), dtype=np.float32) * spread
    )
    out = np.empty((n, d), np.float32)
    for start in range(0, n, ROWS):
        count = min(ROWS, n - start)
        out[start : start + count] = (
            middles[rng.integers(0, subjects, count)]
            + 0.45 * rng.standard_normal((count, d), dtype=np.float32) * spread
        )
    copies = n * 3 // 100
    originals = rng.integers(0, n - copies, copies)
    out[n - copies :] = out[originals] + 0.1 * rng.standard_normal((copies, d), dtype=np.float32) * spread
    out = out[rng.permutation(n)]
    for start in range(0, n, ROWS):
        rows = out[start : start + ROWS] @ turn
        out[start : start + ROWS] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def scenes(n: int, seed: int = 0) -> np.ndarray:
    """(n, d) float32 unit rows: images of families of scenes of the sample world, encoded by the committed CLIP."""
    from tasks.config import load_params
    from tasks.models.encoders.load import load_encoder
    from tasks.sample.scenes import draw_image, family

    rng = random.Random(seed)
    model = load_encoder(load_params().embed.encoders["semantic"], "cpu", 1)
    blocks: list[np.ndarray] = []
    made, images = 0, []
    while made < n:
        images += [
            draw_image(scene, rendering=rng.randrange(1 << 30)) for scene in family(rng, "corpus", rng.randint(4, 12))
        ]
        if len(images) >= 256 or made + len(images) >= n:
            blocks.append(model.encode_images(images[: n - made]))
            made += len(blocks[-1])
            images = []
    return np.concatenate(blocks)


KINDS: dict[str, Callable[..., np.ndarray]] = {"clustered": clustered, "scenes": scenes}


def stored(kind: str, n: int, folder: Path, seed: int = 0) -> np.ndarray:
    """The float16 rows, mapped from their file; made first where there is none."""
    path = folder / f"{kind}-{n}-{seed}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "benchmarks.vectors", kind, str(n), str(seed), str(path)], check=True)
    return np.load(path, mmap_mode="r")


def main() -> None:
    """kind n seed path: write one file atomically."""
    kind, n, seed, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, KINDS[kind](n, seed=seed).astype(np.float16))


if __name__ == "__main__":
    main()
