"""What a file says about its colours by numbers instead of an ICC profile, and the conversion to sRGB.

PNG: chunks cICP, sRGB, gAMA and cHRM, in this order of precedence; AVIF: a colour box of type nclx. Codes: ITU-T H.273.
BT.709's own curve counts as sRGB's, as browsers do. HDR (PQ and HLG) is converted with its reference white, 203 cd/m2
(ITU-R BT.2408), as white; what is brighter is clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.ingest.png import read_chunks

D65 = (0.3127, 0.3290)
# chromaticities x, y of white, red, green, blue, by H.273's code of primaries
PRIMARIES = {
    1: (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06),
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
SRGB_CURVES = frozenset((1, 2, 6, 13, 14, 15))  # BT.709, unspecified, BT.601, sRGB, BT.2020
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
PQ, HLG = 16, 18
REFERENCE_WHITE = 203.0  # cd/m2
HLG_PEAK = 1000.0  # cd/m2 of the display that HLG is shown on
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
SRGB_GAMMA = (0.43, 0.48)  # of a gAMA chunk: about 1 / 2.2, which sRGB files say
PRIMARIES_CLOSE = 0.005


@dataclass(frozen=True)
class ColourSignal:
    """How a file's values become light.

    Attributes:
        primaries: chromaticities x, y of white, red, green, blue.
        curve: H.273's code of the transfer characteristics; 0 where `gamma` says it.
        gamma: exponent from value to light.
    """

    primaries: tuple[float, ...]
    curve: int
    gamma: float = 1.0

    @property
    def is_srgb(self) -> bool:
        """Whether nothing is to be converted."""
        return self.curve in SRGB_CURVES and bool(
            np.allclose(self.primaries, PRIMARIES[1], atol=PRIMARIES_CLOSE, rtol=0)
        )


def read_signal(image: Image.Image, content: bytes) -> ColourSignal | None:
    """What a PNG or AVIF says about its colours; None where it says nothing, or sRGB.

    Args:
        image: the file, opened by Pillow.
        content: the file.
    """
    if image.format == "PNG":
        signal = _png_signal(image, content)
    elif image.format == "AVIF":
        signal = _nclx_signal(content)
    else:
        signal = None
    return None if signal is None or signal.is_srgb else signal


def _coded(primaries: int, curve: int) -> ColourSignal | None:
    is_known = curve in SRGB_CURVES or curve in GAMMAS or curve in (PQ, HLG)
    if not is_known:
        return None
    chromaticities = PRIMARIES.get(primaries, PRIMARIES[1])
    return ColourSignal(chromaticities, 0, GAMMAS[curve]) if curve in GAMMAS else ColourSignal(chromaticities, curve)


def _png_signal(image: Image.Image, content: bytes) -> ColourSignal | None:
    for kind, body in read_chunks(content):
        if kind == b"cICP" and len(body) == 4:
            return _coded(body[0], body[1])
        if kind == b"IDAT":
            break
    if "icc_profile" in image.info or "srgb" in image.info:
        return None
    gamma, chromaticity = image.info.get("gamma"), image.info.get("chromaticity")
    primaries = tuple(chromaticity) if chromaticity and _is_possible(tuple(chromaticity)) else PRIMARIES[1]
    if not gamma or SRGB_GAMMA[0] <= gamma <= SRGB_GAMMA[1] or not 0.1 <= gamma <= 10:
        return ColourSignal(primaries, 13)
    return ColourSignal(primaries, 0, 1 / gamma)


def _nclx_signal(content: bytes) -> ColourSignal | None:
    at = content.find(b"colrnclx")
    if at < 0 or at + 14 > len(content):
        return None
    primaries, curve = (int.from_bytes(content[at + n : at + n + 2], "big") for n in (8, 10))
    return _coded(primaries, curve)


def clean_aperture(content: bytes, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of an AVIF that its `clap` box shows, as Pillow's (left, top, right, bottom); None: all of it.

    Args:
        content: the file.
        width, height: of its coded image, px.
    """
    at = content.find(b"clap")
    if at < 4 or content[at - 4 : at] != b"\0\0\0\x28" or at + 36 > len(content):
        return None
    values = np.frombuffer(content[at + 4 : at + 36], ">i4").astype(np.float64)
    if not values[1::2].all():
        return None
    wide, high, right, down = (values[0::2] / values[1::2]).tolist()
    left, top = round((width - wide) / 2 + right), round((height - high) / 2 + down)
    box = (left, top, left + round(wide), top + round(high))
    is_inside = 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
    return box if is_inside and box != (0, 0, width, height) else None


def _is_possible(primaries: tuple[float, ...]) -> bool:
    """Whether these chromaticities span colours at all."""
    if len(primaries) != 8 or min(primaries[1::2]) <= 0 or max(primaries) > 1.2:
        return False
    red, green, blue = (np.array(primaries[n : n + 2]) for n in (2, 4, 6))
    (a, b), (c, d) = green - red, blue - red
    return bool(abs(a * d - b * c) > 0.01)


def rgb_to_xyz(primaries: tuple[float, ...]) -> np.ndarray:
    """(3, 3): from linear RGB of these primaries to XYZ adapted to D65 (Bradford)."""
    columns = [(x / y, 1.0, (1 - x - y) / y) for x, y in zip(primaries[2::2], primaries[3::2], strict=True)]
    white, d65 = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in (primaries[:2], D65))
    matrix = np.array(columns).T
    matrix = matrix * np.linalg.solve(matrix, white)
    adapted: np.ndarray = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ d65) / (BRADFORD @ white)) @ BRADFORD @ matrix
    return adapted


def _pq_light(values: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: values of 0..1 as light, 1 is the reference white."""
    power = values ** (32 / 2523)
    light = np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)
    return np.asarray(light ** (16384 / 2610) * 10_000 / REFERENCE_WHITE)


def _hlg_light(values: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100: HLG values of 0..1, (..., 3), as light of a display of HLG_PEAK, 1 is the reference white."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    luma = scene @ np.array([0.2627, 0.6780, 0.0593])
    return np.asarray(scene * (luma**0.2)[..., None] * HLG_PEAK / REFERENCE_WHITE)


def _srgb_light(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_srgb_pixels(pixels: np.ndarray, signal: ColourSignal) -> np.ndarray:
    """(h, w, 3) uint8 as `signal` says, in sRGB; colours outside are clipped."""
    curves: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        PQ: _pq_light,
        HLG: _hlg_light,
        0: lambda v: v**signal.gamma,
    }
    light = curves.get(signal.curve, _srgb_light)(pixels / 255.0)
    matrix = np.linalg.solve(rgb_to_xyz(PRIMARIES[1]), rgb_to_xyz(signal.primaries))
    light = (light @ matrix.T).clip(0, 1)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (values * 255 + 0.5).astype(np.uint8)
