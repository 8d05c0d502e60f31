"""What a linear model of the features says of each bin when it has not learned from the bin's group."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bintally.model.encoded import MemoryMappedRows
from bintally.progress import progress

FOLDS = 5
LEARNED = 10_000  # rows at most, so that memory and time stay bounded
BATCH = 1024
C = 0.001  # of 0.0001, 0.001 and a hidden layer, on demo bins, the one that finds the most wrong records


def out_of_fold(
    features: MemoryMappedRows, classes: NDArray[np.int64], groups: Sequence[str], seed: int
) -> NDArray[np.float32]:
    """Probabilities of the classes for every row, float32 (n, classes), by a model of the other folds' rows.

    Groups are dealt to FOLDS folds at random. The models are logistic regressions of standardised features.

    Args:
        features: float32 (n, views, width); the first view is learned from, all are averaged in the probabilities.
        classes: of each row, from 0. A class that the other folds do not have, and all where these have fewer than two,
            has the probability NaN.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    random = np.random.default_rng(seed)
    fold = (random.permutation(len(names)) % FOLDS)[member]
    found = np.full((len(classes), int(classes.max()) + 1), np.nan, np.float32)
    with progress("records", len(classes), "bins") as advance:
        for number in range(FOLDS):
            rows = np.flatnonzero(fold == number)
            learned = np.sort(random.permutation(np.flatnonzero(fold != number))[:LEARNED])
            seen = np.unique(classes[learned])
            if len(seen) > 1 and len(rows):
                model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=200))
                model.fit(features.take(learned)[:, 0].astype(np.float64), classes[learned])
                for some in np.array_split(rows, range(BATCH, len(rows), BATCH)):
                    views = features.take(some).swapaxes(0, 1)
                    found[np.ix_(some, seen)] = np.mean([model.predict_proba(view) for view in views], 0)
            advance(len(rows))
    return found
