"""`tasks.readers`: the old name of `tasks.publish.readers`, kept for one release: published cards import it."""

import sys
import warnings

from tasks.publish.readers import triplets, with_images

__all__ = ["triplets", "with_images"]

NOTE = "tasks.readers is now tasks.publish.readers; the old name goes in the next release"

if __name__ == "__main__":
    print(f"note: {NOTE}", file=sys.stderr)
else:
    warnings.warn(NOTE, DeprecationWarning, stacklevel=2)
