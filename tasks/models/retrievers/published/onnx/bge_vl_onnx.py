"""BGE-VL (CLIP type) by onnxruntime, without torch and transformers: images, texts, and queries of both as vectors.

    model = BGEVLOnnx("onnx")                                    # the folder that this file is in
    query = model.encode(images="query.jpg", text="make it blue")  # (1, d) float32, unit length
    scores = query @ model.encode(images=["one.jpg", "two.jpg"]).T

The folder's graphs, image.onnx, text.onnx and composed.onnx, have a free batch size. Each gives `features` (raw; of an
image with a text the sum of both) and `embedding` (of unit length). Their weights are in weights.bin.
Images are prepared as the published processor does it, texts by the published tokenizer; settings.json has the numbers.
Needs numpy, onnxruntime, Pillow and tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer


class BGEVLOnnx:
    """Encodes images, texts, or both together; a graph is loaded when it is first needed."""

    def __init__(self, folder: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        """Open an exported folder.

        Args:
            folder: with settings.json, tokenizer.json and the graphs.
            providers: of onnxruntime, the preferred one first.
        """
        self.folder, self.providers = Path(folder), list(providers)
        self.settings: dict[str, Any] = json.loads((self.folder / "settings.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.settings["max_tokens"])
        self.tokenizer.enable_padding(pad_id=self.settings["pad_token_id"], pad_token=self.settings["pad_token"])
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def encode(
        self,
        images: str | Path | Image.Image | Sequence[Any] | None = None,
        text: str | Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Unit vectors of images, of texts, or of queries of both.

        Args:
            images: a path or a Pillow image, or several.
            text: a text, or several; as many as images where both are given.
            batch_size: rows in one run of a graph, a count.
        Returns:
            (n, d) float32.
        Raises:
            ValueError: neither is given, or both in different numbers.
        """
        shown = [images] if isinstance(images, (str, Path, Image.Image)) else None if images is None else list(images)
        said = [text] if isinstance(text, str) else None if text is None else list(text)
        counts = {len(given) for given in (shown, said) if given is not None}
        if len(counts) != 1:
            raise ValueError("encode: expected images, texts, or as many of both")
        rows = [np.zeros((0, self.settings["dimension"]), np.float32)]
        for start in range(0, counts.pop(), batch_size):
            part = slice(start, start + batch_size)
            inputs: dict[str, np.ndarray] = {}
            if shown is not None:
                inputs["pixel_values"] = np.stack([self.pixels(image) for image in shown[part]])
            if said is not None:
                inputs |= self.tokens(said[part])
            graph = "composed" if shown is not None and said is not None else "text" if shown is None else "image"
            rows.append(self._session(graph).run(["embedding"], inputs)[0])
        return np.concatenate(rows)

    def pixels(self, image: str | Path | Image.Image) -> np.ndarray:
        """(3, height, width) float32: converted to RGB, resized, its centre cropped, normalised."""
        opened = (image if isinstance(image, Image.Image) else Image.open(image)).convert("RGB")
        settings, (width, height) = self.settings, opened.size
        if settings["resize_px"] is not None:
            size = tuple(settings["resize_px"])
        else:
            shortest = settings["shortest_px"]
            size = (
                (shortest, int(shortest * height / width))
                if width <= height
                else (int(shortest * width / height), shortest)
            )
        crop = settings["crop_px"] or size
        left, top = (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2
        small = np.asarray(opened.resize(size, Image.Resampling(settings["resample"])), np.float32)
        small = small[top : top + crop[1], left : left + crop[0]] * np.float32(settings["rescale"])
        return ((small - np.float32(settings["mean"])) / np.float32(settings["std"])).transpose(2, 0, 1)

    def tokens(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """input_ids and attention_mask, each (n, longest) int64."""
        encoded = self.tokenizer.encode_batch(list(texts))
        return {
            "input_ids": np.array([e.ids for e in encoded], np.int64),
            "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        }

    def _session(self, graph: str) -> onnxruntime.InferenceSession:
        if graph not in self._sessions:
            path = str(self.folder / f"{graph}.onnx")
            self._sessions[graph] = onnxruntime.InferenceSession(path, providers=self.providers)
        return self._sessions[graph]
