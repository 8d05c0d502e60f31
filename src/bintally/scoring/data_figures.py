"""Figures of the bins: counts, split, photographs, products and errors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bintally.scoring.figures import BLUE, GREY, ORANGE
from bintally.scoring.metrics import Counts, Floats

SPLITS = {"train": BLUE, "validation": GREY, "test": ORANGE, "left_out": "#e2e8f0"}
MAX_NUMBER = 8  # numbers above it share the last bar
THUMBNAIL = (320, 240)
Pixels = NDArray[np.uint8]


def counts_figure(counts: Counts, splits: Sequence[str]) -> Figure:
    """The number of bins of each count, by split, one of SPLITS."""
    figure, (axes,) = _panels(1)
    values = np.unique(counts)
    below = np.zeros(len(values))
    for split, number in _by_split(counts, splits, values).items():
        axes.bar(values.astype(str), number, bottom=below, color=SPLITS[split], label=split.replace("_", " "))
        below += number
    for place, height in enumerate(below):
        axes.annotate(f"{height:,.0f}", (place, height), (0, 3), textcoords="offset points", ha="center")
    axes.margins(y=0.1)
    axes.set(xlabel="count in the record", ylabel="bins")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def split_figure(counts: Counts, groups: Sequence[str], splits: Sequence[str]) -> Figure:
    """The share of each count in every split, and the number of photographs in the groups of every split."""
    figure, (left, right) = _panels(2)
    values = np.unique(counts)
    shares = {split: number / number.sum() for split, number in _by_split(counts, splits, values).items()}
    _grouped_bars(left, values.astype(str), shares, SPLITS)
    _percent(left)
    left.set(xlabel="count in the record", ylabel="share of the split's bins")
    members = {split: np.array(groups)[np.array(splits) == split] for split in shares}
    sizes = {split: np.unique(of, return_counts=True)[1].clip(max=MAX_NUMBER) for split, of in members.items()}
    present = np.unique(np.concatenate(list(sizes.values())))
    numbers = {split: (size[:, None] == present).sum(0) for split, size in sizes.items()}
    _grouped_bars(right, _number_names(present), numbers, SPLITS)
    right.set(xlabel="photographs of the same bin", ylabel="groups")
    right.legend(frameon=False)
    return figure


def sizes_figure(sizes: Counts) -> Figure:
    """Width against height of photographs, (n, 2) pixels, and the distribution of their ratio."""
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


def products_figure(counts: Counts, products: Counts, quantities: Counts) -> Figure:
    """The number of products per bin, by count, and the number of items per product.

    Args:
        counts: (n,).
        products: (n,) distinct products of each bin.
        quantities: (m,) items of each product of each bin.
    """
    figure, (left, right) = _panels(2)
    values, numbers = np.unique(counts), np.minimum(products, MAX_NUMBER)
    bars = np.unique(numbers)
    below = np.zeros(len(values))
    # More products are darker.
    for number, name, shade in zip(bars, _number_names(bars), np.linspace(0.25, 1, len(bars)), strict=True):
        share = np.array([(numbers[counts == value] == number).mean() for value in values])
        left.bar(values.astype(str), share, bottom=below, color=BLUE, alpha=shade, label=name)
        below += share
    _percent(left)
    left.set(xlabel="count in the record", ylabel="share of its bins")
    left.legend(title="products", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    amounts, frequencies = np.unique(np.minimum(quantities, MAX_NUMBER), return_counts=True)
    right.bar(_number_names(amounts), frequencies, color=BLUE)
    right.set(xlabel="items of one product in a bin", ylabel="products")
    return figure


def measures_figure(weights: Floats, sides: Floats) -> Figure:
    """The distributions of weights and sides of products, on logarithmic scales.

    Args:
        weights: (m,) pounds, NaN if unknown.
        sides: (m, 3) inches, NaN if unknown.
    """
    figure, (left, right) = _panels(2)
    _logarithmic_histogram(left, {"weight": (weights[np.isfinite(weights)], BLUE)})
    left.set(xlabel="weight in pounds", ylabel="products")
    shortest, middle, longest = np.sort(sides[np.isfinite(sides).all(1)], axis=1).T
    _logarithmic_histogram(
        right, {"shortest side": (shortest, GREY), "middle": (middle, BLUE), "longest": (longest, ORANGE)}
    )
    right.set(xlabel="inches", ylabel="products")
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False)
    return figure


def photographs_figure(images: Sequence[Image.Image], titles: Sequence[str], grid_columns: int) -> Figure:
    """Photographs in a grid, each under its title."""
    return _grid([_thumbnail(image) for image in images], titles, grid_columns)


def same_bin_figure(pairs: Sequence[tuple[Image.Image, Image.Image]], counts: Counts) -> Figure:
    """Pairs of photographs of the same bin side by side, each under the counts of their records, (pairs, 2)."""
    gap = np.full((THUMBNAIL[1], 8, 3), 255, np.uint8)
    images = [np.hstack([_thumbnail(first), gap, _thumbnail(second)]) for first, second in pairs]
    return _grid(images, [f"record {first}  |  record {second}" for first, second in counts], grid_columns=2)


def errors_figure(errors: Mapping[str, Counts]) -> Figure:
    """The distribution of the errors of predictions.

    Args:
        errors: (n,) prediction minus record, items, by name: at most three, the baseline last.
    """
    figure, (axes,) = _panels(1)
    largest = max(int(np.abs(error).max()) for error in errors.values())
    steps = np.arange(-largest, largest + 1)
    shares = {name: (error[:, None] == steps).mean(0) for name, error in errors.items()}
    names = [f"{step:+d}".replace("-", "−") if step else "correct" for step in steps]
    *models, baseline = errors
    _grouped_bars(axes, names, shares, dict(zip(models, (BLUE, ORANGE), strict=False)) | {baseline: GREY})
    _percent(axes)
    axes.set(xlabel="prediction minus record, in items", ylabel="share of test bins")
    axes.legend(frameon=False)
    return figure


def since_figure(
    counts: Sequence[int], answers: Mapping[str, Counts], confidences: Mapping[str, Counts], ranks: Counts
) -> Figure:
    """The distributions of answers, of their probability and of the ranks of distances, new ones beside measured ones.

    Args:
        answers: (counts,) photographs by the most probable count; the measured ones first, then the new.
        confidences: (steps,) photographs by the highest probability, from 0 to 1, in the same order.
        ranks: (steps,) new photographs by rank, from 0 to 1.
    """
    figure, (left, middle, right) = _panels(3)
    colours = dict(zip(answers, (GREY, ORANGE), strict=True))
    _grouped_bars(left, map(str, counts), {name: number / number.sum() for name, number in answers.items()}, colours)
    left.set(xlabel="most probable count", ylabel="share of photographs")
    left.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    for name, number in confidences.items():
        middle.stairs(number / number.sum(), np.linspace(0, 1, len(number) + 1), color=colours[name], linewidth=2)
    middle.set(xlabel="probability of the most probable count")
    right.stairs(ranks / max(ranks.sum(), 1), np.linspace(0, 1, len(ranks) + 1), color=ORANGE, linewidth=2)
    right.axhline(1 / len(ranks), color=GREY, linewidth=2)  # of photographs like validation's
    right.set(xlabel="rank of the distance", ylim=(0, None))
    for axes in (left, middle, right):
        _percent(axes)
    return figure


def _panels(number: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, number, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _number_names(values: Counts) -> list[str]:
    return [f"{MAX_NUMBER} or more" if value == MAX_NUMBER else str(value) for value in values]


def _by_split(counts: Counts, splits: Sequence[str], values: Counts) -> dict[str, Counts]:
    """The number of bins of each of ``values`` in every split that occurs."""
    member = np.asarray(splits)
    return {split: (counts[member == split][:, None] == values).sum(0) for split in SPLITS if split in splits}


def _grouped_bars(
    axes: Axes, labels: Iterable[str], heights: Mapping[str, NDArray[Any]], colours: Mapping[str, str]
) -> None:
    width = 0.8 / len(heights)
    for index, (name, height) in enumerate(heights.items()):
        x = np.arange(len(height)) + (index - (len(heights) - 1) / 2) * width
        axes.bar(x, height, width, color=colours[name], label=name.replace("_", " "))
    axes.set_xticks(range(len(height)), labels)


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _logarithmic_histogram(axes: Axes, series: Mapping[str, tuple[Floats, str]]) -> None:
    together = np.concatenate([values for values, _ in series.values()])
    if len(together):
        edges = np.geomspace(together.min() / 1.01, together.max() * 1.01, 41).tolist()
        for label, (values, colour) in series.items():
            axes.hist(values, bins=edges, histtype="stepfilled", alpha=0.7, color=colour, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _thumbnail(image: Image.Image) -> Pixels:
    """The whole photograph in its proportions on white, RGB (height, width, 3) of THUMBNAIL."""
    return np.asarray(ImageOps.pad(image, THUMBNAIL, color="white"))


def _grid(images: Sequence[Pixels], titles: Sequence[str], grid_columns: int) -> Figure:
    if not images:
        figure = Figure(figsize=(10, 0.6))
        figure.text(0.5, 0.5, "no photographs", ha="center", va="center")
        return figure
    grid_rows = -(-len(images) // grid_columns)
    height, width = images[0].shape[:2]
    figure = Figure(figsize=(10, grid_rows * (10 / grid_columns * height / width + 0.36)), layout="constrained")
    cells = figure.subplots(grid_rows, grid_columns, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for axes, image, title in zip(cells.flat, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(title, fontsize=10)
    return figure
