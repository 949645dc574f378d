"""Export a model of the CLIP type for onnxruntime: image tower, text tower and the vector of both together.

    python -m tasks export_onnx [MODEL] [--out FOLDER] [--revision REVISION]

MODEL is a folder (models/promoted where none is named) or a Hugging Face name; a folder gets the export as its
subfolder onnx, a name needs --out. What is in it, and how it is checked: tasks/models/retrievers/onnx_export.py.
`promote.onnx` does the same for every promoted model. Needs the extra `onnx` (`make install EXTRAS=onnx`).

A model of the MLLM type is refused. sentence-transformers' own backend "onnx" does not open a CLIP: it loads one graph
by optimum, which has no query of image and text (docs/decisions/0162).

With --json the last line is one JSON object: folder, files (name -> bytes), opset, max_difference_from_torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tasks.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tool's own arguments."""
    parser.add_argument("model", nargs="?", default="models/promoted", help="folder or Hugging Face name")
    parser.add_argument("--out", type=Path, help="folder of the export; default: MODEL/onnx")
    parser.add_argument("--revision", help="pinned revision of a name")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Export; what was written.

    Raises:
        ConfigError: no such model, not of the CLIP type, no folder to write to, or the extra `onnx` is missing.
        DataError: the graphs give other vectors than torch.
    """
    from tasks.models.retrievers.load import load_retriever
    from tasks.models.retrievers.onnx_export import OPSET, export_onnx, require_onnx

    require_onnx()
    folder = args.out
    if folder is None:
        if not Path(args.model).is_dir():
            raise ConfigError(f"export_onnx: {args.model!r} is no folder here; name one to write to by --out FOLDER")
        folder = Path(args.model) / "onnx"
    difference = export_onnx(load_retriever(args.model, revision=args.revision, device="cpu"), folder)
    print(f"{folder}: opset {OPSET}, vectors equal to torch's to {difference:.1e}")
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return {"folder": str(folder), "files": files, "opset": OPSET, "max_difference_from_torch": difference}
