"""Export a version: Parquet with the images inside (for small versions), or JSON lines as other trainers read them.

    python -m tasks export --root CLONE --embed-images OUT.parquet
    python -m tasks export --root CLONE --jsonl OUT.jsonl --images FOLDER
    python -m tasks export --root CLONE --mmeb OUT.jsonl --images FOLDER
    python -m tasks export --root CLONE --sentence-transformers OUT.jsonl --images FOLDER

Reads data/triplets, data/images and data/shards; `version` writes data/export for config `with_images` of the card, a
file for each of the run's triplets. --embed-images OUT.parquet writes one file; where OUT is a folder, sixteen
(fewer of few rows), so that as many workers of a loader can read at once.
MegaPairs' record (arXiv:2412.14475, its published jsonl): q_img, q_text (list), t_img, hns (list). MMEB's, for
VLM2Vec's training (TIGER-Lab/MMEB-train): qry, qry_image_path, pos_text, pos_image_path, neg_text, neg_image_path, one
record an instruction, with the nearest mined negative. Both name images by file; --images writes those files.
sentence-transformers' trainer takes columns in the order of its loss: anchor (an image and a text), positive, negative
(images). It opens the files itself, so these records name them with the folder of --images as it was typed.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import ConfigError
from tasks.publish.merge import LoaderFiles
from tasks.publish.readers import triplets
from tasks.store import Store
from tasks.store.atomic import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_TOKEN = "<|image_1|>"  # stands for the image in VLM2Vec's texts
TARGET_TEXT = "Represent the given image."
JSON_LINES = ("jsonl", "mmeb", "sentence_transformers")  # arguments that name a file of records
FOLDER_FILES, FOLDER_ROWS_MIN = 16, 1000  # files of --embed-images FOLDER, and least rows of one
ROWS_IN_GROUP = 64  # about 2 MB of small images; a reader has one group in memory at a time
# The triplet's own columns that state what it may be used for (tasks/judge/licences.py); null in older versions.
TERMS = {
    "license_code": "text",
    "query_license": "text",
    "target_license": "text",
    "negative_licenses": "texts",
    "query_attribution": "text",
    "target_attribution": "text",
    "negative_attributions": "texts",
}
EXPORT_COLUMNS = {  # of config with_images: column -> kind of its values
    "triplet_id": "text",
    "query_image": "image",
    "target_image": "image",
    "instructions": "texts",
    "negative_images": "images",
    "negative_image_ids": "texts",
    **TERMS,
}


def export_schema() -> pa.Schema:
    """Arrow schema with the Hub's feature types in its metadata, so that `datasets` decodes the images."""
    import pyarrow as pa

    image_struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    text, image = {"dtype": "string", "_type": "Value"}, {"_type": "Image"}
    kinds: dict[str, tuple[pa.DataType, dict[str, Any]]] = {
        "text": (pa.string(), text),
        "image": (image_struct, image),
        # a `List` would be unknown to datasets below 4; later ones read `Sequence` as a list
        "texts": (pa.list_(pa.field("item", pa.string())), {"feature": text, "_type": "Sequence"}),
        "images": (pa.list_(pa.field("item", image_struct)), {"feature": image, "_type": "Sequence"}),
    }
    fields = [(name, kinds[kind][0]) for name, kind in EXPORT_COLUMNS.items()]
    features = {name: kinds[kind][1] for name, kind in EXPORT_COLUMNS.items()}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def export_features() -> list[dict[str, Any]]:
    """The columns of config with_images as the card's header names them, for every release of `datasets`."""
    kinds = {"text": {"dtype": "string"}, "image": {"dtype": "image"}}
    kinds |= {"texts": {"sequence": "string"}, "images": {"sequence": "image"}}
    return [{"name": name, **kinds[kind]} for name, kind in EXPORT_COLUMNS.items()]


def embed_images(rows: Iterable[dict[str, Any]], store: Store) -> Iterator[dict[str, Any]]:
    """Triplets with the stored bytes of their images, rows of `export_schema`."""

    def image(image_id: str) -> dict[str, Any]:
        return {"bytes": store.read_image_bytes(image_id), "path": f"{image_id}.jpg"}

    for row in rows:
        yield {
            "triplet_id": row["triplet_id"],
            "query_image": image(row["query_image_id"]),
            "target_image": image(row["target_image_id"]),
            "instructions": row["instructions"],
            "negative_images": [image(i) for i in row["negative_image_ids"]],
            "negative_image_ids": row["negative_image_ids"],
            **{name: row.get(name) for name in TERMS},
        }


