"""The count given the products: what the photograph and the list say together, and the file it is kept in."""

import json
from pathlib import Path

import numpy as np
import pytest

from bintally.errors import UserError
from bintally.params import ErrorShares
from bintally.scoring.calibration import save_calibration
from bintally.scoring.compositions import count_by_products, fit_compositions
from bintally.scoring.evidence import FEATURES, ListFeatures
from bintally.scoring.lists import Lists
from bintally.scoring.record_model import (
    FILE,
    ReadWithList,
    RecordModel,
    combined,
    fit_weights,
    load_record_model,
    log_probabilities,
    require_record_model,
    save_record_model,
    weighted,
)
from sampled_bins import TOTALS, sampled_lists
from small import CALIBRATION

COUNTS = TOTALS.counts
WITH_LIST = ReadWithList(
    features=ListFeatures(means=[1.0, 2.0, 3.0, 4.0], deviations=[0.5, 1.0, 2.0, 4.0]),
    evidence_weight=0.8,
    photograph_weight=0.3,
    offsets=[0.0, 0.2, -0.1, 0.4],
)


def model(
    weight: float = 1.0, offsets: tuple[float, ...] = (0, 0, 0, 0), with_list: ReadWithList | None = None
) -> RecordModel:
    lists = sampled_lists(3000, np.random.default_rng(0))
    return RecordModel(
        compositions=fit_compositions(lists.quantities, lists.sizes, TOTALS),
        photograph_weight=weight,
        offsets=list(offsets),
        with_list=with_list,
        error_shares=ErrorShares(quantity=0.5, unlisted=0.3, missing=0.2),
        answers=CALIBRATION.model_copy(update={"counts": list(COUNTS), "temperature": 1.0}),
    )


