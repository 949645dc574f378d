"""Cards: the dataset's README with the Hub's YAML header, and a promoted model's. Pure text from figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from tasks.records import schemas

if TYPE_CHECKING:
    import pyarrow as pa

TRIPLET_COLUMNS = {
    "triplet_id, pair_id": "ids, the same in every version",
    "batch": "the version that added the row",
    "query_image_id, target_image_id": "sha256 of the stored image; keys of the images table",
    "instructions, styles": "texts that turn the query into the target, and each text's style",
    "negative_image_ids": "images near the target that do not fit; negative 0 is the query image",
    "judge_target": "the judge's P(yes) for the target, one per instruction",
    "judge_negative": "highest P(yes) over the instructions, one per negative",
    "mined_by": "similarity models that proposed the pair",
    "description": "what the MLLM wrote about the pair",
    "captioner, captioner_revision, prompt_sha256, judge, judge_revision": "who wrote and who judged, pinned",
    "tokens": "model tokens spent, a count",
    "language, engine, sampling, seed, judge_prompt_sha256, judge_engine": "how the texts were asked for, and the judge's prompt and engine; null in versions before these columns",
    "found_by": "which of text, image, composed finds the target first among the corpus' images: text or image alone is a shortcut; null where not looked at",
}
IMAGE_COLUMNS = {
    "image_id": "sha256 of the stored bytes",
    "source_uri, source_sha256": "where it came from: source name and path inside it, hash of the original file",
    "batch, shard, offset_bytes, size_bytes": "one image is one pread of `data/images/<shard>`",
    "width_px, height_px": "stored size, px",
    "caption, caption_source": "the source's own text, when it has one",
    "license_code, attribution": "as the source states them",
    "fetched_at": "date of the run, ISO 8601",
    "phash, thumbnail": "64-bit perceptual hash (hex), 8x8 RGB bytes: near-duplicates were looked for with them",
}


def size_category(rows: int) -> str:
    """The Hub's size class of a row count."""
    for limit, name in (
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
    ):
        if rows < limit:
            return name
    return "n>10M"


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table; pipes in cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in line) + " |" for line in lines
    )


def features(schema: pa.Schema) -> list[dict[str, object]]:
    """A table's columns as the Hub's header names them (`datasets.Features`): plain types, and lists of them."""
    out: list[dict[str, object]] = []
    for field in schema:
        text = str(field.type)
        inner = text.partition("item: ")[2].rstrip(">") if text.startswith("list<") else ""
        names = {"float": "float32", "double": "float64"}
        out.append(
            {"name": field.name, "list": names.get(inner, inner)}
            if inner
            else {"name": field.name, "dtype": names.get(text, text)}
        )
    return out


def ledger_section(ledger: Mapping[str, Any]) -> str:
    """What the models were asked for this version's new rows (tasks/usage.py); nothing without a ledger."""
    if not ledger:
        return ""
    rows = [
        (
            stage,
            f"{s['requests']:,}",
            f"{s['cached_share']:.0%}",
            f"{s['prompt_tokens']:,}",
            f"{s['output_tokens']:,}",
            f"{s['cpu_s']:.0f}",
            f"{s['gpu_s']:.0f}",
            ", ".join(f"{reason} {count}" for reason, count in sorted(s["rejected"].items())) or "none",
        )
        for stage, s in ledger["stages"].items()
    ]
    head = (
        "stage",
        "requests",
        "from the cache",
        "prompt tokens",
        "output tokens",
        "CPU-s",
        "GPU-s",
        "replies refused",
    )
    each = ledger["per_triplet"]
    words = (
        f"One of the {ledger['triplets']:,} accepted triplets took {each['requests']:.1f} requests, {each['prompt_tokens']:,.0f} prompt and "
        f"{each['output_tokens']:,.0f} output tokens, {each['cpu_s']:.2f} CPU-s, {each['gpu_s']:.2f} GPU-s.\n"
        if each
        else ""
    )
    return f"## What the models were asked\n{table(head, rows)}\n{words}\n"


