"""A CLIP in onnxruntime gives torch's vectors; what cannot be exported is refused with what can.

The graphs need the extra `onnx`; without it their tests are skipped, and those of the refusals still run.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.errors import ConfigError, DataError
from tasks.models.encoders.preprocess import Preparation
from tasks.models.retrievers import onnx_export
from tasks.models.retrievers.clip import ClipRetriever
from tasks.models.retrievers.mllm import MllmRetriever
from tasks.models.retrievers.onnx_export import INPUTS, drawn_images, export_onnx, require_clip
from tasks.pages.model_card import ModelFacts, model_card
from tests.support.tiny_mllm import save_tiny

CLIP = "tasks/sample/checkpoints/clip"
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None,
    reason="the extra onnx is not installed; `make install EXTRAS=onnx`",
)
ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from bge_vl_onnx import BGEVLOnnx
model = BGEVLOnnx(sys.argv[1])
np.save(sys.argv[3], model.encode(images=[sys.argv[2]] * 2, text=["make it blue", "a"]))
assert not {"torch", "transformers"} & set(sys.modules), "the reader needs neither"
"""


@pytest.fixture(scope="module")
def retriever() -> ClipRetriever:
    return ClipRetriever(CLIP, device="cpu")


@pytest.fixture(scope="module")
def exported(retriever: ClipRetriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert export_onnx(retriever, folder) <= 1e-6
    return folder


@needs_onnx
def test_the_graphs_share_their_weights_and_take_any_number_of_rows(exported: Path, retriever: ClipRetriever):
    import onnx
    import onnxruntime

    settings = json.loads((exported / "settings.json").read_text())
    assert settings["opset"] == 18 and settings["max_difference_from_torch"] <= 1e-6
    assert settings["revision"] == retriever.revision
    weights = sum(p.numel() * p.element_size() for p in retriever.model.parameters())
    assert (exported / "weights.bin").stat().st_size < 1.1 * weights, "each tensor is there once"
    for name, inputs in (*INPUTS.items(), ("composed", sum(INPUTS.values(), ()))):
        onnx.checker.check_model(str(exported / f"{name}.onnx"))
        assert str(Path.cwd()).encode() not in (exported / f"{name}.onnx").read_bytes(), "no path of this machine"
        model = onnx.load(str(exported / f"{name}.onnx"), load_external_data=False)
        assert [o.version for o in model.opset_import if o.domain == ""] == [18]
        session = onnxruntime.InferenceSession(str(exported / f"{name}.onnx"))
        assert {i.name for i in session.get_inputs()} == set(inputs)
        assert {o.name for o in session.get_outputs()} == {"features", "embedding"}
        assert all(isinstance(i.shape[0], str) for i in session.get_inputs()), "the number of rows is free"


@needs_onnx
def test_the_raw_features_of_both_towers_sum_to_the_composed_vector(exported: Path, retriever: ClipRetriever):
    reader = onnx_export.load_reader(exported)
    images, texts = drawn_images()[:2], ["make it blue", "remove the star and make it larger"]
    image = reader._session("image").run(["features"], {"pixel_values": np.stack([reader.pixels(i) for i in images])})
    text = reader._session("text").run(["features"], reader.tokens(texts))
    total = image[0] + text[0]
    composed = reader.encode(images, texts)
    assert np.allclose(total / np.linalg.norm(total, axis=1, keepdims=True), composed, atol=1e-6)
    assert np.abs(composed - retriever.encode(images, texts)).max() <= 1e-6
    with pytest.raises(ValueError, match="as many of both"):
        reader.encode(images, texts[:1])


@needs_onnx
@pytest.mark.parametrize("crop", [None, (32, 31)])
def test_a_processor_that_states_both_sides_is_followed_too(exported: Path, crop: tuple[int, int] | None):
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    ours = Preparation(None, (51, 40), crop, resample=3, mean=mean, std=std, rescale=1 / 255)
    reader = onnx_export.load_reader(exported)
    reader.settings |= {name: getattr(ours, name) for name in ("shortest_px", "resize_px", "crop_px", "mean", "std")}
    for image in drawn_images():
        expected = ours.normalize([ours.prepare_image(image)], "cpu")[0].numpy()
        assert np.allclose(reader.pixels(image), expected, atol=1e-5)


@needs_onnx
def test_the_reader_runs_without_torch(exported: Path, retriever: ClipRetriever, tmp_path: Path):
    image = drawn_images()[-1]
    image.save(tmp_path / "query.png")  # with transparency
    words = [sys.executable, "-c", ALONE, str(exported), str(tmp_path / "query.png"), str(tmp_path / "rows.npy")]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert np.allclose(np.load(tmp_path / "rows.npy"), retriever.encode([image] * 2, ["make it blue", "a"]), atol=1e-6)


@needs_onnx
def test_the_cards_lines_run(exported: Path, retriever: ClipRetriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    facts = ModelFacts("model/1", "dataset/1", "base", {}, "better", has_onnx=True)
    card = model_card({"metrics": {"base": {"composed": {"map_at_5": 0.3}}}}, facts)
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL) if "onnx" in b]
    images = drawn_images()[:3]
    for name, image in zip(("query", "one", "two"), images, strict=True):
        image.save(tmp_path / f"{name}.jpg", quality=100)
    shutil.copytree(exported, tmp_path / "models/promoted/onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict[str, np.ndarray] = {}
    exec(block, names)
    opened = [Image.open(f"{name}.jpg") for name in ("query", "one", "two")]
    expected = retriever.encode(opened[:1], ["make it blue"]) @ retriever.encode(opened[1:]).T
    assert names["scores"].shape == (1, 2) and np.allclose(names["scores"], expected, atol=1e-5)


@needs_onnx
def test_graphs_that_give_other_vectors_are_not_left(
    retriever: ClipRetriever, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def other(clip: object, folder: Path) -> None:
        for path in exported.glob("*.onnx"):
            (folder / path.name).write_bytes(path.read_bytes())
        rows = np.fromfile(exported / "weights.bin", np.float32)
        (rows * 1.01).astype(np.float32).tofile(folder / "weights.bin")

    monkeypatch.setattr(onnx_export, "write_graphs", other)
    with pytest.raises(DataError, match=r"differ from torch's by .*expected at most 1e-05"):
        export_onnx(retriever, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_without_the_extra_the_error_says_what_to_install(
    retriever: ClipRetriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(onnx_export, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(ConfigError, match=r"no_such_package not installed; `make install EXTRAS=onnx`"):
        export_onnx(retriever, tmp_path / "onnx")


def test_an_mllm_and_another_preparation_are_refused_with_what_is_supported(tmp_path: Path):
    mllm = MllmRetriever(str(save_tiny("llava_next", tmp_path / "base")), device="cpu")
    with pytest.raises(ConfigError, match="an MLLM .* supported are models of the CLIP type"):
        require_clip(mllm)
    clip = ClipRetriever(CLIP, device="cpu")
    clip.preparation = None
    with pytest.raises(ConfigError, match="expected a processor as CLIP's"):
        require_clip(clip)
