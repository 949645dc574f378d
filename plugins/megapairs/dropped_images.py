"""The image of a file that ingest dropped, for a mail: it is not stored, so it is read where it still lies."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import yaml

from tasks.pages.images import jpeg_uri

FILE_BYTES, FILE_PIXELS = 20 << 20, 40_000_000  # of a file that is shown, at most


def read_dropped_files(folder: Path, keys: Sequence[str], side_px: int, quality: int) -> dict[str, str]:
    """Key of a dropped file -> data URI of a small JPEG of it, read where it still lies: in a source that is a folder.

    The file was refused, so nothing but its pixels is taken from it: no other format, no file outside the source, none
    that is large.

    Args:
        folder: of the run, whose parameters name the sources.
        keys: of dropped files, source:path.
        side_px: longest side of the small image, px.
        quality: of its JPEG, 1 to 100.
    """
    from PIL import Image

    sources: dict[str, Path] = {}
    with contextlib.suppress(OSError, KeyError, TypeError, yaml.YAMLError):
        ingest = yaml.safe_load((folder / "params.yaml").read_text())["ingest"]
        sources = {str(source["name"]): Path(str(source["path"])) for source in ingest["sources"]}
    found: dict[str, str] = {}
    for key in dict.fromkeys(keys):
        name, _, path = key.partition(":")
        root = sources.get(name)
        if root is None or not root.is_dir():
            continue
        with contextlib.suppress(Exception):  # whatever a decoder raises over a damaged file: the mail must go out
            file = (root / path).resolve()
            if file.is_relative_to(root.resolve()) and file.stat().st_size <= FILE_BYTES:
                with Image.open(file, formats=("JPEG", "PNG")) as image:
                    if image.width * image.height <= FILE_PIXELS:
                        found[key] = jpeg_uri(image, side_px, quality)
    return found
