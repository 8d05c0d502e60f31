"""The count given the products: what the photograph and the list say together, and the file it is kept in."""

import json
from pathlib import Path

import numpy as np
import pytest

from bintally.errors import UserError
from bintally.params import ErrorShares
from bintally.scoring.calibration import save_calibration
from bintally.scoring.compositions import fit_compositions
from bintally.scoring.record_model import (
    FILE,
    Lists,
    RecordModel,
    combined,
    count_by_products,
    fit_photograph,
    load_record_model,
    photograph_evidence,
    require_record_model,
    save_record_model,
)
from sampled_bins import TOTALS, sampled_lists
from small import CALIBRATION

COUNTS = TOTALS.counts


def model(weight: float = 1.0, offsets: tuple[float, ...] = (0, 0, 0, 0)) -> RecordModel:
    lists = sampled_lists(3000, np.random.default_rng(0))
    return RecordModel(
        compositions=fit_compositions(lists.quantities, lists.sizes, TOTALS),
        photograph_weight=weight,
        offsets=list(offsets),
        error_shares=ErrorShares(quantity=0.5, unlisted=0.3, missing=0.2),
        answers=CALIBRATION.model_copy(update={"counts": list(COUNTS), "temperature": 1.0}),
    )


def photographs(counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Calibrated probabilities of counts that are all as frequent: by Bayes from a noisy look at the true one."""
    seen = counts + random.normal(0, 1, len(counts))
    likelihoods = np.exp(-0.5 * (seen[:, None] - np.asarray(COUNTS)) ** 2)
    return np.asarray(likelihoods / likelihoods.sum(1, keepdims=True))


def test_the_products_alone_give_the_shares_of_counts_among_such_bins() -> None:
    fresh = sampled_lists(20_000, np.random.default_rng(1))
    by_products = count_by_products(model().compositions, TOTALS, fresh)
    np.testing.assert_allclose(by_products.sum(1), 1)
    for number in (1, 2, 3):
        rows = fresh.present.sum(1) == number
        shares = np.bincount(fresh.totals[rows], minlength=5)[1:] / rows.sum()
        np.testing.assert_allclose(by_products[rows][0], shares, atol=0.03)


def test_both_together_are_calibrated_and_better_than_either() -> None:
    random = np.random.default_rng(2)
    lists = sampled_lists(20_000, random)
    probabilities, true_class = photographs(lists.totals, random), lists.totals - 1
    both = model().count_given_products(probabilities, lists)
    alone = count_by_products(model().compositions, TOTALS, lists)

    def loss(values: np.ndarray) -> float:
        return float(-np.log(values[np.arange(len(values)), true_class]).mean())

    assert loss(both) < min(loss(probabilities), loss(alone)) - 0.05
    # Counts of these photographs were all as frequent, so nothing is to be corrected.
    weight, offsets = fit_photograph(alone, probabilities, true_class)
    assert weight == pytest.approx(1, abs=0.05) and np.ptp(offsets) < 0.2
    confident = both.max(1) > 0.8
    assert (both.argmax(1) == true_class)[confident].mean() == pytest.approx(both.max(1)[confident].mean(), abs=0.01)


def test_a_photograph_that_says_too_much_is_weighed_less() -> None:
    random = np.random.default_rng(3)
    lists = sampled_lists(5000, random)
    probabilities = photographs(lists.totals, random) ** 2
    probabilities /= probabilities.sum(1, keepdims=True)
    weight, _ = fit_photograph(count_by_products(model().compositions, TOTALS, lists), probabilities, lists.totals - 1)
    assert weight == pytest.approx(0.5, abs=0.05)


def test_the_photograph_decides_where_the_products_allow_no_count() -> None:
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)
    quantities = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]])  # five, none, four products
    given = model().count_given_products(probabilities, Lists(quantities, np.full((3, 5, 4), np.nan)))
    np.testing.assert_allclose(given[:2], probabilities[:2])
    np.testing.assert_allclose(given[2], [0, 0, 0, 1])
    none = Lists(np.zeros((3, 0), np.int64), np.zeros((3, 0, 4)))
    np.testing.assert_allclose(model().count_given_products(probabilities, none), probabilities)
    evidence = photograph_evidence(np.array([[1.0, 0, 0, 0]]), 1.0, [0.0] * 4)
    np.testing.assert_allclose(combined(np.array([[0, 1.0, 0, 0]]), evidence, probabilities[:1]), [[0, 1, 0, 0]])


def test_it_is_read_as_it_was_saved_beside_its_own_calibration_alone(tmp_path: Path) -> None:
    for name in ("model.safetensors", "card.json"):
        (tmp_path / name).write_bytes(name.encode())
    save_calibration(tmp_path, CALIBRATION)
    assert load_record_model(tmp_path) is None
    with pytest.raises(UserError, match=f"holds no {FILE}, so this model cannot read records: `dvc repro calibrate`"):
        require_record_model(tmp_path)
    saved = model(0.8, (0.1, 0, 0, -0.1))
    save_record_model(tmp_path, saved)
    assert load_record_model(tmp_path) == saved
    save_calibration(tmp_path, CALIBRATION.model_copy(update={"temperature": 3.0}))
    with pytest.raises(UserError, match=r"another model than calibration\.json beside it"):
        load_record_model(tmp_path)


def test_a_file_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "card.json"):
        (tmp_path / name).write_bytes(name.encode())
    save_calibration(tmp_path, CALIBRATION)
    save_record_model(tmp_path, model())
    content = json.loads((tmp_path / FILE).read_text())
    compositions = content["compositions"]
    for changes, reason in (
        ({"photograph_weight": "heavy"}, "photograph_weight: "),
        ({"photograph_weight": 1e308}, "photograph_weight and offsets must be within"),
        ({"offsets": [0.0]}, "1 offsets do not fit 4 counts"),
        ({"compositions": compositions | {"deviations": [0.0] * 4}}, "compositions: .*deviations must be above 0"),
        ({"compositions": compositions | {"coefficients": [[0.0] * 4]}}, "do not fit 4 sizes and 4 quantities"),
        ({"compositions": compositions | {"empty": 0.0}}, "must be shares above 0"),
    ):
        (tmp_path / FILE).write_text(json.dumps(content | changes))
        with pytest.raises(UserError, match=f"is damaged: .*{reason}"):
            load_record_model(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(UserError, match="is damaged: Invalid JSON"):
        load_record_model(tmp_path)
