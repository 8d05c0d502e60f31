"""What training knows of lists: their features, and how frequent counts are with the products, from training alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bintally.bins.products import UNNAMED
from bintally.bins.shards import Bin, write_shards
from bintally.scoring import compositions
from bintally.scoring.evidence import ListFeatures
from bintally.scoring.record_errors import Totals
from bintally.training import lists
from bintally.training.lists import LEAST, ListInputs, read_list_inputs

TOTALS = Totals([1, 2], open_ended=False)
Products = dict[str, tuple[int, float]]


def bin_of(*products: tuple[int, float]) -> Products:
    """The quantities of products, and the logarithm of their sides and their weight."""
    return {str(at): product for at, product in enumerate(products)}


LEARNED = [*[bin_of((1, 2.0))] * 300, *[bin_of((2, 2.0))] * 100, *[bin_of((1, 2.0), (1, 6.0))] * 400]
MEAN, DEVIATION = 3.333333, 1.885618  # of the sizes of these products: 2 in two thirds of them, 6 in the others
UNKNOWN: Products = {UNNAMED: (1, 2.0)}
# One and two products; a count that is not allowed, whose list excludes another; not known what lies in it.
ASKED = [bin_of((1, 2.0)), bin_of((1, 6.0), (1, math.nan)), bin_of(*[(1, 2.0)] * 3), UNKNOWN]


def read(folder: Path, bins: list[Products], is_train: NDArray[np.bool_]) -> tuple[ListInputs, ListFeatures]:
    """The inputs for bins with these products."""
    ids = [f"{row:05d}" for row in range(len(bins))]
    write_shards(folder, [Bin(bin_id, 1, bin_id, b"", _record(one)) for bin_id, one in zip(ids, bins, strict=True)])
    return read_list_inputs(folder, folder / "corrections.csv", ids, is_train, TOTALS)


def _record(products: Products) -> bytes:
    measures = ("length", "width", "height", "weight")
    items = {
        key: {"quantity": quantity}
        | {
            name: {"value": math.exp(size), "unit": "pounds" if name == "weight" else "in"}
            for name in measures
            if not math.isnan(size)
        }
        for key, (quantity, size) in products.items()
    }
    return json.dumps({"BIN_FCSKU_DATA": items}).encode()


def test_features_and_frequencies_are_of_the_products_and_zero_where_they_are_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bins = [*LEARNED, *ASKED]
    is_train = np.arange(len(bins)) < len(LEARNED)
    inputs, scale = read(tmp_path, bins, is_train)
    assert scale.means == pytest.approx([3 * MEAN, *[MEAN] * 3], abs=1e-4)
    assert scale.deviations == pytest.approx([3 * DEVIATION, *[DEVIATION] * 3], abs=1e-4)
    number, small, large = np.eye(6), -0.70711, 1.41421  # one-hot; standardised
    rows = [[*number[1], *[small] * 4], [*number[2], *[large] * 4], [*number[3], *[small] * 4], [0.0] * 10]
    np.testing.assert_allclose(inputs.features[-4:], np.array(rows), atol=1e-4)
    # Three of four bins with one product have one item; penalties of the fit move this little.
    np.testing.assert_allclose(np.exp(inputs.log_prior[-4]), [0.75, 0.25], atol=0.02)
    least = math.log(LEAST)
    expected = np.array([[least, 0.0], [least, least], [0.0, 0.0]])
    np.testing.assert_allclose(inputs.log_prior[-3:], expected, atol=1e-6)

    monkeypatch.setattr(lists, "BINS_AT_ONCE", 37)
    in_parts, same = read(tmp_path, bins, is_train)
    assert same == scale
    np.testing.assert_allclose(in_parts.features, inputs.features, rtol=1e-6)
    np.testing.assert_allclose(in_parts.log_prior, inputs.log_prior, rtol=1e-6)


def test_frequencies_are_learned_from_known_bins_of_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bins = [*LEARNED, *ASKED]
    is_train = np.arange(len(bins)) < len(LEARNED)
    expected, scale = read(tmp_path, bins, is_train)
    others = [bin_of((2, 2.0)), {UNNAMED: (2, 2.0)}, bin_of((5, 2.0))]  # the last is not of TOTALS
    inputs, same = read(tmp_path, [*bins, *others * 50], np.append(is_train, [False, True, True] * 50))
    assert same == scale
    np.testing.assert_array_equal(inputs.log_prior[: len(bins)], expected.log_prior)
    changed, other = read(tmp_path, [*bins, *others * 50], np.append(is_train, [True] * 150))
    assert other != scale and changed.log_prior[len(LEARNED), 1] > expected.log_prior[len(LEARNED), 1] + 0.1

    monkeypatch.setattr(compositions, "MOST_RECORDS", 500)
    of_some, drawn = read(tmp_path, bins, is_train)
    assert read(tmp_path, bins, is_train)[1] == drawn != scale
    assert drawn.means == pytest.approx(scale.means, abs=0.6)
    np.testing.assert_allclose(np.exp(of_some.log_prior[-4]), [0.75, 0.25], atol=0.05)
