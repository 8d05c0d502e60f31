"""Figures of the data: nothing is cut off, and they show the given numbers."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from bintally.scoring import data_figures

COUNTS = np.array([1, 2, 2, 3, 3, 3])
SPLITS = ["train", "train", "test", "train", "validation", "test"]


def photograph(colour: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.new("RGB", size, colour)


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def heights(figure: Figure, panel: int = 0) -> list[float]:
    return [patch.get_bbox().height for patch in figure.axes[panel].patches if isinstance(patch, Rectangle)]


def errors() -> Figure:
    return data_figures.errors_figure({"most_probable": np.array([0, 0, 1, -2]), "always 2": np.array([0, 1, 1, 1])})


def same_bin() -> Figure:
    pair = photograph((220, 30, 30)), photograph((30, 30, 220), (40, 60))
    return data_figures.same_bin_figure([pair], np.array([[2, 3]]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: data_figures.counts_figure(COUNTS, SPLITS),
        lambda: data_figures.split_figure(COUNTS, list("abbccd"), SPLITS),
        lambda: data_figures.sizes_figure(np.array([[400, 300], [300, 500], [640, 480]])),
        lambda: data_figures.products_figure(COUNTS, np.array([1, 1, 2, 1, 2, 30]), np.array([1, 1, 2, 200])),
        lambda: data_figures.measures_figure(
            np.array([0.5, np.nan, 2]), np.array([[1, 2, 3], [np.nan, 1, 1], [4, 5, 60]])
        ),
        lambda: data_figures.photographs_figure(
            [photograph((9, 120, 60))] * 3, ["record 1", "record 2", "record 3"], grid_columns=2
        ),
        lambda: data_figures.photographs_figure([], [], grid_columns=2),
        same_bin,
        errors,
    ],
)
def test_nothing_of_a_figure_is_cut_off(draw: Callable[[], Figure]) -> None:
    drawn = pixels(draw())
    ink = np.any(drawn < 250, axis=2)
    assert ink.mean() > 0.003
    ink[2:-2, 2:-2] = False
    assert not ink.any(), "cut off at the edge"


def test_bars_are_the_numbers_of_bins_by_split() -> None:
    train, validation, test = [1, 1, 1], [0, 0, 1], [0, 1, 1]
    assert heights(data_figures.counts_figure(COUNTS, SPLITS)) == train + validation + test


def test_shares_are_of_the_split_and_groups_are_counted_once() -> None:
    figure = data_figures.split_figure(COUNTS, list("abbccd"), SPLITS)
    np.testing.assert_allclose(heights(figure), [1 / 3, 1 / 3, 1 / 3, 0, 0, 1, 0, 1 / 2, 1 / 2])
    assert sum(heights(figure, 1)) == 6  # b and c are in two splits here, which the stage would never do


def test_errors_are_shares_of_each_step() -> None:
    figure = errors()
    assert heights(figure) == [0.25, 0, 0.5, 0.25, 0, 0, 0, 0.25, 0.75, 0]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["−2", "−1", "correct", "+1", "+2"]


def test_photographs_of_the_same_bin_are_side_by_side_under_both_counts() -> None:
    figure = same_bin()
    assert figure.axes[0].get_title() == "record 2  |  record 3"
    drawn = pixels(figure).astype(int)
    for half, colour in zip(np.array_split(drawn[:, :500], 2, axis=1), (0, 2), strict=True):
        other = 2 - colour
        assert (half[..., colour] > half[..., other] + 100).sum() > 1000, "its photograph is missing"
        assert not (half[..., other] > half[..., colour] + 100).any(), "it shows the other photograph"
