"""Spellings of licences and what they become; what is not known keeps its spelling."""

import pytest

from tasks.sources.licences import normalize_license


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
