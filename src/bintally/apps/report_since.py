"""The section of the report about predictions that were made later."""

from html import escape
from pathlib import Path

import numpy as np

from bintally import paths
from bintally.apps.collection import Collection
from bintally.apps.since import Answers, meaning, read_answers
from bintally.model.card import load_card
from bintally.page import picture, table
from bintally.scoring import data_figures
from bintally.scoring.calibration import model_name
from bintally.scoring.decoding import FOR_ACCURACY


def since_section(bins: Collection, path: Path) -> tuple[str, str, str]:
    """Heading, HTML and caption of new predictions beside those of the test bins."""
    counts, reference = bins.predictions.counts, load_card(paths.MODELS).distances
    new = read_answers(path, counts, model_name(paths.MODELS))
    confidence = bins.predictions.probabilities.max(1)
    ranks = np.full(len(confidence), np.nan)  # of test bins they are not kept
    measured = Answers.of(counts, bins.predicted_counts[FOR_ACCURACY], confidence, bins.unsure, ranks)
    both = {bins.test_description(): measured, "since then": new}
    rank = "unknown"
    if reference and new.by_rank.sum():
        mean, margin = new.mean_rank(reference)
        rank = f"{mean:.2f} ± {margin:.2f}"
    rows = [
        ("photographs", *(f"{one.photographs:,}" for one in both.values())),
        ("most probable count, mean", *(f"{one.by_count @ counts / one.photographs:.2f}" for one in both.values())),
        ("its probability, mean", *(f"{one.confidence / one.photographs:.1%}" for one in both.values())),
        ("unsure", *(f"{one.unsure_share:.1%}" for one in both.values())),
        ("rank of the distance from training's photographs, mean", "0.50 in validation", rank),
    ]
    figure = data_figures.since_figure(
        counts,
        {name: one.by_count for name, one in both.items()},
        {name: one.by_confidence for name, one in both.items()},
        new.by_rank,
    )
    caption = (
        f"Predictions in {path}: the most probable count, its probability, and the rank of the distance, which is the "
        "share of validation's photographs that lie nearer to those of training. Grey: what the model was measured on."
    )
    sentence = f"<p><b>{escape(meaning(new, measured, reference))}</b></p>"
    return "Since then", sentence + table(["", *both], rows) + picture(figure, caption), caption
