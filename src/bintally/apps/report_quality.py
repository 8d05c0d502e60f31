"""The sections of the report about bad photographs and improbable records: how many, and the worst of each kind."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from bintally.apps.collection import Collection
from bintally.bins.groups import in_another_split
from bintally.bins.quality import BLURRED, DARK, GLARING, LOW_CONTRAST, ODD_SIZE, SHARPNESS_WIDTH
from bintally.scoring import data_figures

SHOWN = 8

# Of each kind: heading, column, 1 if the worst are the lowest and -1 if the highest, what is measured and the limit.
KINDS = {
    "blurred": (
        "Blurred photographs",
        "sharpness",
        1,
        f"the variance of the Laplacian in grey, at a width of {SHARPNESS_WIDTH} pixels (Pech-Pacheco et al. 2000)",
        f"below {BLURRED:g} of the median",
    ),
    "dark": (
        "Dark photographs",
        "brightest",
        1,
        "the tone that 99 % of the pixels do not exceed, 1 being white",
        f"below {DARK:g}",
    ),
    "glaring": (
        "Glaring photographs",
        "darkest",
        -1,
        "the tone that 5 % of the pixels do not exceed, 1 being white",
        f"above {GLARING:g}",
    ),
    "low_contrast": (
        "Photographs of low contrast",
        "contrast",
        1,
        "the standard deviation of the grey values, of 255",
        f"below {LOW_CONTRAST:g}",
    ),
}


def quality_sections(bins: Collection) -> Iterator[tuple[str, Figure, str]]:
    """Heading, figure and caption of each section."""
    reasons = [words.split() for words in bins.quality.reasons]
    for reason, (heading, column, order, what, limit) in KINDS.items():
        values = bins.quality.measures[column]
        rows = np.argsort(order * values, kind="stable")[:SHOWN]
        titles = [f"{bins.entries[row].id}: {values[row]:.3g}" for row in rows]
        yield (
            f"{heading}: {sum(reason in one for one in reasons):,}",
            data_figures.photographs_figure(bins.images(rows), titles, grid_columns=4),
            f"The worst, bad or not. Measured is {what}; bad is {limit}; the median is {np.median(values):.3g}.",
        )
    odd = np.flatnonzero(["odd_size" in one for one in reasons])
    if len(odd):
        logs = np.log(bins.sizes)
        distances = np.abs(logs - np.median(logs, 0)).max(1)[odd]
        rows = odd[np.argsort(-distances, kind="stable")[:SHOWN]]
        titles = [f"{bins.entries[row].id}: {bins.sizes[row][0]} x {bins.sizes[row][1]}" for row in rows]
        yield (
            f"Photographs of odd size: {len(odd):,}",
            data_figures.photographs_figure(bins.images(rows), titles, grid_columns=4),
            f"The oddest. The logarithm of a side is more than {ODD_SIZE:g} interquartile ranges from the quartiles.",
        )
    yield from _near_duplicates(bins)
    yield _improbable_records(bins)


def _near_duplicates(bins: Collection) -> Iterator[tuple[str, Figure, str]]:
    pairs = [(row, first) for row, first in enumerate(bins.quality.near_duplicate_of) if first is not None]
    if not pairs:
        return
    across = len(in_another_split(bins.splits, bins.quality.near_duplicate_of))
    shown = [row for pair in pairs[: SHOWN // 2] for row in pair]
    titles = [f"{bins.entries[row].id}: record {bins.counts[row]}, {bins.splits[row]}" for row in shown]
    yield (
        f"Near-duplicates: {len(pairs):,}",
        data_figures.photographs_figure(bins.images(shown), titles, grid_columns=4),
        f"Photographs with the perceptual hash of an earlier one, beside it; {across:,} are in another split than it, "
        "and make metrics too good.",
    )


def _improbable_records(bins: Collection) -> tuple[str, Figure, str]:
    probabilities = bins.quality.measures["record_probability"]
    rows = np.argsort(probabilities, kind="stable")[:SHOWN]
    titles = [f"{bins.entries[row].id}: record {bins.counts[row]}, {probabilities[row]:.1%}" for row in rows]
    return (
        "The least probable records of all bins",
        data_figures.photographs_figure(bins.images(rows), titles, grid_columns=4),
        "The probability of the record's count by a logistic regression of the features that has not learned from the "
        f"bin's group; the median is {np.nanmedian(probabilities):.1%}. The record or the photograph may be at fault.",
    )
