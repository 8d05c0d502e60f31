"""Decoding rules: from a distribution over counts to one count."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Decoding = Literal["most_probable", "rounded_mean", "median"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
FOR_ACCURACY: Decoding = "most_probable"  # the rule for the least squared error is chosen on validation


def decode_counts(probabilities: NDArray[np.floating[Any]], counts: Sequence[int], rule: str) -> NDArray[np.int64]:
    """One count, (n,), per row of ``probabilities``, (n, classes), by one of DECODINGS; ValueError for another rule.

    For calibrated probabilities ``most_probable`` is right most often, ``rounded_mean``, the count nearest to the
    expected one, has the least squared error, and ``median`` the least absolute error.
    """
    values = np.asarray(counts)
    if rule == "most_probable":
        return np.asarray(values[probabilities.argmax(1)], dtype=np.int64)
    if rule == "rounded_mean":
        return np.asarray(values[np.abs((probabilities @ values)[:, None] - values).argmin(1)], dtype=np.int64)
    if rule == "median":
        return np.asarray(values[(probabilities.cumsum(1) >= 0.5 - 1e-12).argmax(1)], dtype=np.int64)
    raise ValueError(f"unknown decoding rule {rule!r}")
