"""What is searched: the images of a version, encoded by each model; and images that people upload.

Vectors are kept in files, one for each model and 1,000 images, so that an interrupted start goes on where it was and a
new version encodes its new images alone.
"""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tasks.config import Params
from tasks.errors import ConfigError, DataError
from tasks.ingest.inspect import make_workers
from tasks.ingest.rules import Rejection
from tasks.knn.top_k import nearest_rows
from tasks.knn.unit_rows import unit_rows
from tasks.models.retrievers.base import Retriever
from tasks.models.retrievers.load import load_retriever
from tasks.reasons import why
from tasks.reviews.searches import UPLOAD
from tasks.store import Store
from tasks.store.atomic import atomic_write

log = logging.getLogger(__name__)

CHUNK_IMAGES = 1000  # encoded and written at a time
BATCH_IMAGES = 32
UPLOADS_KEPT = 256  # the last ones; a link to an older one says that it must be uploaded again


class Uploads:
    """Images that people brought, in their stored form; only the last UPLOADS_KEPT are held.

    Each is decoded in a process of its own with ingest's limits of size, memory and time, and encoded anew.
    """

    def __init__(self, params: Params) -> None:
        self._workers = make_workers(params.ingest.model_copy(update={"workers": 1}))
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, content: bytes) -> str:
        """Check and keep one file; returns its key.

        Raises:
            DataError: it is not an image that ingest would take; says why.
        """
        result = self._workers.read(content, is_named_image=True)
        if isinstance(result, Rejection):
            raise DataError(f"{result.reason}: {why('ingest', result.reason)} ({result.detail})")
        key = UPLOAD + hashlib.sha256(result.content).hexdigest()
        with self._lock:
            self._images[key] = result.content
            self._images.move_to_end(key)
            while len(self._images) > UPLOADS_KEPT:
                self._images.popitem(last=False)
        return key

    def content(self, key: str) -> bytes:
        """The stored JPEG.

        Raises:
            DataError: it is not held, or not any more.
        """
        with self._lock:
            if key not in self._images:
                raise DataError(f"{key[:19]}...: this upload is not kept any more; upload the image again")
            return self._images[key]

    def close(self) -> None:
        """End the decoding process."""
        self._workers.__exit__(None, None, None)


class Images:
    """Stored and uploaded images by key: an image id of the version, or a key of `Uploads`."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self.store, self.uploads = store, uploads
        table = store.read_table("images", columns=["image_id", "license_code"]).sort_by("image_id")
        self.ids: list[str] = table["image_id"].to_pylist()
        self.licenses = dict(zip(self.ids, table["license_code"].to_pylist(), strict=True))
        self.captions = dict.fromkeys(self.ids, "") | store.captions()
        if not self.ids:
            raise DataError(f"{store.root}: no images; run `python -m tasks pull` in the clone first")

    def content(self, key: str) -> bytes:
        """The bytes of a stored image.

        Raises:
            DataError: no such image.
        """
        if key.startswith(UPLOAD):
            return self.uploads.content(key)
        if key not in self.captions:
            raise DataError(f"image {key[:70]!r}: not in this version; expected one of its image ids")
        return self.store.read_image_bytes(key)

    def read(self, key: str) -> Image.Image:
        """An image in RGB.

        Raises:
            DataError: no such image.
        """
        return Image.open(io.BytesIO(self.content(key)), formats=("JPEG", "PNG", "WEBP")).convert("RGB")


class Gallery:
    """One model with the vectors of all images of the version.

    Args:
        label: what people call the model: base, promoted.
        model: Hugging Face name or folder.
        images: of the version.
        folder: where vectors are kept.
        device: auto, cpu, cuda or cuda:N.
    """

    def __init__(self, label: str, model: str, images: Images, folder: Path, device: str = "auto") -> None:
        self.label, self.images = label, images
        self._retriever: Retriever = load_retriever(model, device=device, threads=2)
        self._lock = threading.Lock()  # one pass of the model at a time
        vectors = self._read_vectors(folder)
        # float32 for the products of a search; the values are the float16 ones on disk
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)

    def _read_vectors(self, folder: Path) -> np.ndarray:
        """(n, d) float16 unit rows in the order of the images' ids; what no file holds is encoded and kept."""
        ids = self.images.ids
        chunks = []
        for start in range(0, len(ids), CHUNK_IMAGES):
            chunk = ids[start : start + CHUNK_IMAGES]
            name = hashlib.sha256("\n".join([self._retriever.revision, *chunk]).encode()).hexdigest()[:32]
            path = folder / f"{name}.npy"
            if not path.exists():
                rows = self._encode([(key, "") for key in chunk], "candidate")
                with atomic_write(path) as temporary, temporary.open("wb") as file:
                    np.save(file, unit_rows(rows).astype(np.float16), allow_pickle=False)
                log.info("serve: %s encoded %d of %d images", self.label, start + len(chunk), len(ids))
            chunks.append(np.load(path, allow_pickle=False))
        return np.concatenate(chunks)

    def _encode(self, contents: Sequence[tuple[str | None, str]], role: str) -> np.ndarray:
        encoder = self._retriever.content_encoder(self.images.read, BATCH_IMAGES)
        keys = [key for key, _ in contents if key is not None]
        encoder.prepare(list(dict.fromkeys(keys)), [text for _, text in contents if text])
        return encoder.encode(list(contents), role)  # type: ignore[arg-type]

    def search(self, contents: Sequence[tuple[str | None, str]], top_k: int) -> list[list[tuple[str, float]]]:
        """For each query, its nearest images and their similarities, the nearest first.

        Args:
            contents: image key or None, and a text or "", not both missing.
            top_k: how many.
        Raises:
            DataError: no such image.
        """
        with self._lock:
            queries = unit_rows(self._encode(contents, "query")).astype(np.float16)
        places, similarities = nearest_rows(queries, self.vectors, top_k)
        return [
            [(self.images.ids[place], float(similarity)) for place, similarity in zip(*rows, strict=True)]
            for rows in zip(places.tolist(), similarities.tolist(), strict=True)
        ]


def model_folders(base_model: str, store: Store, named: Sequence[str]) -> dict[str, str]:
    """Label -> Hugging Face name or folder: the base, the version's promoted model where it is there, those named.

    Args:
        base_model: of the version's parameters; a folder below the clone, or a Hugging Face name.
        store: a clone of the dataset.
        named: LABEL=NAME_OR_FOLDER each.
    Raises:
        ConfigError: one of `named` is not of that form, or the version names no base model.
    """
    if named:
        pairs = [name.partition("=") for name in named]
        if wrong := [name for name, (label, _, model) in zip(named, pairs, strict=True) if not label or not model]:
            raise ConfigError(
                f"--model {wrong[0]}: expected LABEL=NAME_OR_FOLDER, such as base=openai/clip-vit-base-patch32"
            )
        return {label: model for label, _, model in pairs}
    if not base_model:
        raise ConfigError(f"{store.root}: params.yaml names no train.base_model; name the models with --model")
    promoted, base = store.folder("models", "promoted"), store.root / base_model
    models = {"base": str(base) if base.is_dir() else base_model}
    return models | ({"promoted": str(promoted)} if promoted.is_dir() else {})
