"""Takedown: images that the takedown list names leave every table; each stage removes its own rows when it next runs.

The takedown list (`ingest.takedown`) is a file as tasks/fingerprints/hash_lists.py reads it: sha256 of stored bytes
(image ids) or of source bytes, and perceptual hashes. ingest takes in no such image again; embed removes the vectors;
mine the neighbours, and finds the ones that rank next; select the pairs and the places as negatives, and fills both
again; caption and judge the rows of pairs that are gone.

Earlier versions stay as they were published: a file that names such an image is rewritten under a temporary name and
renamed, so the object that DVC keeps of it is not touched. The removal is idempotent: a rerun after a crash finds what
is left to do, and nothing once no row names such an image.
"""

from __future__ import annotations

from tasks.config import Params
from tasks.fingerprints.hash_lists import read_lists
from tasks.store import Store

REASON = "taken_down"


def taken_down(params: Params, store: Store) -> set[str]:
    """Ids of the images that the takedown list names: by their stored or their source's bytes, or by perceptual hash.

    Returns:
        Image ids, among them the list's own sha256 sums; empty where no list is configured.
    Raises:
        ConfigError: the list cannot be read; it must not pass for an empty one.
    """
    config = params.ingest
    if config.takedown is None:
        return set()
    listed = read_lists(REASON, "ingest.takedown", [store.folder(config.takedown)])
    images = store.read_table("images", ["image_id", "source_sha256", "phash", "thumbnail"]).to_pydict()
    ids = set(listed.sha256s)
    ids |= {
        i for i, source in zip(images["image_id"], images["source_sha256"], strict=True) if source in listed.sha256s
    }
    if listed.hashes:
        for i, phash, thumbnail in zip(images["image_id"], images["phash"], images["thumbnail"], strict=True):
            if listed.find_match(
                (),
                int(phash, 16),
                thumbnail,
                confirmed_bits=config.hash_distance_bits,
                thumbnail_max=config.thumbnail_distance,
                alone_bits=config.blocked_distance_bits,
            ):
                ids.add(i)
    return ids
