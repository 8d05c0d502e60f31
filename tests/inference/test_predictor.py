"""From the bytes of photographs to distributions, whatever else is asked for at the same time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from bintally.errors import UserError
from bintally.inference.predictor import Predictor
from bintally.model.encoded import BATCH
from bintally.model.images import decode
from bintally.model.network import log_distribution, views
from bintally.scoring.calibration import calibrated
from small import CALIBRATION, CARD, bins, counter

CPU = torch.device("cpu")


@pytest.mark.parametrize("mirrored", [True, False])
def test_each_photograph_has_the_distribution_it_would_have_alone(mirrored: bool) -> None:
    network, card = counter(), CARD.model_copy(update={"mirror": mirrored})
    assert len(bins()) > BATCH["cpu"]
    got = Predictor(network, card, CALIBRATION, CPU)([one.image for one in bins()])
    assert got.dtype == np.float64 and got.shape == (len(bins()), 3)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-6)
    assert got.std(0).mean() > 0.01  # so that agreement says something
    with torch.no_grad():
        for row, one in zip(got, bins(), strict=True):
            logs = log_distribution(network, views(decode(one.image, 64)[None], mirrored)).double().numpy()
            alone = calibrated(logs, CARD.counts, CALIBRATION.counts, CALIBRATION.temperature)
            np.testing.assert_allclose(row, alone[0], atol=1e-4)


def test_no_photographs_have_no_rows() -> None:
    assert Predictor(counter(), CARD, CALIBRATION, CPU)([]).shape == (0, 3)


def test_a_file_that_is_no_photograph_is_a_fault() -> None:
    with pytest.raises(UserError, match="image of 7 bytes does not decode"):
        Predictor(counter(), CARD, CALIBRATION, CPU)([bins()[0].image, b"garbage"])


def test_several_threads_get_what_one_gets() -> None:
    predictor = Predictor(counter(), CARD, CALIBRATION, CPU)
    photographs = [one.image for one in bins()]
    expected = predictor(photographs)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(predictor, [photographs] * 4):
            np.testing.assert_allclose(got, expected, atol=1e-5)
