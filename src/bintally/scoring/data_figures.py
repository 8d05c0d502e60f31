"""Figures of a collection of bins: what there is of it, how it was split, what it looks like."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bintally.scoring.figures import BLUE, GREY, ORANGE
from bintally.scoring.metrics import Counts, Floats

SPLITS = {"train": BLUE, "validation": GREY, "test": ORANGE, "left_out": "#e2e8f0"}
MOST = 8  # of a number on an axis of its own bars: what is above lies in the last
THUMBNAIL = (320, 240)
Pixels = NDArray[np.uint8]


def counts_picture(counts: Counts, splits: Sequence[str]) -> Figure:
    """How many bins of each count there are, by split.

    Args:
        counts: (n,) of each bin.
        splits: (n,) of each bin, keys of SPLITS.
    """
    figure, (axes,) = _panels(1)
    values = np.unique(counts)
    below = np.zeros(len(values))
    for split, number in _by_split(counts, splits, values).items():
        axes.bar(_names(values), number, bottom=below, color=SPLITS[split], label=split.replace("_", " "))
        below += number
    for place, height in enumerate(below):
        axes.annotate(f"{height:,.0f}", (place, height), (0, 3), textcoords="offset points", ha="center")
    axes.margins(y=0.1)
    axes.set(xlabel="count in the record", ylabel="bins")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def split_picture(counts: Counts, groups: Sequence[str], splits: Sequence[str]) -> Figure:
    """The share of each count in every split, and how many photographs the groups of every split have.

    Args:
        counts, groups, splits: (n,) of each bin.
    """
    figure, (left, right) = _panels(2)
    values = np.unique(counts)
    shares = {split: number / number.sum() for split, number in _by_split(counts, splits, values).items()}
    _grouped_bars(left, _names(values), shares, SPLITS)
    _percent(left)
    left.set(xlabel="count in the record", ylabel="share of the split's bins")
    sizes = {split: _group_sizes(groups, splits, split) for split in shares}
    present = np.unique(np.concatenate(list(sizes.values())))
    numbers = {split: (size[:, None] == present).sum(0) for split, size in sizes.items()}
    _grouped_bars(right, _up_to_most(present), numbers, SPLITS)
    right.set(xlabel="photographs of one bin", ylabel="groups")
    right.legend(frameon=False)
    return figure


def sizes_picture(sizes: Counts) -> Figure:
    """Width against height of the photographs, and the ratio of the two.

    Args:
        sizes: (n, 2) width and height in pixels.
    """
    figure, (left, right) = _panels(2)
    left.scatter(sizes[:, 0], sizes[:, 1], s=8, color=BLUE, alpha=0.3, linewidths=0)
    longest = sizes.max() * 1.05
    left.plot([0, longest], [0, longest], color=GREY, linewidth=1, label="square")
    left.set(xlim=(0, longest), ylim=(0, longest), xlabel="width in pixels", ylabel="height in pixels")
    left.legend(frameon=False, loc="upper left")
    right.hist(sizes[:, 0] / sizes[:, 1], bins=40, color=BLUE)
    right.axvline(1, color=GREY, linewidth=1)
    right.set(xlabel="width over height", ylabel="photographs")
    return figure


def products_picture(counts: Counts, products: Counts, quantities: Counts) -> Figure:
    """How many products the bins of each count hold, and how many items of a product lie in its bin.

    Args:
        counts: (n,) of each bin.
        products: (n,) distinct products of each bin.
        quantities: (m,) items of each product of each bin.
    """
    figure, (left, right) = _panels(2)
    values, few = np.unique(counts), np.minimum(products, MOST)
    kinds = np.unique(few)
    below = np.zeros(len(values))
    # The more products, the darker.
    for kind, name, shade in zip(kinds, _up_to_most(kinds), np.linspace(0.25, 1, len(kinds)), strict=True):
        share = np.array([(few[counts == value] == kind).mean() for value in values])
        left.bar(_names(values), share, bottom=below, color=BLUE, alpha=shade, label=name)
        below += share
    _percent(left)
    left.set(xlabel="count in the record", ylabel="share of its bins")
    left.legend(title="products", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    amounts, number = np.unique(np.minimum(quantities, MOST), return_counts=True)
    right.bar(_up_to_most(amounts), number, color=BLUE)
    right.set(xlabel="items of one product in a bin", ylabel="products")
    return figure


def measures_picture(weights: Floats, sides: Floats) -> Figure:
    """Weights and sides of products, on logarithmic scales; those a record does not say are left out.

    Args:
        weights: (m,) pounds, NaN where not known.
        sides: (m, 3) inches, NaN where not known.
    """
    figure, (left, right) = _panels(2)
    _logarithmic_histogram(left, [weights[np.isfinite(weights)]], [BLUE], None)
    left.set(xlabel="weight in pounds", ylabel="products")
    known = np.sort(sides[np.isfinite(sides).all(1)], axis=1).T
    _logarithmic_histogram(right, list(known), [GREY, BLUE, ORANGE], ["shortest side", "middle", "longest"])
    right.set(xlabel="inches", ylabel="products")
    right.legend(frameon=False)
    return figure


def photographs_picture(images: Sequence[bytes], titles: Sequence[str], across: int) -> Figure:
    """Photographs in rows of ``across``, each under its title."""
    return _grid([_thumbnail(image) for image in images], titles, across)


def twins_picture(pairs: Sequence[tuple[bytes, bytes]], counts: Counts) -> Figure:
    """Pairs of photographs of one bin side by side, each pair under its two counts.

    Args:
        counts: (pairs, 2) those of the records.
    """
    gap = np.full((THUMBNAIL[1], 8, 3), 255, np.uint8)
    pictures = [np.hstack([_thumbnail(one), gap, _thumbnail(other)]) for one, other in pairs]
    return _grid(pictures, [f"record {one}  |  record {other}" for one, other in counts], across=2)


def errors_picture(errors: Mapping[str, Counts]) -> Figure:
    """How far answers are from the records.

    Args:
        errors: (n,) answer minus record in items, by who answered: at most three, the last the one to be better than.
    """
    figure, (axes,) = _panels(1)
    most = max(int(np.abs(error).max()) for error in errors.values())
    steps = np.arange(-most, most + 1)
    shares = {name: (error[:, None] == steps).mean(0) for name, error in errors.items()}
    names = [f"{step:+d}".replace("-", "−") if step else "right" for step in steps]
    *models, baseline = errors
    _grouped_bars(axes, names, shares, dict(zip(models, (BLUE, ORANGE), strict=False)) | {baseline: GREY})
    _percent(axes)
    axes.set(xlabel="answer minus record, in items", ylabel="share of test bins")
    axes.legend(frameon=False)
    return figure


def _panels(number: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, number, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _names(values: Counts) -> list[str]:
    return [str(value) for value in values]


def _up_to_most(values: Counts) -> list[str]:
    return [f"{MOST} or more" if value == MOST else str(value) for value in values]


def _by_split(counts: Counts, splits: Sequence[str], values: Counts) -> dict[str, Counts]:
    """The number of bins of each of ``values`` in every split there is."""
    member = np.asarray(splits)
    return {split: (counts[member == split][:, None] == values).sum(0) for split in SPLITS if split in splits}


def _group_sizes(groups: Sequence[str], splits: Sequence[str], split: str) -> Counts:
    """The number of photographs of each group in a split, at most MOST."""
    inside = [group for group, its in zip(groups, splits, strict=True) if its == split]
    return np.minimum(np.unique(inside, return_counts=True)[1], MOST)


def _grouped_bars(
    axes: Axes,
    places: Sequence[str],
    heights: Mapping[str, NDArray[np.floating | np.integer]],
    colours: Mapping[str, str],
) -> None:
    width = 0.8 / len(heights)
    for turn, (name, height) in enumerate(heights.items()):
        at = np.arange(len(places)) + (turn - (len(heights) - 1) / 2) * width
        axes.bar(at, height, width, color=colours[name], label=name.replace("_", " "))
    axes.set_xticks(range(len(places)), places)


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _logarithmic_histogram(
    axes: Axes, values: Sequence[Floats], colours: Sequence[str], labels: Sequence[str] | None
) -> None:
    everything = np.concatenate(values)
    if len(everything):
        edges = np.geomspace(everything.min() / 1.01, everything.max() * 1.01, 41).tolist()
        for place, one in enumerate(values):
            label = labels[place] if labels else None
            axes.hist(one, bins=edges, histtype="stepfilled", alpha=0.7, color=colours[place], label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _thumbnail(image: bytes) -> Pixels:
    """RGB (height, width, 3) of THUMBNAIL, the whole photograph in its proportions on white."""
    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(ImageOps.pad(opened.convert("RGB"), THUMBNAIL, color="white"))


def _grid(pictures: Sequence[Pixels], titles: Sequence[str], across: int) -> Figure:
    if not pictures:
        figure = Figure(figsize=(10, 0.6))
        figure.text(0.5, 0.5, "there are none", ha="center", va="center")
        return figure
    down = -(-len(pictures) // across)
    height, width = pictures[0].shape[:2]
    figure = Figure(figsize=(10, down * (10 / across * height / width + 0.36)), layout="constrained")
    cells = figure.subplots(down, across, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for axes, picture, title in zip(cells.flat, pictures, titles, strict=False):
        axes.imshow(picture)
        axes.set_title(title, fontsize=10)
    return figure
