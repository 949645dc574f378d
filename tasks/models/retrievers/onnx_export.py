"""A CLIP retriever as ONNX graphs: image tower, text tower, and the vector of both together, checked against torch.

torch's exporter writes each tower; the third graph joins them, and all share one file of weights:

    image.onnx      pixel_values                            settings.json    preparation, opset, what was reached
    text.onnx       input_ids, attention_mask               tokenizer.json   of the published model
    composed.onnx   all three inputs                        bge_vl_onnx.py   a reader without torch
    weights.bin     of all three

Each gives `features` (raw; the composed ones are the sum) and `embedding` (the same, scaled to unit length).

The reader (tasks/models/retrievers/published/onnx/bge_vl_onnx.py) then encodes drawn images of several modes and shapes
and texts of several lengths in several batch sizes; a vector that differs from torch's by more than `MAX_DIFFERENCE`
is an error. Batch size and number of tokens are free.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tasks.errors import ConfigError, DataError
from tasks.models.retrievers.base import Retriever
from tasks.store.atomic import atomic_write

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from tasks.models.retrievers.clip import ClipRetriever

OPSET = 18
MAX_DIFFERENCE = 1e-5
INPUTS = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}
READER = Path(__file__).parent / "published" / "onnx" / "bge_vl_onnx.py"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TEXTS = (
    "make it blue",
    "a",
    "remove the star, please, and what if it were red? and larger, and on a dark background with two more of them",
    "",
)


def require_onnx() -> None:
    """Raises:
    ConfigError: a package of the extra `onnx` is missing.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export to ONNX: {', '.join(missing)} not installed; `make install EXTRAS=onnx`, or `pip install "
            f"{' '.join(missing)}`"
        )


def require_clip(retriever: Retriever) -> None:
    """Raises:
    ConfigError: a model whose graphs cannot be exported.
    """
    if retriever.is_joint:
        raise ConfigError(
            f"model '{retriever.name}': an MLLM reads image and text together, with as many tokens as the image needs, "
            "and is not exported to ONNX; supported are models of the CLIP type. It opens in transformers, "
            "sentence-transformers and vLLM"
        )
    if getattr(retriever, "preparation", None) is None:
        raise ConfigError(
            f"model '{retriever.name}': its image processor does more than to resize, crop and normalise, which the "
            "reader without torch does not do; expected a processor as CLIP's"
        )


def export_onnx(retriever: Retriever, folder: Path) -> float:
    """Write a retriever's graphs with all that encoding needs, and check them.

    Args:
        retriever: of the CLIP type.
        folder: an old one is replaced as a whole.
    Returns:
        Greatest difference of a unit vector's number from torch's, over all that was compared.
    Raises:
        ConfigError: not of the CLIP type, or the extra `onnx` is not installed.
        DataError: the graphs give other vectors than torch.
    """
    require_onnx()
    require_clip(retriever)
    clip: ClipRetriever = retriever  # type: ignore[assignment]
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        write_graphs(clip, temporary)
        shutil.copyfile(READER, temporary / READER.name)
        clip.processor.tokenizer.backend_tokenizer.save(str(temporary / "tokenizer.json"))
        settings = reader_settings(clip)
        write_settings(temporary, settings)
        difference = max_difference(clip, temporary)
        if not difference <= MAX_DIFFERENCE:
            raise DataError(
                f"model '{retriever.name}': ONNX gives vectors that differ from torch's by {difference:.1e}; expected "
                f"at most {MAX_DIFFERENCE:.0e}. Report it with the model's name"
            )
        write_settings(temporary, settings | {"max_difference_from_torch": difference})
    return difference


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write settings.json."""
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")


def reader_settings(clip: ClipRetriever) -> dict[str, Any]:
    """What settings.json says: the preparation's numbers, the tokenizer's, opset and revision."""
    preparation, tokenizer = clip.preparation, clip.processor.tokenizer
    assert preparation is not None
    numbers = {name: getattr(preparation, name) for name in ("shortest_px", "resize_px", "crop_px", "resample")}
    return {
        **numbers,
        "mean": preparation.mean,
        "std": preparation.std,
        "rescale": preparation.rescale,
        "max_tokens": clip.max_tokens,
        "pad_token": tokenizer.pad_token,
        "pad_token_id": tokenizer.pad_token_id,
        "dimension": int(clip.model.config.projection_dim),
        "opset": OPSET,
        "revision": clip.revision,
    }


def export_tower(clip: ClipRetriever, tower: Literal["image", "text"]) -> Any:
    """The ONNX model of a tower: its inputs of `INPUTS`, and its raw projected features as `<tower>_features`."""
    import torch

    class ImageTower(torch.nn.Module):
        """(n, 3, height, width) pixels to (n, d)."""

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return raw(model.get_image_features(pixel_values=pixel_values))

    class TextTower(torch.nn.Module):
        """(n, tokens) ids and mask to (n, d)."""

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return raw(model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))

    model = clip.model.eval()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=2, max=clip.max_tokens)
    inputs = {"pixel_values": clip.preprocess(drawn_images()[:2])} if tower == "image" else clip.tokenize(TEXTS[:2])
    free = {0: batch} if tower == "image" else {0: batch, 1: length}
    exported = ImageTower() if tower == "image" else TextTower()
    exported.model = model  # a part of it: its weights are found there
    with quiet():
        program: Any = torch.onnx.export(
            exported.eval(),
            tuple(inputs[name].to(clip.device) for name in INPUTS[tower]),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS[tower]),
            output_names=["features"],
            dynamic_shapes=tuple(free for _ in INPUTS[tower]),
        )
    return prefixed(program.model_proto, tower)


def raw(output: Any) -> torch.Tensor:
    """The projected features; transformers 5 wraps them."""
    features: torch.Tensor = getattr(output, "pooler_output", output)
    return features


def prefixed(model: Any, tower: str) -> Any:
    """A tower's model with a prefix before every name but its inputs', so that nothing meets another tower's names."""
    import onnx.compose

    changed = onnx.compose.add_prefix(model, f"{tower}_", rename_inputs=False)
    changed.graph.name = tower
    return changed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's progress on standard output and its warnings of torch's own insides."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def write_graphs(clip: ClipRetriever, folder: Path) -> None:
    """Export both towers, join them, and write the three graphs; tensors that are equal are written once."""
    import onnx
    import onnx.compose

    image, text = export_tower(clip, "image"), export_tower(clip, "text")
    composed = onnx.compose.merge_models(image, text, io_map=[])
    del composed.opset_import[1:]  # named by both
    dimension = int(clip.model.config.projection_dim)
    for model, tower in ((image, "image"), (text, "text")):
        end_graph(model, [onnx.helper.make_node("Identity", [f"{tower}_features"], ["features"])], dimension)
    added = onnx.helper.make_node("Add", ["image_features", "text_features"], ["features"])
    end_graph(composed, [added], dimension)
    places: dict[str, tuple[int, int]] = {}
    with (folder / "weights.bin").open("wb") as weights:
        for name, model in (("image", image), ("text", text), ("composed", composed)):
            strip_metadata(model)
            for tensor in model.graph.initializer:
                move_out(tensor, weights, places)
            onnx.save(model, str(folder / f"{name}.onnx"))