def decontamination_section(version: Mapping[str, Any]) -> str:
    """Which benchmarks' images were kept out at ingest, and how many there were."""
    lists = version.get("params", {}).get("ingest", {}).get("benchmark_hashes") or ()
    total, new = (version.get(drops, {}).get("ingest", {}).get("benchmark", 0) for drops in ("drops", "new_drops"))
    names = ", ".join(f"`{name.rpartition('/')[2]}`" for name in lists)
    if lists:
        words = (
            f"New images were compared with the hashes of {names} (`ingest.benchmark_hashes`): {new:,} exact or near copies of a benchmark's images were left out "
            f"of this version, {total:,} of all versions so far. Images that came in before a list was named were not looked at again."
        )
    elif total:
        words = f"This version's images were compared with no benchmark (`ingest.benchmark_hashes` is empty); {total:,} copies were left out of earlier versions."
    else:
        words = "Not done: `ingest.benchmark_hashes` names no list, so images of public benchmarks may be among these (`python -m tasks decontaminate build FOLDER --out FILE` makes one)."
    return f"## Benchmark decontamination\n{words}\n"


def dataset_card(
    version: Mapping[str, Any],
    *,
    name: str,
    license_name: str,
    exported: int,
    parquet_bytes: Mapping[str, int],
    is_held_out_split: bool,
) -> str:
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
        {"config_name": c, "description": about, "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]}
        for c, (folder, _) in tables.items()
    ]
    configs[0]["default"] = True
    # Files of versions before a column lack it; with the features told, `datasets` reads them as nulls.
    told: dict[str, dict[str, object]] = {
        name: {"features": features(schemas()[name])} for name in ("triplets", "images")
    }
    splits = [
        {
            "config_name": c,
            **told.get(c, {}),
            "splits": [{"name": "train", "num_bytes": parquet_bytes[f], "num_examples": n}],
        }
        for c, (f, n) in tables.items()
    ]
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
    encoders = [
        (e, f["pairs"], f["triplets"], "" if f["yield"] is None else f"{f['yield']:.3f}")
        for e, f in version["encoders"].items()
    ]
    embedded = 'load_dataset("my-clone", "with_images")   # images inside the rows\n' if exported else ""
    held_out = (
        "\nNo benchmark of the user's own is configured: evaluation holds out whole connected components of this version's triplets (share "
        f"{version['params']['train']['held_out_share']}). Their query and target images are never trained on, nor used as negatives; images that are only "
        "mined negatives of held-out triplets may be trained on. Scores on such a split flatter; compare only with each other.\n"
        if is_held_out_split
        else ""
    )
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---
# {name}, version {version["version"]}

Triplets for composed image retrieval, made as MegaPairs describes (arXiv:2412.14475): {rows["triplets"]:,} triplets (query image, instructions, target image, hard
negatives) over {rows["images"]:,} images. {version["new_rows"]["triplets"]:,} triplets and {version["new_rows"]["images"]:,} images are new in this version
({"after " + version["parent"] if version["parent"] else "the first"}). Look at `reports/gallery.html` after the pull.

## Read it
```bash
git clone <origin> my-clone && cd my-clone && dvc pull        # this version
git checkout dataset/{version["version"]} && dvc pull                 # this version, whatever came later
python -m tasks pull                                          # the same as dvc pull; names a file that the remote lacks or that was altered there
python -m tasks verify                                        # compares every file here with manifest.json
```
```python
from datasets import load_dataset
load_dataset("my-clone", "triplets", split="train")                    # ids and texts; streaming=True works
load_dataset("my-clone", "images", split="train")                      # the images' table
load_dataset("webdataset", data_files="my-clone/data/images/*.tar")    # the images' tars
{embedded}
from tasks.publish.readers import with_images          # in the clone: every triplet joined with its images, streamed
for row in with_images("my-clone"): ...
```
`manifest.json` holds the SHA-256 of every file; `version.json` holds parameters, counts and figures, fingerprint `{version["fingerprint"][:16]}`. The factory's code and manual: branch `main`.

## Columns of `triplets`
{table(("column", "meaning"), list(TRIPLET_COLUMNS.items()))}

## Columns of `images`
{table(("column", "meaning"), list(IMAGE_COLUMNS.items()))}

## What was left out, by reason
{table(("stage", "reason", "rows"), drops) if drops else "Nothing."}

{decontamination_section(version)}
{ledger_section(version.get("ledger") or {})}## Who found the new pairs
{table(("encoder", "pairs", "triplets", "yield"), encoders)}
{held_out}
## Licence
Stated licence: `{license_name}`. Each image keeps its own `license_code` and `attribution`; texts are machine-written by the models named in the rows. Takedown: by `source_uri`.
"""
