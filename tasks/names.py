"""Names and ids: a run's date and batch, folder names, stable ids, and the hash of every seeded order."""

import datetime
import hashlib
import re

from tasks.config import Params


def run_date(params: Params) -> str:
    """The run's date, YYYY-MM-DD; today (UTC) when params leave it open."""
    return params.open_run.date or datetime.datetime.now(datetime.UTC).date().isoformat()


def batch_name(params: Params) -> str:
    """The run's batch and version name, YYYY.MM.DD[.n]; the date's where open_run has set none."""
    return params.open_run.batch or run_date(params).replace("-", ".")


def slug(run_id: str) -> str:
    """A folder name for a run id: lower-case letters, digits and dashes, at most 60 characters.

    Its last 12 characters are a hash of the id, so that different ids have different names.
    """
    readable = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")[:47]
    return f"{readable}-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"


def stable_id(*parts: str) -> str:
    """A 32-digit hexadecimal id of the parts, the same in every version: pair ids, triplet ids (sha256, shortened)."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def seeded_hash(seed: object, *parts: object) -> bytes:
    """A sha256 digest (32 bytes) of a seed and parts: the sort key of every seeded order.

    Rows sorted by it are in an order that looks random, yet depends on the seed and the parts alone, so neither the
    order of the input nor the process shows.
    """
    return hashlib.sha256("\x1f".join(map(str, (seed, *parts))).encode()).digest()
