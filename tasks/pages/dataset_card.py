"""The dataset card: README.md of a version, with the YAML header that the Hub and `datasets.load_dataset` read.

Pure text from figures. The words are in templates/dataset_card.md.j2, where every value is escaped for Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.pages.render import markdown
from tasks.pages.week_table import week_table
from tasks.reasons import REVIEWED
from tasks.records import schemas

if TYPE_CHECKING:
    import pyarrow as pa

CARD_FOLDERS = ("data/triplets", "data/images", "data/export")
SIZE_CATEGORIES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def size_category(rows: int) -> str:
    """The Hub's size class of a row count."""
    return next((name for limit, name in SIZE_CATEGORIES if rows < limit), "n>10M")


def features(schema: pa.Schema) -> list[dict[str, object]]:
    """A table's columns as the Hub's header names them (`datasets.Features`): plain types, and lists of them."""
    names = {"float": "float32", "double": "float64"}
    out: list[dict[str, object]] = []
    for field in schema:
        text = str(field.type)
        inner = text.partition("item: ")[2].rstrip(">") if text.startswith("list<") else ""
        kind = {"list": names.get(inner, inner)} if inner else {"dtype": names.get(text, text)}
        out.append({"name": field.name, **kind})
    return out


def hub_header(
    version: Mapping[str, Any],
    *,
    name: str,
    license_name: str,
    exported: int,
    parquet_bytes: Mapping[str, int],
    export_features: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The card's YAML header: licence, tags, and for each config its files, columns and row count.

    `datasets` names its cache by this header, not by the files: the description keeps two versions in one clone apart,
    and the counts turn a forgotten `dvc pull` into an error. Files of versions before a column lack it; because the
    header lists the columns, `datasets` reads them as nulls.

    Args: as of `dataset_card`.
    """
    rows = version["rows"]
    configs = {"triplets": ("data/triplets", rows["triplets"]), "images": ("data/images", rows["images"])}
    if exported:
        configs["with_images"] = ("data/export", exported)
    further_rows: Mapping[str, int] = version.get("further_rows") or {}
    configs |= {task: (f"data/rows/{task}", count) for task, count in further_rows.items()}
    about = f"version {version['version']}, fingerprint {version['fingerprint'][:16]}"
    files: list[dict[str, object]] = [
        {"config_name": c, "description": about, "data_files": [{"split": "train", "path": f"{folder}/*.parquet"}]}
        for c, (folder, _) in configs.items()
    ]
    files[0]["default"] = True
    columns: dict[str, Any] = {table: {"features": features(schemas()[table])} for table in ("triplets", "images")}
    columns |= {task: {"features": features(schemas()["further_rows"])} for task in further_rows}
    if export_features:
        columns["with_images"] = {"features": [dict(feature) for feature in export_features]}
    header = {
        "license": license_name,
        "pretty_name": name,
        "language": languages(version),
        "task_categories": ["image-to-image", "image-text-to-image"],
        "tags": ["composed-image-retrieval", "megapairs", "hard-negatives", f"version:{version['version']}"],
        "size_categories": [size_category(rows["triplets"])],
        "configs": files,
        "dataset_info": [
            {
                "config_name": config,
                **columns.get(config, {}),
                "splits": [{"name": "train", "num_bytes": parquet_bytes[folder], "num_examples": count}],
            }
            for config, (folder, count) in configs.items()
        ],
    }
    other = {"license_name": "see-license_code-of-each-image", "license_link": "README.md#licence"}
    return header | (other if license_name == "other" else {})


def usage_context(usage: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the models were asked for this version's new rows (tasks/usage.py); None where nothing was recorded."""
    if not usage:
        return None
    stages = [
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
        for stage, s in usage["stages"].items()
    ]
    each = usage["per_triplet"]
    mean = each and (
        f"{each['requests']:.1f} requests, {each['prompt_tokens']:,.0f} prompt tokens, {each['output_tokens']:,.0f} "
        f"output tokens, {each['cpu_s']:.2f} CPU-s and {each['gpu_s']:.2f} GPU-s"
    )
    return {"stages": stages, "triplets": f"{usage['triplets']:,}", "per_triplet": mean}


def benchmarks_context(version: Mapping[str, Any]) -> dict[str, Any]:
    """Which benchmarks' images were kept out at ingest, and how many there were."""
    lists = version.get("params", {}).get("ingest", {}).get("benchmark_hashes") or ()
    total, new = (version.get(drops, {}).get("ingest", {}).get("benchmark", 0) for drops in ("drops", "new_drops"))
    names = [name.rpartition("/")[2] for name in lists]
    return {"lists": names, "total_count": total, "total": f"{total:,}", "new": f"{new:,}"}


STAGE_NAMES = {"recaption": "captions of images", "caption": "descriptions and instructions", "judge": "verdicts"}


def stale_context(version: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Rows of earlier makers: (what, rows, stale ones, their oldest batch, renewed in this version); empty where none
    is stale and none was renewed.
    """
    stale, renewed = version.get("stale") or {}, version.get("renewed") or {}
    rows = [
        (
            STAGE_NAMES.get(stage) or stage.replace("embed ", "vectors of encoder "),
            f"{count['rows']:,}",
            f"{count['stale']:,}",
            count.get("oldest") or "",
            f"{renewed.get(stage, 0):,}",
        )
        for stage, count in stale.items()
    ]
    return rows if any(count["stale"] for count in stale.values()) or any(renewed.values()) else []


def weeks_context(weeks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The table of weekly batches, and the newest one's styles; None for a version without such figures."""
    if not weeks:
        return None
    head, rows = week_table(weeks)
    styles = list(weeks.values())[-1].get("styles") or {}
    is_truth_known = any("true_share" in week for week in weeks.values())
    shares = ", ".join(f"{style} {share:.0%}" for style, share in styles.items())
    return {"head": head, "rows": rows, "styles": shares, "is_truth_known": is_truth_known}


def dataset_card(
    version: Mapping[str, Any],
    *,
    name: str,
    license_name: str,
    exported: int,
    parquet_bytes: Mapping[str, int],
    is_held_out_split: bool,
    export_features: Sequence[Mapping[str, Any]] = (),
) -> str:
    """README.md of a version.

    Args:
        version: version.json's mapping.
        name: the dataset's name.
        license_name: as params.version.license states it.
        exported: triplets in data/export, a count; at 0 config `with_images` is not offered.
        parquet_bytes: size of the Parquet files in data/triplets, data/images, data/export.
        is_held_out_split: whether evaluation holds out part of the triplets (no benchmark of the user's own).
        export_features: columns of data/export as the header names them.
    """
    header = hub_header(
        version,
        name=name,
        license_name=license_name,
        exported=exported,
        parquet_bytes=parquet_bytes,
        export_features=export_features,
    )
    stated = (version.get("params") or {}).get("version") or {}
    further_rows: Mapping[str, int] = version.get("further_rows") or {}
    drops = [(stage, reason, count) for stage, reasons in version["drops"].items() for reason, count in reasons.items()]
    encoders = [
        (encoder, f["pairs"], f["triplets"], "" if f["yield"] is None else f"{f['yield']:.3f}")
        for encoder, f in version["encoders"].items()
    ]
    return markdown(
        "dataset_card.md.j2",
        header=header,
        name=name,
        version=version["version"],
        parent=version["parent"],
        rows={table: f"{version['rows'][table]:,}" for table in ("triplets", "images")},
        new_rows={table: f"{version['new_rows'][table]:,}" for table in ("triplets", "images")},
        has_images_config=bool(exported),
        further_rows=[(task, f"{count:,}") for task, count in further_rows.items()],
        fingerprint=version["fingerprint"][:16],
        drops=drops,
        reviewed={
            "right": version.get("reviewed_right", 0),
            **{name: version["drops"].get("judge", {}).get(name, 0) for name in REVIEWED},
        },
        weeks=weeks_context(version.get("weeks") or {}),
        stale=stale_context(version),
        benchmarks=benchmarks_context(version),
        withdrawn=version.get("withdrawn") or {"total": 0, "new": 0},
        contact=(version["params"].get("version") or {}).get("contact"),
        usage=usage_context(version.get("ledger") or {}),
        encoders=encoders,
        held_out_share=version["params"]["train"]["held_out_share"] if is_held_out_split else None,
        license=license_name,
        licences=[(code, f"{count:,}") for code, count in (version.get("licenses") or {}).items()],
        sizes=[
            (folder, size_text(parquet_bytes[folder]))
            for folder in (*CARD_FOLDERS, *(f"data/rows/{task}" for task in further_rows))
            if folder in parquet_bytes
        ],
        languages=languages(version),
        citation=stated.get("citation") or "",
    )


def languages(version: Mapping[str, Any]) -> list[str]:
    """Languages of the instructions, ISO 639-1."""
    return list(((version.get("params") or {}).get("caption") or {}).get("languages") or ("en",))


def size_text(size_bytes: int) -> str:
    """A size in the unit in which it has one to three digits."""
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
