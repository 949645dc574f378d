"""Spellings of licences, normalised to SPDX identifiers.

Creative Commons' names and addresses are recognised by the words of `_WORDS`, a few other names by `_NAMES`; SPDX's own
identifiers and expressions by `packaging.licenses`, whatever their case. Any other text stays as the source spells it,
so do Creative Commons licences without a version, and texts that say more than a licence ('CC BY 4.0, changed').
"""

from __future__ import annotations

import functools
import re

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

# Word of a Creative Commons name -> what it means; '' for words that add nothing.
_WORDS = {
    **dict.fromkeys(("by", "attribution"), "BY"),
    **dict.fromkeys(("nc", "noncommercial"), "NC"),
    **dict.fromkeys(("sa", "sharealike"), "SA"),
    **dict.fromkeys(("nd", "noderivs", "noderivatives"), "ND"),
    **dict.fromkeys(("cc0", "zero", "cczero"), "ZERO"),
    "mark": "MARK",
    **dict.fromkeys(("creativecommons", "creative", "commons", "cc", "publicdomain"), ""),
    **dict.fromkeys(("http", "https", "www", "org", "licenses", "license", "licence", "deed", "legalcode", "en"), ""),
    **dict.fromkeys(("international", "unported", "generic", "universal", "dedication", "version", "the"), ""),
}
_SPLIT = ((r"non[ -]commercial", "noncommercial"), (r"share[ -]alike", "sharealike"), (r"no[ -]deriv", "noderiv"))
_LICENCES = ("BY", "BY-NC", "BY-SA", "BY-ND", "BY-NC-SA", "BY-NC-ND")
_VERSIONS = ("1.0", "2.0", "2.5", "3.0", "4.0")
_NAMES = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "mit license": "MIT",
    "the mit license": "MIT",
}


@functools.lru_cache(maxsize=4_096)
def normalize_license(text: str) -> str:
    """The SPDX identifier of a licence; the text itself where none is known.

    Args:
        text: as a source spells it, e.g. 'CC BY 4.0' or 'https://creativecommons.org/licenses/by/4.0/'.
    """
    if code := _creative_commons(text) or _NAMES.get(text.casefold()):
        return code
    try:
        return str(canonicalize_license_expression(text))
    except (InvalidLicenseExpression, ValueError):
        return text


def _creative_commons(text: str) -> str | None:
    """CC-BY-4.0 and the like; None for every other text."""
    lowered = text.casefold()
    for pattern, word in (*_SPLIT, (r"public[ -]domain", "publicdomain"), (r"\bv(?=\d\.\d)", "")):
        lowered = re.sub(pattern, word, lowered)
    words = re.findall(r"\d\.\d|[^\W\d_]+0?|[^\s\W_]+|[,;]", lowered)
    versions = list(dict.fromkeys(w for w in words if w in _VERSIONS))
    meanings = [_WORDS.get(w) for w in words if w not in _VERSIONS and w != "0"]
    if None in meanings or len(versions) > 1 or not any(_WORDS.get(w) == "" for w in words) and "cc0" not in words:
        return None
    parts = list(dict.fromkeys(m for m in meanings if m))
    if parts == ["ZERO"] or not parts and words[:2] == ["cc", "0"]:
        return "CC0-1.0"
    if parts == ["MARK"]:
        return "CC-PDM-1.0"
    name = "-".join(sorted(parts, key=["BY", "NC", "SA", "ND", "ZERO", "MARK"].index))
    return f"CC-{name}-{versions[0]}" if name in _LICENCES and versions else None
