"""croissant.json is true of files and columns; mlcroissant validates it with `make test-croissant`."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tasks.pages.croissant import CONFORMS_TO, croissant, semantic_version
from tasks.records import schemas

VERSION = {
    "version": "2026.11.28.2",
    "parent": "2026.11.21",
    "date": "2026-11-28",
    "git_commit": "abc",
    "rows": {"triplets": 8, "images": 24},
    "params": {
        "version": {"contact": "data@example.org", "citation": "@misc{ours}"},
        "caption": {"model": "vlm", "writer": "writer", "languages": ["de"]},
        "judge": {"model": "judge"},
        "ingest": {"sources": [{"name": "shop"}]},
    },
}


@pytest.fixture
def described() -> dict[str, Any]:
    content = croissant(VERSION, name="my-set", license_name="CC-BY-4.0", has_export=True)
    return dict(json.loads(content))


def test_every_column_is_a_field_of_a_file_set_that_is_there(described: dict[str, Any]):
    files = {entry["@id"]: entry["includes"] for entry in described["distribution"]}
    assert (
        files["triplets-files"] == "data/triplets/*.parquet" and files["with_images-files"] == "data/export/*.parquet"
    )
    ids = {field["@id"] for records in described["recordSet"] for field in records["field"]}
    for records in described["recordSet"]:
        assert [field["name"] for field in records["field"]] == schemas()[records["name"]].names
        assert records["key"]["@id"] in ids
        for field in records["field"]:
            assert field["source"]["fileSet"]["@id"] in files
            assert field["source"]["extract"] == {"column": field["name"]}
            assert field.get("references", {"field": {"@id": "images/image_id"}})["field"]["@id"] in ids
    assert {"triplets/license_code", "images/license_code", "images/attribution"} <= ids


def test_provenance_terms_and_responsible_use_are_stated(described: dict[str, Any]):
    assert described["conformsTo"] == CONFORMS_TO and described["version"] == "2026.11.28+2"
    assert described["license"] == "https://spdx.org/licenses/CC-BY-4.0.html" and described["citeAs"] == "@misc{ours}"
    assert described["prov:wasDerivedFrom"] == "dataset/2026.11.21"
    assert described["rai:machineAnnotationTools"] == ["vlm", "writer", "judge"]
    assert (
        "shop" in described["rai:dataCollection"]
        and "data@example.org" in described["rai:personalSensitiveInformation"]
    )
    assert semantic_version("2026.01.05") == "2026.1.5"


def test_mlcroissant_validates_it(tmp_path: Path, project: Path):
    program = project / ".venv-croissant" / "bin" / "mlcroissant"
    if not program.exists():
        pytest.skip("mlcroissant: not installed; `make test-croissant`")
    for license_name, name in (("other", "a.json"), ("CC0-1.0", "b.json")):
        (tmp_path / name).write_bytes(croissant(VERSION, name="my-set", license_name=license_name, has_export=False))
        command = [str(program), "validate", "--jsonld", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "error" not in done.stderr.lower(), done.stderr
