"""Where the factory's code lies for Airflow's processes, and which commit of it they run.

MEGAPAIRS_CODE names the folder that holds tasks/, params.yaml and expectations/; without it, it is the folder above
plugins/. So DAG files may come from a DAG bundle of their own: they need this and AIRFLOW__CORE__PLUGINS_FOLDER.
MEGAPAIRS_COMMIT is the commit where that folder is no checkout, as in the image (build argument COMMIT).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def code_folder() -> Path:
    """The folder of the code.

    Raises:
        ValueError: MEGAPAIRS_CODE names a folder without it; Airflow shows it as the DAG's import error.
    """
    named = os.environ.get("MEGAPAIRS_CODE", "")
    folder = Path(named).resolve() if named else Path(__file__).resolve().parents[2]
    if not (folder / "tasks" / "__main__.py").is_file():
        raise ValueError(
            f"MEGAPAIRS_CODE: {folder} holds no tasks/__main__.py; expected the folder of the factory's code; set it "
            "for all Airflow processes"
        )
    return folder


def make_importable() -> Path:
    """Put the code's folder at the end of sys.path, where it is not there yet; returns it."""
    folder = code_folder()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return folder


def code_commit(folder: Path) -> str:
    """Commit of the code that Airflow's processes run: MEGAPAIRS_COMMIT, else the checkout's; empty when unknown."""
    if named := os.environ.get("MEGAPAIRS_COMMIT", ""):
        return named
    if not (folder / ".git").exists():
        return ""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
