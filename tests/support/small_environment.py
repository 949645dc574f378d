"""An environment with some of the installed packages and what they need, by links: what a reader of a page has."""

import shutil
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(requirements: list[str]) -> set[str]:
    """Names of the distributions that pip would install for these requirements, as far as they are installed here."""
    extras: dict[str, set[str]] = {}
    pending = [Requirement(text) for text in requirements]
    while pending:
        asked = pending.pop()
        name = canonicalize_name(asked.name)
        if name in extras and asked.extras <= extras[name]:
            continue
        extras.setdefault(name, set()).update(asked.extras)
        for text in distribution(name).requires or ():
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": e}) for e in ("", *asked.extras)):
                pending.append(further)
    return set(extras)


def small_environment(folder: Path, requirements: list[str]) -> Path:
    """Make a virtual environment with these requirements, met by the installed packages; returns its folder `bin`.

    Raises:
        ValueError: an installed package is older or newer than a requirement wants.
    """
    for asked in map(Requirement, requirements):
        if not asked.specifier.contains(distribution(asked.name).version):
            raise ValueError(f"{asked}: {distribution(asked.name).version} is installed")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in needed(requirements):
        here = distribution(name)
        for top in {path.parts[0] for path in here.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(here.locate_file(top))))
    script = folder / "bin" / "dvc"
    script.write_text('#!/bin/sh\nexec python -m dvc "$@"\n')
    script.chmod(0o755)
    assert shutil.which("dvc", path=str(folder / "bin"))
    return folder / "bin"
