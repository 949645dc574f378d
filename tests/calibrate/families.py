"""Vectors in families, as near-neighbours searches meet them."""

import numpy as np


def families(count: int, members: int, spread: float) -> np.ndarray:
    """Unit rows in families, far from each other, (count * members, 32) float16."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(count, 32)), members, axis=0) + spread * rng.normal(size=(count * members, 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
