# ruff: noqa: E501 - lines of Markdown are as long as they are
"""Cards: the dataset's README with the Hub's YAML header, and a promoted model's. Pure text from figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

TRIPLET_COLUMNS = {
    "triplet_id, pair_id": "ids, the same in every version",
    "batch": "the version that added the row",
    "query_image_id, target_image_id": "sha256 of the stored picture; keys of the images table",
    "instructions, styles": "texts that turn the query into the target, and each text's style",
    "negative_image_ids": "pictures near the target that do not fit; negative 0 is the query image",
    "judge_target": "the judge's P(yes) for the target, one per instruction",
    "judge_negative": "highest P(yes) over the instructions, one per negative",
    "mined_by": "similarity models that proposed the pair",
    "description": "what the MLLM wrote about the pair",
    "captioner, captioner_revision, prompt_sha256, judge, judge_revision": "who wrote and who judged, pinned",
    "tokens": "model tokens spent, a count",
}
IMAGE_COLUMNS = {
    "image_id": "sha256 of the stored bytes",
    "source_uri, source_sha256": "where it came from: source name and path inside it, hash of the original file",
    "batch, shard, offset_bytes, size_bytes": "one picture is one pread of `data/images/<shard>`",
    "width_px, height_px": "stored size, px",
    "caption, caption_source": "the source's own text, when it has one",
    "license_code, attribution": "as the source states them",
    "fetched_at": "date of the run, ISO 8601",
    "phash, thumbnail": "64-bit perceptual hash (hex), 8x8 RGB bytes: near-duplicates were looked for with them",
}


def size_category(rows: int) -> str:
    """The Hub's size class of a row count."""
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M")):
        if rows < limit:
            return name
    return "n>10M"


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; pipes in cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in line) + " |" for line in lines)


