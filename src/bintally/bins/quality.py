"""How good the photographs are: measures of each, and the reasons why it is bad among the others."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import get_args

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import laplace

from bintally.params import Reason

REASONS: tuple[Reason, ...] = get_args(Reason)

SHARPNESS_WIDTH = 256
TONES_SIDE = 256
BLURRED = 0.25  # of the median sharpness
DARK = 0.42  # brightest tone; cleanvision 0.3.7 has 0.32, which takes 2 of 11,487 real bins
GLARING = 0.95  # darkest tone, as in cleanvision 0.3.7
LOW_CONTRAST = 12.0  # of 255
ODD_SIZE = 3.0  # interquartile ranges beyond the quartiles: "far out" in Tukey, Exploratory Data Analysis, 2C
LEAST_RANGE = 0.1  # of the logarithms of sides, where nearly all photographs have one size


@dataclass(frozen=True, slots=True)
class Measures:
    """What is measured of one photograph."""

    width: int
    """Pixels."""
    height: int
    sharpness: float
    """Of :func:`sharpness`."""
    brightest: float
    """The tone, 0 to 1, that 99 % of the pixels do not exceed."""
    darkest: float
    """The tone, 0 to 1, that 5 % of the pixels do not exceed."""
    contrast: float
    """Standard deviation of the grey values, 0 to 255."""
    hash: str
    """Perceptual hash of 64 bits, in hexadecimal: equal for a photograph that was scaled or compressed again."""


TABLE = np.dtype(
    [
        *((name, np.int32) for name in ("width", "height")),
        *((name, np.float64) for name in ("sharpness", "brightest", "darkest", "contrast")),
        ("hash", "U16"),
    ]
)


def measure(image: Image.Image) -> Measures:
    """Measure an RGB photograph."""
    small = image.copy()
    small.thumbnail((TONES_SIDE, TONES_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), np.float64)
    darkest, brightest = np.percentile(grey, [5, 99]) / 255
    contrast, perceptual = float(grey.std()), str(imagehash.phash(image))
    return Measures(*image.size, sharpness(image), float(brightest), float(darkest), contrast, perceptual)


def sharpness(image: Image.Image) -> float:
    """The variance of the Laplacian of a photograph, in grey from 0 to 255; low where it is blurred.

    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy: a comparative study". The photograph is
    resized to a width of SHARPNESS_WIDTH pixels, as the measure depends on the size of objects in pixels.
    """
    height = max(1, round(SHARPNESS_WIDTH * image.height / image.width))
    grey = image.convert("L").resize((SHARPNESS_WIDTH, height), Image.Resampling.BOX)
    return float(laplace(np.asarray(grey, np.float64)).var())


def table(measured: Iterable[Measures], number: int) -> NDArray[np.void]:
    """The measures of ``number`` photographs as a structured array, (number,), in a third of the memory."""
    return np.fromiter(map(astuple, measured), TABLE, number)


def near_duplicates(measured: NDArray[np.void]) -> list[int | None]:
    """For each photograph, the row of the first one with the same perceptual hash; None if it is the first.

    ``measured``: of :func:`table`.
    """
    _, first, same = np.unique(measured["hash"], return_index=True, return_inverse=True)
    return [None if found == row else found for row, found in enumerate(first[same].tolist())]


def reasons(measured: NDArray[np.void], first: Sequence[int | None]) -> list[list[Reason]]:
    """Why each photograph is bad, compared with all; empty for a good one.

    Args:
        measured: of :func:`table`.
        first: what :func:`near_duplicates` says of them.
    """
    # Sides are compared as ratios: twice as long is as odd as half as long.
    sides = np.log(np.stack([measured["width"], measured["height"]], 1))
    low, high = np.percentile(sides, [25, 75], axis=0)
    margin = ODD_SIZE * np.maximum(high - low, LEAST_RANGE)
    holds: dict[Reason, NDArray[np.bool_]] = {
        "blurred": measured["sharpness"] < BLURRED * float(np.median(measured["sharpness"])),
        "dark": measured["brightest"] < DARK,
        "glaring": measured["darkest"] > GLARING,
        "low_contrast": measured["contrast"] < LOW_CONTRAST,
        "odd_size": ((sides < low - margin) | (sides > high + margin)).any(1),
        "near_duplicate": np.array([row is not None for row in first]),
    }
    rows = zip(*(holds[reason] for reason in REASONS), strict=True)
    return [[reason for reason, holds_here in zip(REASONS, row, strict=True) if holds_here] for row in rows]
