"""croissant.json of a version: Croissant 1.1 (MLCommons), with provenance, terms of each record and the RAI fields.

Pure. Files are described as sets by their patterns, relative to the file itself: a clone after `dvc pull` is what a
reader loads; manifest.json holds each file's hash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.records import schemas

if TYPE_CHECKING:
    import pyarrow as pa

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
TYPES = {
    "string": "sc:Text",
    "int32": "sc:Integer",
    "int64": "sc:Integer",
    "float": "sc:Float",
    "double": "sc:Float",
    "bool": "sc:Boolean",
    "binary": "sc:Text",
}
KEYS = {"triplets": "triplet_id", "images": "image_id"}  # further rows: row_id
REFERENCES = {"query_image_id", "target_image_id"}  # of triplets: keys of images
FURTHER_ROWS = "A row is a query, its answer and wrong answers, made of a triplet or an image; README.md explains them."
ABOUT = {
    "license_code": "Terms of the record: the licence, SPDX where it has an identifier.",
    "attribution": "Whom to name for the image.",
    "instructions": "Texts that turn the query image into the target image.",
    "negative_image_ids": "Images like the target that the instructions do not lead to; the first is the query image.",
    "judge_target": "Probability, 0 to 1, that the target fits, one value an instruction.",
}


def field(table: str, column: pa.Field) -> dict[str, Any]:
    """A column of a table as a Croissant field."""
    text = str(column.type)
    is_list = text.startswith("list<")
    kind = text.partition(": ")[2].rstrip(">") if is_list else text
    out: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{table}/{column.name}",
        "name": column.name,
        "description": ABOUT.get(column.name, f"Column {column.name}; README.md explains it."),
        "dataType": TYPES.get(kind, "sc:Text"),
        "source": {"fileSet": {"@id": f"{table}-files"}, "extract": {"column": column.name}},
    }
    if is_list:
        out |= {"isArray": True, "arrayShape": "-1"}
    if table == "triplets" and column.name in REFERENCES:
        out["references"] = {"field": {"@id": "images/image_id"}}
    return out


def record_set(table: str) -> dict[str, Any]:
    """A published table, or the further rows of a task, as a Croissant record set."""
    return {
        "@type": "cr:RecordSet",
        "@id": table,
        "name": table,
        "description": {
            "triplets": "A row is an accepted triplet: query image, instructions, target image, negatives, scores.",
            "images": "A row is a stored image with its caption, source, licence and place in the tars.",
        }.get(table, FURTHER_ROWS),
        "key": {"@id": f"{table}/{KEYS.get(table, 'row_id')}"},
        "field": [field(table, column) for column in schemas()[table if table in KEYS else "further_rows"]],
    }


def file_set(name: str, description: str, pattern: str, encoding: str) -> dict[str, Any]:
    """Files that a pattern matches, below the folder of croissant.json."""
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "description": description,
        "encodingFormat": encoding,
        "includes": pattern,
    }


def models_of(version: Mapping[str, Any]) -> list[str]:
    """Names of the models that made the rows, by the public parameters."""
    params = version.get("params") or {}
    caption, judge = params.get("caption") or {}, params.get("judge") or {}
    encoders = ((params.get("embed") or {}).get("encoders") or {}).values()
    named = [caption.get("model"), caption.get("writer"), judge.get("model"), *(e.get("model") for e in encoders)]
    return list(dict.fromkeys(str(name) for name in named if name))


def responsible_ai(version: Mapping[str, Any], contact: str) -> dict[str, Any]:
    """The RAI fields: how the data was collected and made, what it may and may not be used for, its limits."""
    sources = [s["name"] for s in ((version.get("params") or {}).get("ingest") or {}).get("sources") or ()]
    return {
        "rai:dataCollection": f"Images were taken from the sources {', '.join(sources) or 'of the rows'} (column "
        "source_uri); robots.txt and opt-outs are obeyed where they were downloaded.",
        "rai:dataCollectionType": ["Secondary Data analysis", "Synthetic data"],
        "rai:dataPreprocessingProtocol": "Images are shrunk, stored as JPEG and freed of near-duplicates; what was "
        "left out stands in data/dropped with its reason.",
        "rai:dataAnnotationProtocol": "A vision-language model describes each pair of images, a language model writes "
        "instructions, a vision-language model judges them; only what it accepts is published.",
        "rai:machineAnnotationTools": models_of(version),
        "rai:dataUseCases": "Training and evaluation of composed image retrieval.",
        "rai:dataLimitations": "Texts are written and judged by models and may be wrong or incomplete; pairs are those "
        "that image and text encoders find alike.",
        "rai:dataBiases": "Those of the image sources and of the models named in the rows.",
        "rai:personalSensitiveInformation": "Images may show people; none is named or recognised. Images are withdrawn "
        "on request" + (f" to {contact}" if contact else "") + "; data/withdrawn lists them.",
        "rai:dataReleaseMaintenancePlan": "A version a week; versions are immutable tags, withdrawals are published at "
        "once as a version of their own, CHANGELOG-DATA.md says what changed.",
        "rai:hasSyntheticData": True,
    }


def croissant(version: Mapping[str, Any], *, name: str, license_name: str, has_export: bool) -> bytes:
    """The content of croissant.json.

    Args:
        version: version.json's mapping.
        name: the dataset's name.
        license_name: as params.version.license states it.
        has_export: whether the version has data/export.
    """
    tasks = list(version.get("further_rows") or ())
    stated = (version.get("params") or {}).get("version") or {}
    contact = stated.get("contact") or ""
    files = [
        file_set("triplets-files", "Triplets.", "data/triplets/*.parquet", "application/x-parquet"),
        file_set("images-files", "Table of images.", "data/images/*.parquet", "application/x-parquet"),
        file_set("image-tars", "Images, WebDataset.", "data/shards/*.tar", "application/x-tar"),
    ]
    if has_export:
        about = "Triplets with their images inside."
        files.append(file_set("with_images-files", about, "data/export/*.parquet", "application/x-parquet"))
    for task in tasks:
        about = f"Rows for another task, {task}."
        files.append(file_set(f"{task}-files", about, f"data/rows/{task}/*.parquet", "application/x-parquet"))
    spdx = f"https://spdx.org/licenses/{license_name}.html"
    parent = version.get("parent")
    described = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": name,
        "description": f"Triplets for composed image retrieval, made as MegaPairs describes (arXiv:2412.14475): "
        f"{version['rows']['triplets']} triplets over {version['rows']['images']} images.",
        "version": semantic_version(version["version"]),
        "datePublished": version["date"],
        "license": "README.md#licence" if license_name == "other" else spdx,
        "url": "https://arxiv.org/abs/2412.14475",
        "creator": {"@type": "sc:Organization", "name": name, **({"email": contact} if "@" in contact else {})},
        "keywords": ["composed image retrieval", "MegaPairs", "hard negatives"],
        "inLanguage": list(((version.get("params") or {}).get("caption") or {}).get("languages") or ("en",)),
        "citeAs": stated.get("citation") or "Zhou et al., MegaPairs, arXiv:2412.14475",
        "isLiveDataset": True,
        **({"prov:wasDerivedFrom": f"dataset/{parent}"} if parent else {}),
        "prov:wasGeneratedBy": [
            {"@type": "prov:Activity", "prov:label": f"factory, commit {version.get('git_commit', '')}"},
            *({"@type": "prov:Activity", "prov:label": f"model {model}"} for model in models_of(version)),
        ],
        **responsible_ai(version, contact),
        "distribution": files,
        "recordSet": [record_set(table) for table in ("triplets", "images", *tasks)],
    }
    return (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode()


def semantic_version(name: str) -> str:
    """'2026.11.08' as MAJOR.MINOR.PATCH: 2026.11.8; a later one of the day adds '+2'."""
    year, month, day, *number = name.split(".")
    return f"{int(year)}.{int(month)}.{int(day)}" + (f"+{number[0]}" if number else "")
