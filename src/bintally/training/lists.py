"""What training knows of the lists of products in bins: their features, and how frequent each count is with them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bintally.bins.contents import Contents
from bintally.scoring.compositions import count_by_products, fit_compositions
from bintally.scoring.evidence import FEATURES, ListFeatures
from bintally.scoring.lists import Lists
from bintally.scoring.record_errors import Totals

LEAST = 1e-3  # probability of a count that a list excludes, so that a wrong record has a finite loss


@dataclass(frozen=True)
class ListInputs:
    """The lists of n bins."""

    features: NDArray[np.float32]
    """(n, features), zeros where it is not known what lies in a bin."""
    log_prior: NDArray[np.float32]
    """(n, classes) the logarithm of how frequent each class is with these products, before the photograph is seen;
    zeros where they are not known."""


def list_inputs(
    contents: Iterable[Contents], is_train: NDArray[np.bool_], totals: Totals
) -> tuple[ListInputs, ListFeatures]:
    """The inputs for bins of known and unknown contents, and how their features are scaled.

    Args:
        is_train: the bins from whose records scale and frequencies are learned.
        totals: the classes.
    """
    lists, is_known = Lists.of_contents(contents)
    learned = lists.take(np.flatnonzero(is_known & is_train & totals.allow(lists.totals)))
    compositions = fit_compositions(learned.quantities, learned.sizes, totals)
    scale = ListFeatures.scaled_as(compositions)
    prior = np.log(count_by_products(compositions, totals, lists).clip(LEAST))
    features = np.empty((len(is_known), FEATURES), np.float32)
    for rows, _, packed in lists.by_length():
        features[rows] = scale.of(packed.present, packed.sizes)
    known = is_known[:, None]
    return ListInputs(features * known, (prior * known).astype(np.float32)), scale
