"""How strict licences are, and the strictest of several: what a row that is made of several images may be used for."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The first that matches counts; a licence that none matches (unknown, a site's own terms) is the strictest of all.
_RANKS = (
    r"CC0-|CC-PDM-|Unlicense$|0BSD$|WTFPL$|MIT-0$|public domain$",  # nothing is asked
    r"CC-BY-\d|MIT$|Apache-|BSD-|ISC$|ODC-By|Zlib$",  # name the author
    r"CC-BY-SA-|ODbL-|A?GPL-|LGPL-|GFDL-|MPL-",  # share alike
    r"CC-BY-ND-",  # no derivatives
    r"CC-BY-NC-\d",  # not for commerce
    r"CC-BY-NC-SA-",
    r"CC-BY-NC-ND-",
)


def strictness(licence: str) -> int:
    """Rank of a licence (SPDX), 0 = nothing is asked; one of no known kind ranks highest."""
    return next((rank for rank, kind in enumerate(_RANKS) if re.match(kind, licence, re.IGNORECASE)), len(_RANKS))


def strictest(licences: Iterable[str]) -> str:
    """The strictest licence; several of one rank are joined as SPDX does, 'A AND B'; 'unknown' without any."""
    stated = {licence or "unknown" for licence in licences} or {"unknown"}
    rank = max(map(strictness, stated))
    return " AND ".join(sorted(licence for licence in stated if strictness(licence) == rank))
