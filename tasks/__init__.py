"""The factory's work, one folder a stage. tasks/old_names keeps module names of earlier releases for one release."""

import shutil
import sys
from pathlib import Path

# On a full disk Python 3.11 leaves bytecode files that are cut off, and fails at them for good, also when there is room
# again (python/cpython issue 126606, mended in later ones): where little room is left, none is written.
BYTECODE_ROOM_BYTES = 64 << 20
if min(shutil.disk_usage(folder).free for folder in (Path(__file__).parent, sys.prefix)) < BYTECODE_ROOM_BYTES:
    sys.dont_write_bytecode = True

__path__.append(str(Path(__file__).parent / "old_names"))
