"""What training knows of the lists of products in bins: their features, and how frequent each count is with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bintally.bins.contents import read_contents
from bintally.scoring.compositions import count_by_products, learn_compositions
from bintally.scoring.evidence import FEATURES, ListFeatures
from bintally.scoring.lists import Lists
from bintally.scoring.record_errors import Totals

BINS_AT_ONCE = 20_000  # as arrays, as wide as the longest of their lists
LEAST = 1e-3  # probability of a count that a list excludes, so that a wrong record has a finite loss


@dataclass(frozen=True)
class ListInputs:
    """The lists of n bins."""

    features: NDArray[np.float32]
    """(n, features), zeros where it is not known what lies in a bin."""
    log_prior: NDArray[np.float32]
    """(n, classes) the logarithm of how frequent each class is with these products, before the photograph is seen;
    zeros where they are not known."""


def read_list_inputs(
    bins: Path, corrections: Path, ids: Sequence[str], is_train: NDArray[np.bool_], totals: Totals
) -> tuple[ListInputs, ListFeatures]:
    """Read what lies in the bins: the inputs, and how their features are scaled.

    Args:
        bins, corrections, ids: as of :func:`bintally.bins.contents.read_contents`.
        is_train: (n,) the bins from whose records scale and frequencies are learned.
        totals: the classes.
    """
    compositions = learn_compositions(bins, corrections, list(compress(ids, is_train)), totals)
    scale = ListFeatures.scaled_as(compositions)
    features = np.zeros((len(ids), FEATURES), np.float32)
    log_prior = np.zeros((len(ids), len(totals.counts)), np.float32)
    contents = read_contents(bins, corrections, ids)
    for start in range(0, len(ids), BINS_AT_ONCE):
        lists, is_known = Lists.of_contents(islice(contents, BINS_AT_ONCE))
        known = np.flatnonzero(is_known)
        lists = lists.take(known)
        log_prior[start + known] = np.log(count_by_products(compositions, totals, lists).clip(LEAST))
        for rows, _, packed in lists.by_length():
            features[start + known[rows]] = scale.of(packed.present, packed.sizes)
    return ListInputs(features, log_prior), scale
