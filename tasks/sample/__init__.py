"""The sample world: procedural scenes, their truth, and the tiny checkpoints trained on them."""
