"""Tell two images apart that agree in everything coarse: fine textures, weaves, stripes and checks.

A hash of 8x8 frequencies and a thumbnail of 8x8 cells see no detail: all fine textures of one mean colour are the same
to them. So where both say "copy", the images themselves are compared, in blocks, at the smaller one's size. What is
finer than a few pixels is correlated block by block, for moves of up to MOVE px, because a copy may be cropped by a
hair. Where most of the detail that both images have disagrees, they are no copies. A copy that has lost its detail,
being blurred, small or badly compressed, leaves nothing to compare, and remains a copy; but where one image has detail,
the other none, and both thumbnails one flat colour, nothing says that they are the same.

Figures: docs/decisions/0132.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

SIDES = (256, 1024)  # px, longest sides at which images are compared; at the second one, those of one flat colour
BLOCK = 32  # px
MOVE = 6  # px
FINE_RADIUS = 4  # px: detail is what differs from the mean of the surrounding (2 r + 1) squared
MIN_DETAIL = 4.0  # grey levels, standard deviation of a block's detail that is compared
MIN_LONE_DETAIL = 8.0  # the same, of an image beside one that is flat
FLAT = 1.5  # grey levels: a block without detail
FLAT_THUMBNAIL = 8  # levels between the cells of a thumbnail of one colour
MIN_SHARE = 0.05  # of the blocks, that must have detail in both images
AGREEING = 0.65  # correlation of a block from which on its details agree


def _read_grey(content: bytes, side: int) -> Image.Image:
    """A stored image's grey levels, reduced by the JPEG decoder where it is twice as large as `side` px or more."""
    image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP"))
    image.draft("L", (side, side))
    return image.convert("L")


def _detail(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32: what is finer than FINE_RADIUS px in the image at this size."""
    from PIL import ImageFilter

    small = image.resize(size, Image.Resampling.LANCZOS) if image.size != size else image
    coarse = small.filter(ImageFilter.BoxBlur(FINE_RADIUS))
    return np.asarray(small, np.float32) - np.asarray(coarse, np.float32)


def _blocks(detail: np.ndarray) -> np.ndarray:
    """(n, BLOCK, BLOCK): the image cut into blocks, the rest at the right and below left out."""
    rows, columns = (side // BLOCK for side in detail.shape)
    cut = detail[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    blocks = cut.transpose(0, 2, 1, 3).reshape(-1, BLOCK, BLOCK)
    return blocks - blocks.mean(axis=(1, 2), keepdims=True)


def _correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n,): the best correlation of each pair of blocks (n, BLOCK, BLOCK) over moves of up to MOVE px."""
    spectrum = np.fft.rfft2(one) * np.conj(np.fft.rfft2(other))
    products = np.fft.irfft2(spectrum, s=(BLOCK, BLOCK))
    moves = np.r_[0 : MOVE + 1, BLOCK - MOVE : BLOCK]
    best = products[:, moves][:, :, moves].max(axis=(1, 2))
    norms = np.sqrt((one**2).sum(axis=(1, 2)) * (other**2).sum(axis=(1, 2)))
    return np.asarray(best / np.maximum(norms, 1e-6))


def _is_flat(thumbnail: bytes) -> bool:
    cells = np.frombuffer(thumbnail, np.uint8).reshape(-1, 3).astype(int)
    return bool(np.ptp(cells, axis=0).max() <= FLAT_THUMBNAIL)


def _paired_blocks(one: bytes, other: bytes, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The blocks (n, BLOCK, BLOCK) of two images at the smaller one's size, at most `side` px."""
    images = [_read_grey(content, side) for content in (one, other)]
    width, height = min((image.size for image in images), key=lambda size: size[0] * size[1])
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    first, second = (_blocks(_detail(image, size)) for image in images)
    return first, second


def differ_in_detail(one: bytes, other: bytes, thumbnail: bytes) -> bool:
    """Whether two images that agree in hash and thumbnail show different details.

    Args:
        one, other: stored images.
        thumbnail: of one of them.
    Raises:
        OSError: one of them is no image, or damaged.
    """
    is_lone = False
    for side in SIDES:
        a, b = _paired_blocks(one, other, side)
        if not len(a):
            return False
        deviations = a.std(axis=(1, 2)), b.std(axis=(1, 2))
        weaker, stronger = np.minimum(*deviations), np.maximum(*deviations)
        both = weaker >= MIN_DETAIL
        if both.mean() >= MIN_SHARE:
            weight = weaker[both]
            agreeing = weight[_correlations(a[both], b[both]) >= AGREEING].sum()
            return bool(agreeing < weight.sum() / 2)
        if not _is_flat(thumbnail):
            return False
        is_lone |= bool(((weaker < FLAT) & (stronger >= MIN_LONE_DETAIL)).mean() > 0.5)
    return is_lone
