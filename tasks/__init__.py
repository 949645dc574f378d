"""The factory's work, one folder a stage. tasks/old_names keeps module names of earlier releases for one release."""

from pathlib import Path

__path__.append(str(Path(__file__).parent / "old_names"))
