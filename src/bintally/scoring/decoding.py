"""Decoding rules: from a distribution over counts to one count."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Decoding = Literal["most_probable", "rounded_mean", "median"]
DECODINGS: tuple[Decoding, ...] = get_args(Decoding)
# Which rule has the least squared error after rounding is found on validation.
FOR_ACCURACY: Decoding = "most_probable"


def decode_counts(probabilities: NDArray[np.floating[Any]], counts: Sequence[int], rule: str) -> NDArray[np.int64]:
    """One count per row.

    For calibrated probabilities ``most_probable`` is right most often, ``rounded_mean``, the count nearest to the
    expected one, has the least squared error, and ``median`` the least absolute error.

    Args:
        probabilities: (n, classes), rows sum to 1.
        counts: the count each class stands for, ascending.
        rule: one of DECODINGS.

    Returns:
        int64 (n,). Raises ValueError for another rule.
    """
    values = np.asarray(counts)
    if rule == "most_probable":
        return np.asarray(values[probabilities.argmax(1)], dtype=np.int64)
    if rule == "rounded_mean":
        return np.asarray(values[np.abs((probabilities @ values)[:, None] - values).argmin(1)], dtype=np.int64)
    if rule == "median":
        return np.asarray(values[(probabilities.cumsum(1) >= 0.5 - 1e-12).argmax(1)], dtype=np.int64)
    raise ValueError(f"unknown decoding rule {rule!r}")
