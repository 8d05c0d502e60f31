"""The sections of the report: figures with captions, and cards of doubted records."""

import base64
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from bintally.apps.collection import Collection
from bintally.apps.report_quality import quality_sections
from bintally.bins.products import listed_products
from bintally.page import picture, table
from bintally.scoring import data_figures, selection
from bintally.scoring.decoding import FOR_ACCURACY
from bintally.scoring.figures import confusion_figure, examples_figure
from bintally.scoring.metrics import Counts, Floats, confusion

PHOTOGRAPHS = 8
DOUBTED_RECORDS = 60


def report_sections(bins: Collection, since: Path | None = None) -> Iterator[str]:
    """``<section>`` elements, in order.

    Args:
        since: predictions of other photographs, to compare with those of the test bins; None: none.

    Raises UserError as :func:`bintally.apps.since.read_answers` does.
    """
    new = ""
    if since:
        from bintally.apps.report_since import since_section  # imports torch, which nothing else here needs

        new = _section(*since_section(bins, since))
    yield _headline(bins)
    yield new
    yield from _data_figures(bins)
    yield from _photographs(bins)
    yield _doubted_records(bins)
    yield from _prediction_figures(bins)


def _section(heading: str, content: Figure | str, caption: str) -> str:
    """A section of a figure, or of HTML."""
    html = content if isinstance(content, str) else picture(content, caption)
    figure_html = f"<figure>{html}<figcaption>{escape(caption)}</figcaption></figure>"
    return f"<section><h2>{escape(heading)}</h2>{figure_html}</section>"


def _headline(bins: Collection) -> str:
    """The metrics of the model and of the baselines."""
    rows = [row for row in bins.benchmark if row.data.endswith("of this run")]
    metrics, interval = bins.metrics[FOR_ACCURACY], bins.metrics["interval_95"]
    low, high = interval[FOR_ACCURACY]["within_one"]
    error_low, error_high = interval["calibration_error"]
    return (
        "<section><h2>Metrics of the model</h2>"
        + table(["", "measured on", "accuracy %", "RMSE"], [(row.name, row.data, *row.cells()) for row in rows])
        + f"<p>At most one item off: {metrics['within_one']:.1%} ({low:.1%}–{high:.1%}). Expected calibration error: "
        f"{bins.metrics['calibration_error']:.3f} ({error_low:.3f}–{error_high:.3f}). In brackets: 95 % intervals, "
        "bootstrapped by group.</p></section>"
    )


def _data_figures(bins: Collection) -> Iterator[str]:
    counts, splits, products = bins.counts, np.array(bins.splits), bins.products
    values, numbers = np.unique(counts, return_counts=True)
    yield _section(
        "Bins by count",
        data_figures.counts_figure(counts, bins.splits),
        f"{len(counts):,} bins, {numbers.min():,} to {numbers.max():,} of each count. Always predicting "
        f"{values[numbers.argmax()]}, the most frequent count, would be right for {numbers.max() / len(counts):.1%}.",
    )
    present = [split for split in data_figures.SPLITS if split in bins.splits]
    shares = ", ".join(f"{split.replace('_', ' ')} {(splits == split).mean():.1%}" for split in present)
    splits_per_group = Counter(group for group, _ in set(zip(bins.groups, bins.splits, strict=True)))
    yield _section(
        "The split",
        data_figures.split_figure(counts, bins.groups, bins.splits),
        f"Shares of the bins: {shares}. Photographs of the same bin are a group; of {len(splits_per_group):,} "
        f"groups, {sum(number > 1 for number in splits_per_group.values()):,} are in two splits.",
    )
    width, height = np.median(bins.sizes, axis=0)
    yield _section(
        "Sizes of the photographs",
        data_figures.sizes_figure(bins.sizes),
        f"{bins.sizes[:, 0].min()} to {bins.sizes[:, 0].max()} pixels wide (median {width:.0f}), "
        f"{bins.sizes[:, 1].min()} to {bins.sizes[:, 1].max()} high (median {height:.0f}); "
        f"{(bins.sizes[:, 0] > bins.sizes[:, 1]).mean():.0%} are wider than high. "
        "The model sees each resized to a square.",
    )
    products_per_bin = np.bincount(products.bin_rows, minlength=len(counts))
    yield _section(
        "Products and items",
        data_figures.products_figure(counts, products_per_bin, products.quantities),
        f"A bin has {products_per_bin.mean():.1f} products on average; {(products_per_bin == 1).mean():.0%} of them "
        f"have only one. {(products.quantities == 1).mean():.0%} of the products have one item in their bin.",
    )
    longest = products.sides.max(1)
    yield _section(
        "Weights and dimensions",
        data_figures.measures_figure(products.weights, products.sides),
        f"One item, from the records. Median weight {_median(products.weights, 'pounds')}, median longest side "
        f"{_median(longest, 'inches')}; {np.isnan(products.weights).mean():.1%} of the products have no weight, "
        f"{np.isnan(longest).mean():.1%} lack a side.",
    )


def _median(values: Floats, unit: str) -> str:
    known = values[~np.isnan(values)]
    return f"{np.median(known):.3g} {unit}" if len(known) else "unknown"


