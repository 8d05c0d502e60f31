"""What trained models say of the samples another one learns from."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bintally.faults import Fault
from bintally.model.encoded import Encoded, encode, load_encoded
from bintally.model.network import CountDistribution
from bintally.model.saved import save_model
from bintally.training.teachers import taught
from small import CARD, bins, counter


def encoded(folder: Path, trained: str) -> Encoded:
    reads = [partial(bytes, one.image) for one in bins()]
    scratch = folder / "scratch"
    encode(folder, reads, counter().trunk, CARD.image_size, trained, CARD.mirror, torch.device("cpu"), scratch, "key")
    return load_encoded(folder)


def test_teachers_are_averaged_over_the_rows_asked_for(tmp_path: Path) -> None:
    save_model(tmp_path / "one", counter(), CARD)
    other = copy.deepcopy(counter())
    other.get_parameter("head.2.bias").data += torch.arange(5)
    save_model(tmp_path / "two", other, CARD)
    pixels = encoded(tmp_path / "encoded", "all")
    rows = np.array([3, 0])
    found = taught([tmp_path / "one", tmp_path / "two"], pixels, rows, CARD.counts)
    images = torch.from_numpy(pixels.rows.take(rows))
    with torch.no_grad():
        one, two = (CountDistribution(network, CARD.mirror)(images) for network in (counter(), other))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (one + two) / 2, rtol=1e-5, atol=1e-6)


def test_a_teacher_that_counts_otherwise_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "one", counter(), CARD)
    pixels = encoded(tmp_path / "encoded", "all")
    with pytest.raises(Fault, match=r"train\.teachers: .*one tells \[1, 2, 3, 4, 5\] apart"):
        taught([tmp_path / "one"], pixels, np.array([0]), [1, 2, 3, 4, 6])
    with pytest.raises(Fault, match="nowhere holds no whole model"):
        taught([tmp_path / "nowhere"], pixels, np.array([0]), CARD.counts)
