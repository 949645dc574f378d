"""Spellings of licences and what they become; what is not known keeps its spelling."""

from pathlib import Path

import pytest

from tasks.ingest import stage as ingest
from tasks.sources.licences import normalize_license
from tasks.store import Store
from tests.support.images import block_image, encode
from tests.support.ingest import ingest_params, read_drop_reasons, read_kept


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc-by-4.0", "CC-BY-4.0"),
        ("CC_BY_2.0", "CC-BY-2.0"),
        ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("http://creativecommons.org/licenses/by-nc-sa/2.0/", "CC-BY-NC-SA-2.0"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 3.0 Unported", "CC-BY-NC-SA-3.0"),
        ("CC BY NC ND 4.0 International", "CC-BY-NC-ND-4.0"),
        ("CC0", "CC0-1.0"),
        ("CC0 1.0 Universal", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
        ("mit", "MIT"),
        ("MIT License", "MIT"),
        ("apache-2.0", "Apache-2.0"),
        ("gpl-2.0-or-later with classpath-exception-2.0", "GPL-2.0-or-later WITH Classpath-exception-2.0"),
        *((text, text) for text in ("CC-BY", "CC BY 5.0", "CC BY-ND-SA 4.0", "CC BY 4.0, changed", "by", "cc", "")),
        *((text, text) for text in ("unknown", "public domain", "all rights reserved", "MIT AND (", "Attribution")),
    ],
)
def test_a_licence_becomes_its_spdx_identifier_where_it_has_one(stated: str, expected: str):
    assert normalize_license(stated) == expected
    assert normalize_license(expected) == expected


def test_spellings_of_the_configuration_and_of_a_table_are_compared_as_licences(tmp_path: Path):
    for n, licence in enumerate(("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/", "CC BY-NC 4.0", "?")):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{n}.png").write_bytes(encode(block_image(n)))
        with open(tmp_path / "in" / "captions.csv", "a") as f:
            f.write(f"path,licence\n{n}.png,{licence}\n" if n == 0 else f"{n}.png,{licence}\n")
    store = Store(tmp_path / "run")
    settings = {"name": "mine", "path": str(tmp_path / "in"), "license_code": "cc-by-4.0"}
    ingest.run(ingest_params([settings], allowed_licenses=["CC BY 4.0"]), store)
    assert {name: (row["license_code"], row["license_stated"]) for name, row in read_kept(store).items()} == {
        "0.png": ("CC-BY-4.0", "CC BY 4.0"),
        "1.png": ("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/"),
        "3.png": ("CC-BY-4.0", ""),
    }
    assert read_drop_reasons(store) == {"2.png": "licence"}
