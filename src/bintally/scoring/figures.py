"""Pictures of what a model gets right and wrong."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bintally.files import atomic_write
from bintally.scoring.metrics import Counts, Floats
from bintally.scoring.references import Row

matplotlib.use("Agg")
DPI = 120
BLUE, GREY, ORANGE = "#2b6cb0", "#a0aec0", "#c05621"


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; equal figures give equal bytes."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def confusion_picture(table: Counts, counts: Sequence[int], title: str) -> Figure:
    """The confusion matrix with the number of bins and the share of its row in each cell."""
    figure = Figure(figsize=(6, 5.4), layout="constrained")
    axes = figure.subplots()
    share = table / table.sum(1, keepdims=True).clip(1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), number in np.ndenumerate(table):
        colour = "white" if share[row, column] > 0.55 else "black"
        axes.text(column, row, f"{number}\n{share[row, column]:.0%}", ha="center", va="center", color=colour)
    axes.set(xlabel="predicted count", ylabel="count in the record", title=title)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set_yticks(range(len(counts)), [str(count) for count in counts])
    return figure


def benchmark_picture(rows: Sequence[Row], title: str) -> Figure:
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
            centre = (value + (high or value)) / 2
            axes.barh(place, centre, color=colour)
            ends = interval or ((value, high) if high else None)
            if ends:
                axes.plot(ends, [place, place], color="black", linewidth=1.5)
    left.set_yticks(places, [row.name for row in rows])
    left.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    left.set_xlabel("accuracy (higher is better)")
    right.set_xlabel("RMSE in items (lower is better)")
    figure.suptitle(title, fontsize=11)
    return figure


def audit_picture(curves: Mapping[str, Floats], promised: Floats, title: str) -> Figure:
    """The share of wrong records found against the share of bins recounted, by each ranking, and what was promised.

    Args:
        curves: (n,) each, from nothing recounted to everything; the first is the one of ``promised``.
    """
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    found, kept = figure.subplots(1, 2)
    for (name, curve), colour in zip(curves.items(), (ORANGE, BLUE, "#2f855a", GREY), strict=True):
        found.plot(np.linspace(0, 1, len(curve)), curve, color=colour, label=name.replace("_", " "))
    found.set(xlabel="share of bins recounted", ylabel="share of wrong records found", xlim=(0, 1), ylim=(0, 1))
    found.legend(loc="lower right", frameon=False)
    kept.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    kept.plot(promised, next(iter(curves.values())), color=ORANGE)
    kept.set(xlabel="share that was promised", ylabel="share that was found", xlim=(0, 1), ylim=(0, 1))
    for axes in (found, kept):
        axes.grid(color="#e2e8f0")
    figure.suptitle(title, fontsize=11)
    return figure


def examples_picture(
    images: Sequence[bytes], records: Sequence[int], probabilities: Floats, counts: Sequence[int], title: str
) -> Figure:
    """Photographs, each with its record and the distribution predicted for it."""
    across = 4
    down = -(-len(images) // across)
    figure = Figure(figsize=(2.6 * across, 2.8 * down + 0.4), layout="constrained")
    cells = figure.subplots(2 * down, across, height_ratios=[3, 1] * down, squeeze=False)
    for axes in cells.flat:
        axes.set_axis_off()
    for place, (body, record, distribution) in enumerate(zip(images, records, probabilities, strict=True)):
        row, column = divmod(place, across)
        picture, bars = cells[2 * row, column], cells[2 * row + 1, column]
        with Image.open(io.BytesIO(body)) as image:
            picture.imshow(image.convert("RGB").resize((320, 240)))
        answer = counts[int(distribution.argmax())]
        picture.set_title(
            f"record {record}, model {answer}", fontsize=10, color="black" if answer == record else "#c53030"
        )
        colours = [ORANGE if count == record else BLUE for count in counts]
        bars.bar([str(count) for count in counts], distribution, color=colours)
        bars.set_ylim(0, 1)
        bars.set_axis_on()
        bars.set_yticks([])
        bars.spines[["left", "right", "top"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return figure
