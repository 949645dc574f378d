"""Camera-like JPEGs of about 12 megapixels, drawn by own code: large sources for `benchmarks.ingest`.

Each is a scene in linear light (fractal texture, shaded shapes with hard edges, gratings and thin lines of every
period down to two pixels, small print), exposed with a lens's blur and shot noise, sampled through a Bayer mosaic,
demosaiced by OpenCV, sharpened, and stored as a phone does: quality 88 to 95, 4:2:0 or 4:2:2, with an EXIF
orientation. So fine detail is soft as a camera's is, and noise is correlated between pixels and channels.
"""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# sensor formats of phones and cameras, px
SIZES = ((4000, 3000), (4032, 3024), (4608, 2592), (4240, 2832), (3472, 3472), (4096, 3072), (4624, 2604), (5184, 2430))
ORIENTATIONS = (1, 6, 1, 8, 1, 3, 1, 6)  # EXIF: upright, or the phone was turned
QUALITIES = (93, 88, 95, 90)
ORIENTATION_TAG = 0x0112
SATURATION = 0.4  # of the drawn colours, which are gaudier than the world's


def _fractal(rng: np.random.Generator, width: int, height: int, slope: float) -> np.ndarray:
    """(h, w) float32 noise in about -1..1 whose amplitude falls by `slope` an octave."""
    total = np.zeros((height, width), np.float32)
    cells, amplitude = 3, 1.0
    while cells < max(width, height):
        small = rng.standard_normal((max(2, cells * height // width), cells)).astype(np.float32)
        total += amplitude * cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, amplitude = cells * 2, amplitude * slope
    return total / float(np.abs(total).max())


def _draw_shapes(rng: np.random.Generator, scene: np.ndarray) -> None:
    """Paint shapes one over another into an (h, w, 3) float32 scene of 0..1, most of them small ("dead leaves", whose
    statistics are those of photographs), with thin lines and small print among them.
    """
    height, width = scene.shape[:2]
    sizes = np.sort(6 * rng.uniform(1e-4, 1, 6000) ** -0.5)[::-1]  # radius, px: number falls as radius^-3
    for number, radius in enumerate(sizes):
        size = max(3, int(radius))
        colour = tuple(float(c) for c in (rng.uniform(0.02, 0.8) * rng.uniform(0.85, 1.15, 3)).clip(0, 1))
        centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        if number % 3 == 0:
            corners = (np.array(centre) + rng.integers(-size, size + 1, (int(rng.integers(3, 7)), 2))).astype(np.int32)
            cv2.fillPoly(scene, [corners], colour, cv2.LINE_AA)
        else:
            axes = (size, max(2, int(size * rng.uniform(0.2, 1))))
            cv2.ellipse(scene, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
        if number % 40 == 0:
            reach = 40 + 2 * size
            end = (centre[0] + int(rng.integers(-reach, reach)), centre[1] + int(rng.integers(-reach, reach)))
            cv2.line(scene, centre, end, colour, int(rng.integers(1, 5)), cv2.LINE_AA)
        if number % 100 == 0:
            text = "".join(chr(c) for c in rng.integers(65, 91, 24))
            scale = float(rng.uniform(0.5, 3))
            cv2.putText(scene, text, centre, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 2, cv2.LINE_AA)


def _draw_gratings(rng: np.random.Generator, scene: np.ndarray) -> None:
    """Multiply patches of the scene by gratings of 2.5 to 24 pixels a period: cloth, fences, roofs."""
    height, width = scene.shape[:2]
    for _ in range(14):
        w, h = int(rng.integers(200, 900)), int(rng.integers(200, 700))
        left, top = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        angle, period = rng.uniform(0, np.pi), float(np.exp(rng.uniform(np.log(2.5), np.log(24))))
        y, x = np.mgrid[0:h, 0:w].astype(np.float32)
        wave = np.sin(2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle)))
        scene[top : top + h, left : left + w] *= (1 + rng.uniform(0.1, 0.5) * wave)[..., None].astype(np.float32)


def camera_pixels(seed: int, width: int, height: int) -> np.ndarray:
    """(h, w, 3) uint8 RGB of one drawn photograph, as a camera renders it."""
    rng = np.random.default_rng(seed)
    light = _fractal(rng, width, height, float(rng.uniform(0.5, 0.72)))
    tint = _fractal(rng, width, height, 0.45)
    base = rng.uniform(0.1, 0.5, 3)
    scene = np.stack([b * (1 + 0.8 * light) * (1 + s * tint) for b, s in zip(base, (0.4, 0.0, -0.4), strict=True)], -1)
    scene = scene.astype(np.float32)
    _draw_shapes(rng, scene)
    scene *= (1 + float(rng.uniform(0.2, 0.7)) * _fractal(rng, width, height, 0.88))[
        ..., None
    ]  # every surface has a grain
    _draw_gratings(rng, scene)
    grey = scene.mean(axis=2, keepdims=True)
    scene = grey + SATURATION * (scene - grey)
    scene = cv2.GaussianBlur(scene.clip(0, 1), (0, 0), 0.6)  # the lens
    mosaic = np.empty((height, width), np.float32)
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):  # RGGB
        mosaic[row::2, column::2] = scene[row::2, column::2, channel]
    electrons = float(rng.uniform(1500, 12000))  # at full white: low ones are photographs of the evening
    mosaic += np.sqrt(mosaic.clip(0, 1) / electrons).astype(np.float32) * rng.standard_normal(
        mosaic.shape, dtype=np.float32
    )
    encoded = (np.sqrt(mosaic.clip(0, 1)) * 255 + 0.5).astype(np.uint8)  # a gamma of about 2
    rgb = cv2.cvtColor(encoded, cv2.COLOR_BayerBG2RGB_EA)
    soft = cv2.GaussianBlur(rgb, (0, 0), 1.0)
    return cv2.addWeighted(rgb, 1.4, soft, -0.4, 0)  # the camera's own sharpening


def camera_jpeg(seed: int) -> bytes:
    """One drawn photograph as a JPEG of about 12 megapixels with an EXIF orientation."""
    width, height = SIZES[seed % len(SIZES)]
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = ORIENTATIONS[seed % len(ORIENTATIONS)]
    out = io.BytesIO()
    image = Image.fromarray(camera_pixels(seed, width, height))
    subsampling = "4:2:2" if seed % 3 == 2 else "4:2:0"
    image.save(out, "JPEG", quality=QUALITIES[seed % len(QUALITIES)], subsampling=subsampling, exif=exif)
    return out.getvalue()


def make_camera_images(folder: Path, images: int) -> None:
    """Write that many as FOLDER/00000.jpg and so on; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(images):
        path = folder / f"{seed:05d}.jpg"
        if not path.exists():
            path.write_bytes(camera_jpeg(seed))
