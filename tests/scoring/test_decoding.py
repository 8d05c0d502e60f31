"""The rules that decode a distribution to one count."""

import numpy as np
import pytest

from bintally.scoring.decoding import DECODINGS, decode_counts


@pytest.mark.parametrize(
    ("probabilities", "most_probable", "rounded_mean", "median"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0, 0, 0),
        ([0.0, 0.0, 0.0, 1.0], 5, 5, 5),
        ([0.4, 0.0, 0.3, 0.3], 0, 2, 2),  # mean 2.1
        ([0.0, 0.4, 0.35, 0.25], 1, 2, 2),  # mean 2.35
        ([0.3, 0.1, 0.1, 0.5], 5, 2, 2),  # mean 2.8: nearer to 2 than to 5; half is at most 2
        ([0.25, 0.25, 0.25, 0.25], 0, 2, 1),  # mean 2: the first of equals
        ([0.7, 0.1, 0.1, 0.1], 0, 1, 0),  # mean 0.8
    ],
)
def test_the_decoding_rules(probabilities: list[float], most_probable: int, rounded_mean: int, median: int) -> None:
    row = np.array([probabilities])
    for rule, expected in zip(DECODINGS, (most_probable, rounded_mean, median), strict=True):
        decoded = decode_counts(row, [0, 1, 2, 5], rule)
        assert decoded.dtype == np.int64
        assert decoded.tolist() == [expected]


def test_an_unknown_decoding_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'mode'"):
        decode_counts(np.array([[1.0]]), [0], "mode")