def _photographs(bins: Collection) -> Iterator[str]:
    pairs = selection.same_bin_pairs(bins.groups)
    if len(pairs):
        yield _same_bin(bins, pairs)
    rows = selection.examples(bins.counts, 5, seed=1)
    titles = [f"record {bins.counts[row]}" for row in rows]
    yield _section(
        "Examples of each count",
        data_figures.photographs_figure(bins.images(rows), titles, grid_columns=5),
        "Five bins of each count, drawn at random.",
    )
    for heading, figure, caption in quality_sections(bins):
        yield _section(heading, figure, caption)


def _same_bin(bins: Collection, pairs: Counts) -> str:
    shown = pairs[selection.random_rows(len(pairs), 6, seed=1)]
    images = bins.images(shown.ravel())
    differences = np.abs(np.diff(bins.counts[pairs])).ravel()
    return _section(
        "Photographs of the same bin",
        data_figures.same_bin_figure(list(zip(images[::2], images[1::2], strict=True)), bins.counts[shown]),
        f"{len(pairs):,} bins were photographed more than once; the first two photographs of {len(shown)} of them, "
        f"drawn at random. The counts of the two differ for {np.mean(differences > 0):.0%} of the bins.",
    )


def _doubted_records(bins: Collection) -> str:
    rows = selection.least_likely_records(bins.predictions, DOUBTED_RECORDS)
    return _section(
        "Records the model doubts",
        '<div class="cards">' + "\n".join(_card(bins, row) for row in rows) + "</div>",
        f"The {len(rows)} of {bins.test_description()} with the lowest probability of the record, the lowest first. "
        "Bars: the probability of each count, that of the record in orange. The record, the photograph or the "
        "prediction may be at fault.",
    )


def _card(bins: Collection, row: int) -> str:
    """Photograph, id, record, prediction, prediction set, probabilities and items of a test bin."""
    entry, record = bins.entries[bins.test_rows[row]], int(bins.predictions.truth[row])
    probability_of = dict(zip(bins.predictions.counts, bins.predictions.probabilities[row].tolist(), strict=True))
    css_class = {count: "record" if count == record else "" for count in probability_of}
    bars = "".join(
        f'<td class="bars {css_class[count]}" title="{probability:.1%}"><i style="height:{probability * 3.5:.2f}rem">'
        "</i></td>"
        for count, probability in probability_of.items()
    )
    labels = "".join(f'<th scope="col" class="{css_class[count]}">{count}</th>' for count in probability_of)
    items = "".join(
        f"<li>{one.quantity} × {escape(one.name)}</li>" for one in listed_products(bins.reader.record(entry))
    )
    image = base64.b64encode(bins.reader.image(entry)).decode()
    low, high = bins.prediction_sets[row]
    return (
        f'<article><img src="data:image/jpeg;base64,{image}" alt="bin {escape(entry.id)}">'
        f"<div><b>{escape(entry.id)}</b>: record {record}, model {bins.predicted_counts[FOR_ACCURACY][row]}, "
        f"set {low}–{high}, P(record) {probability_of[record]:.1%}"
        f"<table><tr>{bars}</tr><tr>{labels}</tr></table><ul>{items}</ul></div></article>"
    )


def _prediction_figures(bins: Collection) -> Iterator[str]:
    predictions = bins.predictions
    rows = selection.least_certain(predictions, PHOTOGRAPHS)
    entropies = selection.entropy(predictions.probabilities)
    yield _section(
        "The least certain predictions",
        examples_figure(
            bins.images(bins.test_rows[rows]),
            predictions.truth[rows].tolist(),
            predictions.probabilities[rows],
            predictions.counts,
            f"Least certain predictions for {bins.test_description()}",
        ),
        f"The distributions with the highest entropy, {entropies[rows].min():.2f} to {entropies[rows].max():.2f} nats; "
        f"a uniform one has {np.log(len(predictions.counts)):.2f}, the median is {np.median(entropies):.2f}.",
    )
    matrix = confusion(predictions, FOR_ACCURACY)
    errors = bins.predicted_counts[FOR_ACCURACY] - predictions.truth
    accuracy = float((errors == 0).mean())
    wrong_shares = np.where(np.eye(len(matrix), dtype=bool), 0, matrix / matrix.sum(1, keepdims=True).clip(1))
    actual, predicted = divmod(int(wrong_shares.argmax()), len(matrix))
    yield _section(
        "Confusion matrix",
        confusion_figure(matrix, predictions.counts, f"{bins.test_description()}: {accuracy:.1%} right"),
        f"Shares of each row. The most frequent confusion: {predictions.counts[predicted]} is predicted for "
        f"{wrong_shares.max():.0%} of the bins with {predictions.counts[actual]}.",
    )
    majority = bins.majority_count()
    rules = dict.fromkeys(bins.metrics["decoding"].values())
    by_name = {rule: bins.predicted_counts[rule] - predictions.truth for rule in rules}
    yield _section(
        "Errors",
        data_figures.errors_figure(by_name | {f"always {majority}": majority - predictions.truth}),
        f"The most probable count is right for {accuracy:.1%}, too low for {(errors < 0).mean():.1%} and too high for "
        f"{(errors > 0).mean():.1%}; its mean error is {errors.mean():+.2f} items.",
    )
