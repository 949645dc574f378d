"""The factory's work, one folder a stage. tasks/old_names keeps module names of earlier releases for one release."""

import os
import shutil
import sys
from pathlib import Path

# On a full disk Python 3.11 leaves bytecode files that are cut off, and fails at them for good, also when there is room
# again (python/cpython issue 126606, mended in later ones): where little room is left, none is written.
BYTECODE_ROOM_BYTES = 64 << 20
if min(shutil.disk_usage(folder).free for folder in (Path(__file__).parent, sys.prefix)) < BYTECODE_ROOM_BYTES:
    sys.dont_write_bytecode = True

# GNU OpenMP reads its settings once, when torch is loaded. A thread that waits for another one spins 300,000 rounds by
# default, some 15 ms where the processor's pause is long, on a core that other work could use: beside two busy
# processes a training step took 4.2 s, and takes 1.6 s where it sleeps after 5,000 rounds (docs/decisions/0186).
SPINS = "5000"
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

__path__.append(str(Path(__file__).parent / "old_names"))
