"""Diff: what changed from one version to another, in the terminal and as a page with examples.

    python -m tasks diff A B [--root CLONE] [--out PAGE.html] [--examples N]

A and B are versions (2026.11.21) or their tags. Reads git, the DVC cache and, for what the cache lacks, the remote;
nothing is checked out. Says: images, pairs and triplets added and withdrawn, with reasons; other captions; drift of
similarities and lengths of texts; quality figures side by side; rows left out by reason; models, prompts and parameters
that changed; examples with thumbnails. Of withdrawn images only the ids are shown. Each version brings the same about
its predecessor in CHANGELOG-DATA.md.
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path
from typing import Any

from tasks.errors import DataError
from tasks.pages.changes import changes_page, section, summary
from tasks.publish.changes import EXAMPLES, Changes, as_values, compare
from tasks.publish.snapshots import Snapshot
from tasks.store.atomic import write_bytes

SIDE_PX, QUALITY = 112, 70


def thumbnails(changes: Changes, a: Snapshot, b: Snapshot) -> dict[str, str]:
    """image id -> data: URI of the images of all examples, but for those that are withdrawn."""
    from PIL import Image

    from tasks.pages.images import jpeg_uri

    rows = [row for kind in changes.examples.values() for row in kind]
    ids = {row.get(key) for row in rows for key in ("image_id", "query_image_id", "target_image_id")} - {None}
    out = {}
    for image_id in sorted(map(str, ids - set(changes.tables["images"].withdrawn))):
        try:
            content = b.image_bytes(image_id)
        except DataError:
            content = a.image_bytes(image_id)
        out[image_id] = jpeg_uri(Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")), SIDE_PX, QUALITY)
    return out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks diff`."""
    default = os.environ.get("MEGAPAIRS_DATASET") or "."
    parser.add_argument("a", metavar="A", help="the older version, such as 2026.11.21")
    parser.add_argument("b", metavar="B", help="the newer version")
    parser.add_argument(
        "--root", default=default, type=Path, help="a clone (default: MEGAPAIRS_DATASET, else the current folder)"
    )
    parser.add_argument("--out", type=Path, metavar="PAGE.html", help="also write the page")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help=f"of each kind, a count (default {EXAMPLES})")


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Compare, print the section of a changelog, write the page; the changes as JSON, without the ids of added rows."""
    a, b = Snapshot.of_tag(args.root, args.a), Snapshot.of_tag(args.root, args.b)
    changes = compare(a, b, args.examples)
    values = as_values(changes)
    print(section(values))
    if args.out:
        page = changes_page(values, thumbnails(changes, a, b), str(b.record.get("dataset", "")))
        write_bytes(args.out, page.encode())
        print(f"{args.out}: {len(page) / 1e6:.1f} MB")
    shown = {key: value for key, value in values.items() if key != "examples"}
    for table in shown["tables"].values():
        table["added"] = len(table["added"])
    return {**shown, "summary": summary(as_values(changes)), "page": str(args.out) if args.out else None}