def write_embedded(rows: Iterable[dict[str, Any]], store: Store, out: Path) -> int:
    """Write rows with their images inside as Parquet, group by group, atomically. Returns the row count."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = export_schema(), 0
    options: dict[str, Any] = {"compression": "none", "write_page_index": True, "use_content_defined_chunking": True}
    with atomic_write(out) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        group: list[dict[str, Any]] = []
        for row in embed_images(rows, store):
            group.append(row)
            count += 1
            if len(group) == ROWS_IN_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    return count


def embed_all(store: Store, out: Path) -> list[dict[str, Any]]:
    """Write all triplets with their images inside: into one file OUT.parquet, or into a folder, for many workers.

    Returns:
        {"path", "triplets": count} of what was written.
    Raises:
        ConfigError: the folder holds a Parquet file that is no part of it, such as one of an earlier export.
    """
    rows, total = triplets(store.root), sum(store.count_rows(f, "triplets") for f in store.table_files("triplets"))
    if out.suffix == ".parquet":
        return [{"path": str(out), "triplets": write_embedded(rows, store, out)}]
    files, written = LoaderFiles(FOLDER_FILES, FOLDER_ROWS_MIN).wanted(0, total), list[dict[str, Any]]()
    paths = [out / f"{number:05d}-of-{files:05d}.parquet" for number in range(files)]
    if others := sorted(set(out.glob("*.parquet")) - set(paths)):
        raise ConfigError(
            f"--embed-images: {out} holds {others[0].name}, which is no part of this export, and a loader would read "
            "it too; name an empty folder"
        )
    for number, path in enumerate(paths):
        share = total * (number + 1) // files - total * number // files
        written.append({"path": str(path), "triplets": write_embedded(itertools.islice(rows, share), store, path)})
    return written


def megapairs_record(row: dict[str, Any]) -> dict[str, Any]:
    """A triplet as MegaPairs publishes it; an image is named as in the tar files."""
    return {
        "q_img": f"{row['query_image_id']}.jpg",
        "q_text": row["instructions"],
        "t_img": f"{row['target_image_id']}.jpg",
        "hns": [f"{i}.jpg" for i in row["negative_image_ids"]],
    }


def mmeb_records(row: dict[str, Any]) -> Iterator[dict[str, str]]:
    """A triplet as VLM2Vec trains on it: a record for each instruction."""
    for text in row["instructions"]:
        yield {
            "qry": f"{IMAGE_TOKEN}\n{text}\n",
            "qry_image_path": f"{row['query_image_id']}.jpg",
            "pos_text": f"{IMAGE_TOKEN}\n{TARGET_TEXT}\n",
            "pos_image_path": f"{row['target_image_id']}.jpg",
            "neg_text": f"{IMAGE_TOKEN}\n{TARGET_TEXT}\n",
            "neg_image_path": f"{nearest_negative(row)}.jpg",
        }


def sentence_transformers_records(row: dict[str, Any], folder: Path) -> Iterator[dict[str, dict[str, str]]]:
    """A triplet as sentence-transformers' trainer takes it: a record for each instruction, its columns in this order.

    Args:
        row: a row of the triplets.
        folder: where the image files lie, seen from where the trainer runs.
    """

    def image(image_id: str) -> dict[str, str]:
        return {"image": str(folder / f"{image_id}.jpg")}

    for text in row["instructions"]:
        yield {
            "anchor": image(row["query_image_id"]) | {"text": text},
            "positive": image(row["target_image_id"]),
            "negative": image(nearest_negative(row)),
        }


def nearest_negative(row: dict[str, Any]) -> str:
    """Id of the nearest mined negative of a triplet, or of the query image where none was mined."""
    mined = [i for i in row["negative_image_ids"] if i != row["query_image_id"]]
    return str((mined or [row["query_image_id"]])[0])


def write_images(rows: Iterable[dict[str, Any]], store: Store, folder: Path) -> int:
    """Write the images that triplets name as <id>.jpg into a folder; those that are there stay. Returns their count."""
    ids = {i for row in rows for i in (row["query_image_id"], row["target_image_id"], *row["negative_image_ids"])}
    for image_id in sorted(ids):
        if not (folder / f"{image_id}.jpg").exists():
            store.write_bytes(folder / f"{image_id}.jpg", store.read_image_bytes(image_id))
    return len(ids)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m tasks export`."""
    parser.add_argument("--root", default=".", type=Path, help="a clone after `dvc pull` (default: the current folder)")
    parser.add_argument(
        "--embed-images",
        type=Path,
        metavar="OUT",
        help="write Parquet with the images inside: one file OUT.parquet, or a folder of several",
    )
    parser.add_argument("--jsonl", type=Path, metavar="OUT", help="write MegaPairs' record, one JSON object a line")
    parser.add_argument("--mmeb", type=Path, metavar="OUT", help="write MMEB's training record, one a line")
    parser.add_argument(
        "--sentence-transformers",
        type=Path,
        metavar="OUT",
        help="write anchor, positive, negative for sentence-transformers' trainer, one record a line; needs --images",
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="write the images that the records name")


def records(kind: str, row: dict[str, Any], images: Path | None) -> Iterable[dict[str, Any]]:
    """A triplet's records of a format of JSON lines: jsonl, mmeb or sentence_transformers."""
    if kind == "sentence_transformers":
        return sentence_transformers_records(row, images or Path())
    return mmeb_records(row) if kind == "mmeb" else [megapairs_record(row)]


def run_command(args: argparse.Namespace) -> dict[str, Any]:
    """Write the exports that the arguments name; {"written": [{"path", "triplets": count}, ...]}.

    Raises:
        ConfigError: nothing is asked for, or records that name image files without the folder of these files.
    """
    outs = {kind: getattr(args, kind) for kind in JSON_LINES if getattr(args, kind)}
    if not any((args.embed_images, outs, args.images)):
        raise ConfigError(
            "export: nothing to write; give --embed-images OUT.parquet, --jsonl OUT.jsonl, --mmeb OUT.jsonl, "
            "--sentence-transformers OUT.jsonl or --images FOLDER"
        )
    if args.sentence_transformers and not args.images:
        raise ConfigError(
            "export: --sentence-transformers writes the paths of the image files, and there is no folder for them; "
            "add --images FOLDER"
        )
    store = Store(args.root)
    written: list[dict[str, Any]] = []
    if args.embed_images:
        written += embed_all(store, args.embed_images)
    for kind, out in outs.items():
        rows = list(triplets(args.root))
        lines = [json.dumps(r, ensure_ascii=False) for row in rows for r in records(kind, row, args.images)]
        store.write_bytes(out, ("\n".join(lines) + "\n").encode())
        written.append({"path": str(out), "triplets": len(rows)})
    if args.images:
        print(f"{args.images}: {write_images(triplets(args.root), store, args.images)} images")
    for file in written:
        print(f"{file['path']}: {file['triplets']} triplets")
    return {"written": written}