def photographs(counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Calibrated probabilities of counts that are all as frequent: by Bayes from a noisy look at the true one."""
    seen = counts + random.normal(0, 1, len(counts))
    likelihoods = np.exp(-0.5 * (seen[:, None] - np.asarray(COUNTS)) ** 2)
    return np.asarray(likelihoods / likelihoods.sum(1, keepdims=True))


def no_tables(number: int) -> np.ndarray:
    """The tables of a network without features of a list."""
    return np.zeros((number, 0, len(COUNTS)))


def test_both_together_are_calibrated_and_better_than_either() -> None:
    random = np.random.default_rng(2)
    lists = sampled_lists(20_000, random)
    probabilities, true_class = photographs(lists.totals, random), lists.totals - 1
    both = model().count_given_products(probabilities, no_tables(20_000), lists)
    alone = count_by_products(model().compositions, TOTALS, lists)

    def loss(values: np.ndarray) -> float:
        return float(-np.log(values[np.arange(len(values)), true_class]).mean())

    assert loss(both) < min(loss(probabilities), loss(alone)) - 0.05
    # Counts of these photographs were all as frequent, so nothing is to be corrected.
    (weight,), offsets = fit_weights(alone, [log_probabilities(probabilities)], true_class)
    assert weight == pytest.approx(1, abs=0.05) and np.ptp(offsets) < 0.2
    confident = both.max(1) > 0.8
    assert (both.argmax(1) == true_class)[confident].mean() == pytest.approx(both.max(1)[confident].mean(), abs=0.01)


def joint_by_hand(by_products: np.ndarray, logs: np.ndarray, offsets: list[float]) -> np.ndarray:
    joint = by_products * np.exp(logs + np.asarray(offsets))
    return np.asarray(joint / joint.sum(1, keepdims=True))


def test_evidence_with_the_list_is_weighed_for_the_count_where_the_model_has_weights_for_it() -> None:
    random = np.random.default_rng(4)
    lists = Lists(np.array([[2, 0, 0], [1, 0, 1], [0, 1, 0]]), np.full((3, 3, 4), np.nan))
    lists.sizes[1, [0, 2]] = [[1.5, 2, 5, 0], [1.5, 2, 5, 0]]  # standardised 1, 0, 1 and -1
    probabilities, tables = random.dirichlet(np.ones(4), 3), random.normal(size=(3, FEATURES, 4))
    by_products = count_by_products(model().compositions, TOTALS, lists)

    without = model(0.5, (0.1, 0, 0, -0.3)).count_given_products(probabilities, tables, lists)
    expected = joint_by_hand(by_products, 0.5 * np.log(probabilities), [0.1, 0, 0, -0.3])
    np.testing.assert_allclose(without, expected)

    read = tables[:, 1] * 1.0
    read[1] = tables[1, 2] + tables[1, 6] + tables[1, 8] - tables[1, 9]
    found = model(0.5, with_list=WITH_LIST).count_given_products(probabilities, tables, lists)
    expected = joint_by_hand(by_products, 0.8 * read + 0.3 * np.log(probabilities), WITH_LIST.offsets)
    np.testing.assert_allclose(found, expected)
    assert np.abs(found - without).max(1).min() > 0.05

    # What the list says may be wrong where it is judged.
    evidence = model(0.5, (0.1, 0, 0, -0.3), WITH_LIST).evidence(probabilities)
    np.testing.assert_allclose(evidence, 0.5 * np.log(probabilities) + [0.1, 0, 0, -0.3])


def test_sources_that_say_too_much_or_nothing_are_weighed_less() -> None:
    random = np.random.default_rng(3)
    lists = sampled_lists(8000, random)
    by_products, true_class = count_by_products(model().compositions, TOTALS, lists), lists.totals - 1
    one, other = (log_probabilities(photographs(lists.totals, random)) for _ in range(2))
    noise = random.normal(0, 1, one.shape)
    weights, offsets = fit_weights(by_products, [2 * one, other, noise], true_class)
    assert weights == pytest.approx([0.5, 1, 0], abs=0.06) and np.ptp(offsets) < 0.2
    (alone,), _ = fit_weights(by_products, [2 * one], true_class)
    assert alone == pytest.approx(0.5, abs=0.05)


def test_weights_stay_within_bounds_where_few_bins_are_told_apart_or_all_photographs_say_the_same() -> None:
    true_class = np.array([0, 1, 3, 2, 2])
    by_products = np.full((5, 4), 0.25)
    clear, same = np.eye(4)[true_class] / 1000, np.zeros((5, 4))
    weights, offsets = fit_weights(by_products, [clear, same], true_class)
    evidence = ReadWithList(
        features=WITH_LIST.features, evidence_weight=weights[0], photograph_weight=weights[1], offsets=offsets
    )
    assert model(with_list=evidence).with_list == evidence and weights[0] > 1 and weights[1] == 0
    impossible = np.eye(4)[(true_class + 1) % 4]
    assert fit_weights(impossible, [clear, same], true_class) == ([0.5, 0.5], [0.0] * 4)


def test_the_photograph_decides_where_the_products_allow_no_count() -> None:
    probabilities = np.array([[0.1, 0.2, 0.3, 0.4]] * 3)
    quantities = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]])  # five, none, four products
    lists, tables = Lists(quantities, np.full((3, 5, 4), np.nan)), np.ones((3, FEATURES, 4))
    given = model(with_list=WITH_LIST).count_given_products(probabilities, tables, lists)
    np.testing.assert_allclose(given[:2], probabilities[:2])
    np.testing.assert_allclose(given[2], [0, 0, 0, 1])
    none = Lists(np.zeros((3, 0), np.int64), np.zeros((3, 0, 4)))
    for one in (model(), model(with_list=WITH_LIST)):
        np.testing.assert_allclose(one.count_given_products(probabilities, tables, none), probabilities)
    evidence = weighted([log_probabilities(np.array([[1.0, 0, 0, 0]]))], [1.0], [0.0] * 4)
    np.testing.assert_allclose(combined(np.array([[0, 1.0, 0, 0]]), evidence, probabilities[:1]), [[0, 1, 0, 0]])


def test_it_is_read_as_it_was_saved_beside_its_own_calibration_alone(tmp_path: Path) -> None:
    for name in ("model.safetensors", "card.json"):
        (tmp_path / name).write_bytes(name.encode())
    save_calibration(tmp_path, CALIBRATION)
    assert load_record_model(tmp_path) is None
    with pytest.raises(UserError, match=f"holds no {FILE}, so this model cannot read records: .*`dvc repro` makes one"):
        require_record_model(tmp_path)
    for saved in (model(0.8, (0.1, 0, 0, -0.1)), model(0.8, (0.1, 0, 0, -0.1), WITH_LIST)):
        save_record_model(tmp_path, saved)
        assert load_record_model(tmp_path) == saved
    content = json.loads((tmp_path / FILE).read_text())
    del content["with_list"]  # as saved before a photograph was read with a list
    (tmp_path / FILE).write_text(json.dumps(content))
    assert load_record_model(tmp_path) == model(0.8, (0.1, 0, 0, -0.1))
    save_calibration(tmp_path, CALIBRATION.model_copy(update={"temperature": 3.0}))
    with pytest.raises(UserError, match=r"another model than calibration\.json beside it"):
        load_record_model(tmp_path)


def test_a_file_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    for name in ("model.safetensors", "card.json"):
        (tmp_path / name).write_bytes(name.encode())
    save_calibration(tmp_path, CALIBRATION)
    save_record_model(tmp_path, model(with_list=WITH_LIST))
    content = json.loads((tmp_path / FILE).read_text())
    compositions, with_list = content["compositions"], content["with_list"]
    for changes, reason in (
        ({"photograph_weight": "heavy"}, "photograph_weight: "),
        ({"photograph_weight": 1e308}, "weights and offsets must be within"),
        ({"offsets": [0.0]}, "1 offsets do not fit 4 counts"),
        ({"with_list": with_list | {"offsets": [0.0] * 5}}, "5 offsets of with_list do not fit 4 counts"),
        ({"with_list": with_list | {"evidence_weight": -1e4}}, "weights and offsets must be within 1,000"),
        ({"with_list": with_list | {"photograph_weight": 1e4}}, "weights and offsets must be within 1,000"),
        ({"with_list": with_list | {"offsets": [0, 0, 0, 1e4]}}, "weights and offsets must be within 1,000"),
        ({"with_list": with_list | {"features": {"means": [0.0] * 4}}}, "with_list.features.deviations: "),
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
