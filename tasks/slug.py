"""The folder name of a run: a slug of Airflow's run id. Standard library only, so that the bridge may import it."""

import hashlib
import re


def slug(run_id: str) -> str:
    """A folder name for a run id: lower-case letters, digits and dashes, at most 60 characters, distinct ids stay distinct."""
    readable = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")[:47]
    return f"{readable}-{hashlib.sha256(run_id.encode()).hexdigest()[:12]}"
