"""The lines of Python on the model card run as they stand, and both ways give the same scores."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.models.retrievers.clip import ClipRetriever
from tasks.models.retrievers.mllm import MllmRetriever
from tasks.models.retrievers.published.bge_vl_prompts import CIR_INSTRUCTION
from tasks.pages.model_card import ModelFacts, model_card
from tests.support.tiny_mllm import images, save_tiny


@pytest.mark.parametrize("kind", ["clip", "llava_next"])
def test_the_usage_lines_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    clip = "tasks/sample/checkpoints/clip"
    model: Any
    if kind == "clip":
        model = ClipRetriever(clip, device="cpu")
    else:
        model = MllmRetriever(str(save_tiny(kind, tmp_path / "base")), device="cpu")
    model.save(tmp_path / "models/promoted")
    for name, image in zip(("query", "one", "two"), images(3), strict=True):
        image.save(tmp_path / f"{name}.jpg")
    facts = ModelFacts("model/1", "dataset/1", "base", {}, "better", kind=kind, instruction=CIR_INSTRUCTION)
    card = model_card({"metrics": {"base": {"composed": {"map_at_5": 0.3}}}}, facts)
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    scores = []
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        scores.append(np.asarray(names["scores"]))
    assert scores[0].shape == (1, 2) and np.allclose(scores[0], scores[1], atol=1e-4)
