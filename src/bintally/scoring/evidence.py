"""What a photograph adds to a list of products: how much it speaks for each count, by features of the list.

From a photograph the network makes a table of features by counts. With the features of a list it gives the logarithm of
how much the photograph speaks for each count, up to a constant, if those products lie in the bin: a few small ones are
read otherwise than one large one. It adds to the logarithm of how frequent each count is with these products.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from bintally.bins.products import SIZES
from bintally.errors import UserError
from bintally.scoring.compositions import CompositionModel, mean_sizes
from bintally.scoring.metrics import Floats

MOST_PRODUCTS = 5  # lists of as many and more are read alike
FEATURES = 1 + MOST_PRODUCTS + len(SIZES)

Scale = Annotated[list[float], Field(min_length=len(SIZES), max_length=len(SIZES))]


class ListFeatures(BaseModel):
    """The features of lists, scaled as in training."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    means: Scale
    """Of each of SIZES over the products of training records,"""
    deviations: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=len(SIZES), max_length=len(SIZES))]
    """and its standard deviation."""

    @classmethod
    def scaled_as(cls, compositions: CompositionModel) -> "ListFeatures":
        """The features by the means and deviations of a model of compositions."""
        return cls(means=compositions.means, deviations=compositions.deviations)

    def of(self, present: NDArray[np.bool_], sizes: Floats) -> Floats:
        """(n, FEATURES): the number of products, from 0 to MOST_PRODUCTS, one-hot, and their mean sizes, standardised.

        Args:
            present: (n, m) which places of a list hold a product.
            sizes: (n, m, SIZES), NaN where they are not known.
        """
        number = np.eye(1 + MOST_PRODUCTS)[present.sum(1).clip(max=MOST_PRODUCTS)]
        known = np.where(present[..., None], sizes, np.nan)
        means = mean_sizes(known, np.asarray(self.means), np.asarray(self.deviations))
        return np.concatenate([number, means], 1)


def load_list_features(card: Path) -> ListFeatures:
    """The features that a model's card names. Raises UserError if it names none, or is damaged."""
    try:
        return ListFeatures.model_validate(json.loads(card.read_bytes())["list_features"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{card} does not say how lists of products are scaled; `dvc repro train` writes it") from error


def log_evidence(tables: NDArray[np.floating], features: Floats) -> Floats:
    """How much photographs speak for each count, as logarithms up to a constant: (n, counts).

    Args:
        tables: (n, FEATURES, counts) of the network.
        features: (n, FEATURES) of the list of products in each bin.
    """
    return np.asarray(np.einsum("nf,nfc->nc", features, tables.astype(np.float64)))
