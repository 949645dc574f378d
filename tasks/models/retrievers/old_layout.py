"""Rewrite a saved folder's small files so that transformers 4.45.2, which the released models recommend, reads them.

transformers 5 saves an image processor inside processor_config.json, tokenizers of a class that only it knows, and
settings under new names. All versions read what stands here: preprocessor_config.json of its own, tokenizer classes and
settings by the names that both know. `tests/models/retrievers/test_old_transformers.py`
opens such folders in 4.45.2 and compares the vectors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TOKENIZER_CLASS = "PreTrainedTokenizerFast"  # stands for a tokenizer.json of any make, in every version
NEW_TOKENIZER_CLASSES = ("TokenizersBackend",)


def write_old_layout(folder: Path) -> None:
    """Rewrite config.json, the processor's and the tokenizer's files of a saved model."""
    for name, rewrite in (
        ("config.json", _config),
        ("tokenizer_config.json", _tokenizer_config),
        ("tokenizer.json", _tokenizer),
    ):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            rewritten = rewrite(json.loads(json.dumps(content)))
            if rewritten != content:
                _write(path, rewritten)
    split_processor(folder)


def split_processor(folder: Path) -> None:
    """Move the image processor out of processor_config.json into preprocessor_config.json.

    What is left stays, if it is more than the processor's class: an old processor takes no setting that it does not
    know.
    """
    path = folder / "processor_config.json"
    if not path.is_file():
        return
    rest = json.loads(path.read_text(encoding="utf-8"))
    images = rest.pop("image_processor", None)
    if images is not None:
        processor_class = {"processor_class": rest["processor_class"]} if "processor_class" in rest else {}
        _write(folder / "preprocessor_config.json", images | processor_class)
    if set(rest) <= {"processor_class"}:
        path.unlink()
    else:
        _write(path, rest)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _config(config: dict[str, Any]) -> dict[str, Any]:
    """The data type and the base of the rotary embedding by their old names as well, in every part."""
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        config.setdefault("rope_theta", theta)
    return {key: _config(value) if isinstance(value, dict) else value for key, value in config.items()}


def _tokenizer_config(config: dict[str, Any]) -> dict[str, Any]:
    """A class that every version knows, and no setting that some versions stumble over."""
    if config.get("tokenizer_class") in NEW_TOKENIZER_CLASSES:
        config["tokenizer_class"] = TOKENIZER_CLASS
    config.pop("backend", None)
    if not config.get("extra_special_tokens"):
        config.pop("extra_special_tokens", None)
    return config


def _tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The steps before tokenization as a sequence: CLIP's old class takes no single step. The tokens stay the same."""
    step = tokenizer.get("pre_tokenizer")
    if step is not None and step.get("type") != "Sequence":
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step]}
    return tokenizer


def rename_weights(folder: Path, prefix: str, old_prefix: str) -> None:
    """Give weights whose names begin with `prefix` the beginning `old_prefix`, in every safetensors file of a folder.

    Newer versions of transformers know both names. Only the files' headers change; the data are copied as they are.
    """

    def renamed(name: str) -> str:
        is_new = name.startswith(prefix) and not name.startswith(old_prefix)
        return old_prefix + name.removeprefix(prefix) if is_new else name

    for path in sorted(folder.glob("*.safetensors")):
        temporary = path.with_name(f".{path.name}.tmp")
        with path.open("rb") as source, temporary.open("wb") as target:
            header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
            text = json.dumps({renamed(name): value for name, value in header.items()}, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)  # the data stay aligned
            target.write(len(text).to_bytes(8, "little") + text)
            shutil.copyfileobj(source, target, 1 << 24)
        temporary.replace(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] = {renamed(name): file for name, file in content["weight_map"].items()}
        _write(index, content)
