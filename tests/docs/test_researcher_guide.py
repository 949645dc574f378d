"""The Python that the researcher's guide shows runs as it stands."""

import glob
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from tasks.__main__ import main
from tasks.models.retrievers.clip import ClipRetriever
from tasks.store import Store
from tests.support.tiny import save_narrow_clip, save_version


@pytest.mark.slow
def test_sentence_transformers_trains_a_step_on_the_export(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed (extra 'dev')")
    page = (project / "docs/researcher.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    (export,) = re.findall(r"\n```\npython -m tasks (export --sentence-transformers .*)\n```\n", page)
    save_version(tmp_path)
    ClipRetriever(str(save_narrow_clip(tmp_path / "base")), device="cpu").save(tmp_path / "models/promoted")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.chdir(tmp_path)
    assert main(export.split()) == 0
    names: dict[str, Any] = {}
    exec(block, names)

    assert names["rows"].column_names == ["anchor", "positive", "negative"] and len(names["rows"]) == 16
    # eight triplets of two instructions: a batch of eight has each target once
    batch = next(iter(names["trainer"].get_train_dataloader().batch_sampler))
    assert len({names["rows"][n]["positive"]["image"] for n in batch}) == len(batch) == 8
    queries = [row["anchor"] for row in names["rows"].select(range(4))]
    load = names["SentenceTransformer"]
    before, after = (load(f, trust_remote_code=True).encode(queries) for f in ("models/promoted", "tuned/model"))
    assert before.shape == after.shape and not np.allclose(before, after, atol=1e-6)
    assert np.allclose(after, names["model"].encode(queries), atol=1e-6)


def test_vectors_and_their_ids_are_read_by_the_lines_of_the_guide(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (line,) = [line for line in (project / "docs/researcher.md").read_text().splitlines() if "- Vectors: " in line]
    read_ids, read_vectors = re.findall(r"`([^`]+)`", line)
    rows = np.eye(4, dtype=np.float16)
    for number, batch in enumerate(("2026.01.11", "2026.01.04")):
        ids = [f"{batch} {n}" for n in range(2)]
        Store(tmp_path).write_embeddings("semantic", f"{batch}-00000.tar", "r1", ids, rows[2 * number :][:2])
    monkeypatch.chdir(tmp_path)
    names = {"pandas": pandas, "numpy": np, "glob": glob}
    ids, vectors = list(eval(read_ids, names)["image_id"]), eval(read_vectors, names)
    assert dict(zip(ids, vectors.argmax(axis=1).tolist(), strict=True)) == {
        "2026.01.11 0": 0, "2026.01.11 1": 1, "2026.01.04 0": 2, "2026.01.04 1": 3
    }  # fmt: skip