def end_graph(model: Any, nodes: Sequence[Any], dimension: int) -> None:
    """End a graph by nodes that make `features`, and by `embedding`, their rows scaled to unit length.

    Args:
        model: its outputs are replaced.
        nodes: the last of them gives `features`.
        dimension: width of a row.
    """
    from onnx import TensorProto, helper

    unit = helper.make_node("LpNormalization", ["features"], ["embedding"], axis=-1, p=2)
    model.graph.node.extend([*nodes, unit])
    del model.graph.output[:]
    for name in ("features", "embedding"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", dimension]))


def strip_metadata(model: Any) -> None:
    """Remove what the exporter notes for debugging: lines of code with paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del graph.value_info[:]


def move_out(tensor: Any, weights: Any, places: dict[str, tuple[int, int]]) -> None:
    """Move a tensor's bytes into the file of weights, once for equal bytes; small ones stay in the graph.

    Args:
        tensor: an initializer.
        weights: the open file.
        places: SHA-256 -> (offset, length in bytes) of what is in it; new ones are added.
    """
    import onnx
    from onnx.numpy_helper import to_array

    content = to_array(tensor).tobytes()
    if len(content) < 1024:
        return
    digest = hashlib.sha256(content).hexdigest()
    if digest not in places:
        weights.write(b"\0" * (-weights.tell() % 4096))  # aligned, so that it can be mapped into memory
        places[digest] = weights.tell(), len(content)
        weights.write(content)
    offset, length = places[digest]
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def drawn_images() -> list[Image]:
    """Images of several shapes and modes: wide, high, grey, with a palette, with transparency."""
    from PIL import Image

    rng = np.random.default_rng(0)
    shapes = ((80, 110, 3), (300, 120, 3), (64, 64, 3), (97, 301, 3), (224, 224, 3))
    images = [
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).resize((shape[1], shape[0])) for shape in shapes
    ]
    clear = images[0].copy()
    clear.putalpha(images[1].resize(clear.size).convert("L"))
    return [*images, images[1].convert("L"), images[3].convert("P"), clear]


def max_difference(clip: ClipRetriever, folder: Path) -> float:
    """The greatest difference between the reader's unit vectors and torch's, over images, texts and both."""
    reader = load_reader(folder)
    images = drawn_images()
    texts = [TEXTS[n % len(TEXTS)] for n in range(len(images))]
    found = 0.0
    for shown, said in ((images, None), (None, texts), (images, texts)):
        expected = clip.encode(shown, said)
        for size in (1, 3, len(images)):
            found = max(found, float(np.abs(reader.encode(shown, said, batch_size=size) - expected).max()))
    return found


def load_reader(folder: Path) -> Any:
    """The folder's own reader, opened on it."""
    specification = importlib.util.spec_from_file_location("bge_vl_onnx", folder / READER.name)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    try:
        specification.loader.exec_module(module)
    finally:
        del sys.modules[specification.name]
    return module.BGEVLOnnx(folder)