def dataset_card(version: Mapping[str, Any], *, name: str, license_name: str, exported: int, parquet_bytes: Mapping[str, int], is_held_out_split: bool) -> str:
    """README.md of a version.

    Args:
        version: version.json's mapping.
        name: the dataset's name.
        license_name: as params.version.license states it.
        exported: triplets in data/export, a count; 0 and config `with_images` is not offered.
        parquet_bytes: size of the Parquet files in data/triplets, data/images, data/export.
        is_held_out_split: whether evaluation holds out part of the triplets (no benchmark of the user's own).
    """
    rows = version["rows"]
    tables = {"triplets": ("data/triplets", rows["triplets"]), "images": ("data/images", rows["images"])}
    if exported:
        tables["with_images"] = ("data/export", exported)
    # `datasets` names its cache by what stands here, not by the files: the description keeps two versions in one clone
    # apart, and the counts turn a forgotten `dvc pull` into an error.
    about = f"version {version['version']}, fingerprint {version['fingerprint'][:16]}"
    configs: list[dict[str, object]] = [
        {"config_name": c, "description": about, "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]} for c, (folder, _) in tables.items()
    ]
    configs[0]["default"] = True
    splits = [{"config_name": c, "splits": [{"name": "train", "num_bytes": parquet_bytes[f], "num_examples": n}]} for c, (f, n) in tables.items()]
    header = {
        "license": license_name,
        "pretty_name": name,
        "language": ["en"],
        "task_categories": ["image-to-image", "image-text-to-image"],
        "tags": ["composed-image-retrieval", "megapairs", "hard-negatives", f"version:{version['version']}"],
        "size_categories": [size_category(rows["triplets"])],
        "configs": configs,
        "dataset_info": splits,
    }
    if license_name == "other":
        header["license_name"] = "see-license_code-of-each-image"
    drops = [(stage, reason, count) for stage, reasons in version["drops"].items() for reason, count in reasons.items()]
    encoders = [(e, f["pairs"], f["triplets"], "" if f["yield"] is None else f"{f['yield']:.3f}") for e, f in version["encoders"].items()]
    embedded = 'load_dataset("my-clone", "with_images")   # pictures inside the rows\n' if exported else ""
    held_out = (
        "\nNo benchmark of the user's own is configured: evaluation holds out whole connected components of this version's triplets (share "
        f"{version['params']['train']['held_out_share']}). Their query and target pictures are never trained on, nor used as negatives; pictures that are only "
        "mined negatives of held-out triplets may be trained on. Scores on such a split flatter; compare only with each other.\n"
        if is_held_out_split
        else ""
    )
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---
# {name}, version {version["version"]}

Triplets for composed image retrieval, made as MegaPairs describes (arXiv:2412.14475): {rows["triplets"]:,} triplets (query picture, instructions, target picture, hard
negatives) over {rows["images"]:,} pictures. {version["new_rows"]["triplets"]:,} triplets and {version["new_rows"]["images"]:,} pictures are new in this version
({"after " + version["parent"] if version["parent"] else "the first"}). Look at `reports/gallery.html` after the pull.

## Read it
```bash
git clone <origin> my-clone && cd my-clone && dvc pull        # this version
git checkout dataset/{version["version"]} && dvc pull                 # this version, whatever came later
python -m tasks.pull                                          # the same as dvc pull; names a file that the remote lacks or that was altered there
python -m tasks.verify                                        # compares every file here with manifest.json
```
```python
from datasets import load_dataset
load_dataset("my-clone", "triplets", split="train")                    # ids and texts; streaming=True works
load_dataset("my-clone", "images", split="train")                      # the pictures' table
load_dataset("webdataset", data_files="my-clone/data/images/*.tar")    # the pictures' tars
{embedded}
from tasks.readers import with_images                  # in the clone: every triplet joined with its pictures, streamed
for row in with_images("my-clone"): ...
```
`manifest.json` holds the SHA-256 of every file; `version.json` holds parameters, counts and figures, fingerprint `{version["fingerprint"][:16]}`. The factory's code and manual: branch `main`.

## Columns of `triplets`
{table(("column", "meaning"), list(TRIPLET_COLUMNS.items()))}

## Columns of `images`
{table(("column", "meaning"), list(IMAGE_COLUMNS.items()))}

## What was left out, by reason
{table(("stage", "reason", "rows"), drops) if drops else "Nothing."}

## Who found the new pairs
{table(("encoder", "pairs", "triplets", "yield"), encoders)}
{held_out}
## Licence
Stated licence: `{license_name}`. Each picture keeps its own `license_code` and `attribution`; texts are machine-written by the models named in the rows. Takedown: by `source_uri`.
"""


def model_card(
    evaluation: Mapping[str, Any], *, tag: str, data_version: str, base_model: str, recipe: Mapping[str, Any], why: str, metrics: Mapping[str, Any]
) -> str:
    """README.md of a promoted model: data version, recipe, scores."""
    header = {
        "pipeline_tag": "image-feature-extraction",
        "library_name": "transformers",
        "base_model": base_model,
        "tags": ["composed-image-retrieval", "bge-vl"],
    }
    rows = [
        (model, kind, *(f"{values.get(m):.4f}" if isinstance(values.get(m), int | float) else "" for m in ("map_at_5", "recall_at_1", "recall_at_10")))
        for model, kinds in metrics.items()
        for kind, values in kinds.items()
        if isinstance(values, Mapping)
    ]
    return f"""---
{yaml.safe_dump(header, sort_keys=False)}---
# BGE-VL (CLIP type), {tag}

Fine-tuned from `{base_model}` on data version `{data_version}`. Query = normalised sum of the picture's and the text's projected features. Promoted: {why}.

## Recipe
{table(("parameter", "value"), list(recipe.items()))}

## Scores ({evaluation.get("benchmark") or "held-out triplets"})
{table(("model", "query", "mAP@5", "Recall@1", "Recall@10"), rows)}
"""
