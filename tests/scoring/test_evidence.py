"""Features of lists of products and the evidence of a photograph with them, worked out by hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bintally.errors import UserError
from bintally.scoring.evidence import FEATURES, ListFeatures, load_list_features, log_evidence
from small import CARD

SCALE = ListFeatures(means=[4.0, 3.0, 2.0, 1.0], deviations=[2.0, 1.0, 0.5, 1.0])
NAN = np.nan


def one_hot(place: int) -> list[float]:
    return [float(place == one) for one in range(6)]


def test_features_are_the_number_of_products_and_their_standardised_mean_sizes() -> None:
    present, sizes = np.zeros((5, 9), bool), np.full((5, 9, 4), 77.0)  # sizes of what is not there count for nothing
    present[1, [2, 4]], present[2, :5], present[3], present[4] = True, True, True, True
    sizes[1, [2, 4]] = [[6, 3, 2, NAN], [8, NAN, 3, NAN]]
    sizes[2, :5] = NAN
    sizes[3] = sizes[4] = [2, 3, -50, 2]
    sizes[4, 0] = NAN
    features = SCALE.of(present, sizes)
    assert features.shape == (5, FEATURES)
    assert features.tolist() == [
        [*one_hot(0), 0, 0, 0, 0],
        [*one_hot(2), 1.5, 0, 1, 0],  # the means of 1 and 2, of the 0 that is known, of 0 and 2
        [*one_hot(5), 0, 0, 0, 0],
        [*one_hot(5), -1, 0, -3, 1],  # -50 is as far off as a size is taken to be
        [*one_hot(5), -1, 0, -3, 1],
    ]
    nothing = SCALE.of(np.zeros((2, 0), bool), np.zeros((2, 0, 4)))
    assert nothing.tolist() == [[*one_hot(0), 0, 0, 0, 0]] * 2


def test_evidence_sums_the_rows_of_a_table_that_the_list_has_features_of() -> None:
    places = np.arange(FEATURES)
    tables = np.stack([np.stack([places, places**2], 1), np.stack([-places, places * 0], 1)]).astype(np.float32)
    features = np.array([[*one_hot(2), 1.5, 0, 1, 0], [*one_hot(5), -1, 0, 0, 0.5]])
    expected = [[2 + 6 * 1.5 + 8, 4 + 36 * 1.5 + 64], [-5 + 6 - 9 / 2, 0]]
    found = log_evidence(tables, features)
    assert found.dtype == np.float64 and found.tolist() == expected


def test_a_card_that_does_not_say_how_lists_are_scaled_is_refused_in_one_sentence(tmp_path: Path) -> None:
    card = tmp_path / "card.json"
    card.write_text(CARD.model_dump_json())
    assert load_list_features(card) == CARD.list_features
    scale = SCALE.model_dump()
    contents: list[object] = [{"hidden": 16}, [], None, "list_features", {"list_features": None}]
    contents += [
        {"list_features": scale | change}
        for change in (
            {"means": [4.0, 3.0, 2.0]},
            {"deviations": [1.0] * 5},
            {"deviations": [1.0, 1.0, 0.0, 1.0]},
            {"means": [NAN] * 4},
            {"medians": [1.0] * 4},
        )
    ]
    message = f"^{re.escape(str(card))} does not say how lists of products are scaled; `dvc repro train` writes it$"
    for text in ("{", "", *map(json.dumps, contents)):
        card.write_text(text)
        with pytest.raises(UserError, match=message):
            load_list_features(card)
    card.unlink()
    with pytest.raises(UserError, match=message):
        load_list_features(card)
