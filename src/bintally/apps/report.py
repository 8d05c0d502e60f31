"""`bintally report`: one page of what the data is like and of what the model makes of it."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bintally.apps.collection import Collection, load_collection
from bintally.files import write_text
from bintally.page import document, picture, table
from bintally.scoring import data_figures, selection
from bintally.scoring.decoding import FOR_ACCURACY
from bintally.scoring.figures import confusion_picture, examples_picture
from bintally.scoring.metrics import Counts, confusion

PHOTOGRAPHS = 8
STYLE = """
.about{background:#fffaf0;border-left:5px solid #c05621;padding:.6rem 1rem;font-weight:bold}
section{margin-top:2.5rem}
"""


def write_report(page: Path) -> None:
    """Write a page, self-contained, of figures of the data, the split and the model's answers.

    It shows photographs, so it goes where the data may go. Raises UserError if an out of the stages is missing.
    """
    bins = load_collection()
    sections = "\n".join(
        f"<section><h2>{escape(heading)}</h2><figure>{picture(figure, caption)}"
        f"<figcaption>{escape(caption)}</figcaption></figure></section>"
        for heading, figure, caption in _figures(bins)
    )
    body = f'<h1>The bins and the model</h1><p class="about">{bins.about()}</p>{_headline(bins)}{sections}'
    write_text(page, document("The bins and the model", body, STYLE))
    print(page)


def _headline(bins: Collection) -> str:
    """The model beside the answers that need none."""
    rows = [row for row in bins.benchmark if row.data.endswith("of this run")]
    of_rule, interval = bins.metrics[FOR_ACCURACY], bins.metrics["interval_95"]
    low, high = interval[FOR_ACCURACY]["within_one"]
    least, most = interval["calibration_error"]
    return (
        "<section><h2>What the model is worth</h2>"
        + table(["", "measured on", "accuracy %", "RMSE"], [(row.name, row.data, *row.cells()) for row in rows])
        + f"<p>At most one item off: {of_rule['within_one']:.1%} ({low:.1%}–{high:.1%}). Expected calibration error: "
        f"{bins.metrics['calibration_error']:.3f} ({least:.3f}–{most:.3f}). In brackets, 95 % intervals bootstrapped "
        "by group.</p></section>"
    )


def _figures(bins: Collection) -> Iterator[tuple[str, Figure, str]]:
    """Heading, figure, and what it shows in the numbers of this data."""
    yield from _data(bins)
    yield from _looks(bins)
    yield from _answers(bins)


def _data(bins: Collection) -> Iterator[tuple[str, Figure, str]]:
    counts, splits, products = bins.counts, np.array(bins.splits), bins.products
    number = {int(count): int((counts == count).sum()) for count in np.unique(counts)}
    commonest = max(number, key=lambda count: number[count])
    yield (
        "Bins by count",
        data_figures.counts_picture(counts, bins.splits),
        f"{len(counts):,} bins, of each count {min(number.values()):,} to {max(number.values()):,}. {commonest} is the "
        f"most common: always answering {commonest} would be right for {number[commonest] / len(counts):.1%}.",
    )
    present = [split for split in data_figures.SPLITS if split in bins.splits]
    shares = ", ".join(f"{split.replace('_', ' ')} {(splits == split).mean():.1%}" for split in present)
    splits_of: dict[str, set[str]] = {}
    for group, split in zip(bins.groups, bins.splits, strict=True):
        splits_of.setdefault(group, set()).add(split)
    yield (
        "The split",
        data_figures.split_picture(counts, bins.groups, bins.splits),
        f"Shares of the bins: {shares}. Photographs of one bin are a group: there are {len(splits_of):,}, of which "
        f"{sum(len(found) > 1 for found in splits_of.values()):,} are in two splits.",
    )
    width, height = np.median(bins.sizes, axis=0)
    yield (
        "Sizes of the photographs",
        data_figures.sizes_picture(bins.sizes),
        f"{bins.sizes[:, 0].min()} to {bins.sizes[:, 0].max()} pixels wide and {bins.sizes[:, 1].min()} to "
        f"{bins.sizes[:, 1].max()} high, in the median {width:.0f} and {height:.0f}; "
        f"{(bins.sizes[:, 0] > bins.sizes[:, 1]).mean():.0%} are wider than high. "
        "The model sees each squashed to a square.",
    )
    kinds = np.bincount(products.bins, minlength=len(counts))
    yield (
        "Products and items",
        data_figures.products_picture(counts, kinds, products.quantities),
        f"A bin holds {kinds.mean():.1f} products in the mean; {(kinds == 1).mean():.0%} of the bins hold one alone. "
        f"{(products.quantities == 1).mean():.0%} of the products lie there once.",
    )
    longest = products.sides.max(1)
    yield (
        "Weights and dimensions",
        data_figures.measures_picture(products.weights, products.sides),
        f"Of one item, by the records. Median weight {np.nanmedian(products.weights):.2f} pounds, median longest side "
        f"{np.nanmedian(longest):.1f} inches; {np.isnan(products.weights).mean():.1%} of the products have no weight, "
        f"{np.isnan(longest).mean():.1%} lack a side.",
    )


def _looks(bins: Collection) -> Iterator[tuple[str, Figure, str]]:
    pairs = selection.twins(bins.groups)
    drawn = selection.drawn(len(pairs), 6, seed=1)
    images = bins.images(pairs[drawn].ravel())
    apart = np.abs(np.diff(bins.counts[pairs])).ravel()
    yield (
        "Twins: one bin, before and after",
        data_figures.twins_picture(list(zip(images[::2], images[1::2], strict=True)), bins.counts[pairs[drawn]]),
        f"{len(pairs):,} bins were photographed more than once; {len(drawn)} of them, drawn at random, with their "
        f"first two photographs. The counts of the two differ for {np.mean(apart > 0):.0%} of these bins.",
    )
    rows = selection.examples(bins.counts, 5, seed=1)
    yield (
        "Examples of each count",
        data_figures.photographs_picture(bins.images(rows), [f"record {bins.counts[row]}" for row in rows], across=5),
        "Five bins of each count, drawn at random.",
    )
    rows = np.argsort(bins.sharpness, kind="stable")[:PHOTOGRAPHS]
    values = bins.sharpness[rows]
    yield (
        "The most blurred photographs",
        data_figures.photographs_picture(
            bins.images(rows), [f"record {bins.counts[row]}, {bins.sharpness[row]:.0f}" for row in rows], across=4
        ),
        f"The variance of the Laplacian in grey, at a width of {selection.SHARPNESS_WIDTH} pixels (Pech-Pacheco et al. "
        f"2000), is {values[0]:.0f} to {values[-1]:.0f} here, {np.median(bins.sharpness):.0f} in the median of all.",
    )


def _answers(bins: Collection) -> Iterator[tuple[str, Figure, str]]:
    scored = bins.scored
    record = scored.probabilities[np.arange(len(scored.truth)), np.searchsorted(scored.counts, scored.truth)]
    rows = selection.unlikeliest(scored, PHOTOGRAPHS)
    yield (
        "Records the model doubts",
        _doubtful(bins, rows, f"Least likely records of {bins.about_tested()}"),
        f"The {len(rows)} test bins whose record the model finds least likely, with a probability of "
        f"{record[rows].min():.2%} to {record[rows].max():.2%}; in orange that of the record. "
        "The record may be wrong, the photograph bad, or the model at fault.",
    )
    spread = selection.entropy(scored.probabilities)
    rows = selection.least_certain(scored, PHOTOGRAPHS)
    yield (
        "Bins the model cannot tell",
        _doubtful(bins, rows, f"Least certain answers for {bins.about_tested()}"),
        f"The distributions with the most entropy, {spread[rows].min():.2f} to {spread[rows].max():.2f} nats; knowing "
        f"nothing would be {np.log(len(scored.counts)):.2f}, the median is {np.median(spread):.2f}.",
    )
    met = confusion(scored, FOR_ACCURACY)
    answers = bins.answers[FOR_ACCURACY]
    right = float((answers == scored.truth).mean())
    wrong = np.where(np.eye(len(met), dtype=bool), 0, met / met.sum(1, keepdims=True).clip(1))
    actual, taken = divmod(int(wrong.argmax()), len(wrong))
    yield (
        "Learned confusions",
        confusion_picture(met, scored.counts, f"{bins.about_tested()}: {right:.1%} right"),
        f"Each row is shared out by the most probable count. The largest share that is wrong: {wrong.max():.0%} of the "
        f"bins of {scored.counts[actual]} are taken for {scored.counts[taken]}.",
    )
    majority = bins.majority()
    errors = answers - scored.truth
    yield (
        "Errors",
        data_figures.errors_picture(
            {rule: bins.answers[rule] - scored.truth for rule in dict.fromkeys(bins.metrics["decoding"].values())}
            | {f"always {majority}": majority - scored.truth}
        ),
        f"The most probable count is right for {right:.1%}, too low for {(errors < 0).mean():.1%} and too high for "
        f"{(errors > 0).mean():.1%}; in the mean it is {errors.mean():+.2f} items off.",
    )


def _doubtful(bins: Collection, rows: Counts, title: str) -> Figure:
    scored = bins.scored
    images = bins.images(bins.tested[rows])
    return examples_picture(images, scored.truth[rows].tolist(), scored.probabilities[rows], scored.counts, title)
