"""Figures of what a model gets right and wrong.

Importing this module resets matplotlib to its defaults: a person's matplotlibrc or MPLBACKEND must not change the bytes
of a figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bintally.files import atomic_write
from bintally.scoring.metrics import Counts, Floats

if TYPE_CHECKING:  # stages that do not draw the benchmark do not depend on its rows
    from bintally.scoring.references import BenchmarkRow

matplotlib.use("Agg")
matplotlib.rcdefaults()

BLUE, GREY, ORANGE, GREEN, RED, GRID = "#2b6cb0", "#a0aec0", "#c05621", "#2f855a", "#c53030", "#e2e8f0"


def save(figure: Figure, path: Path, dpi: int = 120, bbox_inches: str | None = None) -> None:
    """Write a figure as PNG; equal figures give equal bytes."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, bbox_inches=bbox_inches, metadata={"Software": None})


def source_name(source: str) -> str:
    """`fetch.source` for a title, where matplotlib takes what is between two dollar signs for a formula."""
    return "demo bins, rendered" if source == "demo" else source.replace("$", r"\$")


def confusion_figure(table: Counts, counts: Sequence[int], title: str) -> Figure:
    """The confusion matrix, each cell with its number of bins and its share of the row."""
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    _draw_confusion(figure.subplots(), table, counts, title)
    return figure


def confusions_figure(tables: Mapping[str, Counts], counts: Sequence[int], title: str) -> Figure:
    """Confusion matrices beside each other, by their titles."""
    figure = Figure(figsize=(5.6 * len(tables), 5.6), layout="constrained")
    for axes, (name, table) in zip(figure.subplots(1, len(tables)), tables.items(), strict=True):
        _draw_confusion(axes, table, counts, name)
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_confusion(axes: Axes, table: Counts, counts: Sequence[int], title: str) -> None:
    share = table / table.sum(1, keepdims=True).clip(1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        colour = "white" if share[row, column] > 0.55 else "black"
        axes.text(column, row, f"{number}\n{share[row, column]:.0%}", ha="center", va="center", color=colour)
    axes.set(xlabel="predicted count", ylabel="count in the record", title=title)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_yticks(range(len(counts)), [str(count) for count in counts])


def benchmark_figure(rows: "Sequence[BenchmarkRow]", title: str) -> Figure:
    """Accuracy and RMSE of each row, this model's with its interval."""
    figure = Figure(figsize=(10, 0.42 * len(rows) + 1.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        colour = ORANGE if row.accuracy_interval else GREY if row.data.endswith("of this run") else BLUE
        for axes, value, high, interval in (
            (left, row.accuracy, row.accuracy_high, row.accuracy_interval),
            (right, row.rmse, None, row.rmse_interval),
        ):
            if value is None:
                axes.text(0.02, place, "not known", va="center", color="grey", transform=axes.get_yaxis_transform())
                continue
            axes.barh(place, (value + (high or value)) / 2, color=colour)
            if ends := interval or ((value, high) if high else None):
                axes.plot(ends, [place, place], color="black", linewidth=1.5)
    left.set_yticks(places, [row.name for row in rows])
    left.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.set_xlabel("accuracy (higher is better)")
    right.set_xlabel("RMSE in items (lower is better)")
    figure.suptitle(title, fontsize=11)
    return figure


def audit_figure(
    curves: Mapping[str, Floats],
    expected: Floats,
    found: Mapping[str, tuple[float, float, float]],
    promised: Mapping[str, tuple[float, float]],
    title: str,
) -> Figure:
    """How many wrong records each ranking finds, of each kind, and how that agrees with what was promised.

    Args:
        curves: (n,) by ranking: share of the wrong records found, from no bin recounted to all; the first one's is to
            agree with ``expected``, (n,).
        found: by kind of error, the shares found in a tenth by the first ranking, and its interval.
        promised: by errors injected, the shares of the wrong records that the first ranking promised and found in a
            tenth.
    """
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (name, curve), colour in zip(curves.items(), (ORANGE, BLUE, GREEN, RED, GREY), strict=True):
        left.plot(np.linspace(0, 1, len(curve)), curve, color=colour, label=name)
    left.set(xlabel="share of bins recounted", ylabel="share of wrong records found", xlim=(0, 1), ylim=(0, 1))
    left.legend(loc="lower right", frameon=False)
    places = np.arange(len(found))[::-1]
    for place, (share, low, high) in zip(places, found.values(), strict=True):
        middle.barh(place, share, color=ORANGE)
        middle.plot([low, high], [place, place], color="black", linewidth=1.5)
    middle.set_yticks(places, list(found))
    middle.set(xlabel="share found in a tenth of the bins", xlim=(0, 1))
    right.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    right.plot(expected, next(iter(curves.values())), color=ORANGE)
    for name, (share_promised, share_found) in promised.items():
        right.plot(share_promised, share_found, "o", label=name)
    right.set(xlabel="promised share", ylabel="share found", xlim=(0, 1), ylim=(0, 1))
    right.legend(title="in a tenth of the bins", loc="lower right", frameon=False)
    for axes in (left, right):
        axes.grid(color=GRID)
    figure.suptitle(title, fontsize=11)
    return figure


def examples_figure(
    images: Iterable[Image.Image], records: Sequence[int], probabilities: Floats, counts: Sequence[int], title: str
) -> Figure:
    """Photographs, each with its record and the distribution predicted for it."""
    columns = 4
    rows = -(-len(records) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows + 0.4), layout="constrained")
    cells = figure.subplots(2 * rows, columns, height_ratios=[3, 1] * rows, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for place, (image, record, distribution) in enumerate(zip(images, records, probabilities, strict=True)):
        row, column = divmod(place, columns)
        photograph, bars = cells[2 * row, column], cells[2 * row + 1, column]
        photograph.imshow(image.resize((320, 240)))
        answer = counts[int(distribution.argmax())]
        colour = "black" if answer == record else RED
        photograph.set_title(f"record {record}, model {answer}", fontsize=10, color=colour)
        colours = [ORANGE if count == record else BLUE for count in counts]
        bars.bar([str(count) for count in counts], distribution, color=colours)
        bars.set_ylim(0, 1)
        bars.set_axis_on()
        bars.set_yticks([])
        bars.spines[["left", "right", "top"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return figure
