"""The reference for drift: where the features of training photographs lie, and how far from there validation's do."""

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.model.card import MAX_COMPONENTS, DistanceReference
from bintally.model.encoded import Encoded
from bintally.model.network import CountingNetwork, FeatureDistance
from bintally.model.prediction import BATCH_SIZE
from bintally.model.views import stack_views
from bintally.progress import progress

MAX_PHOTOGRAPHS = 2000  # of a split: beyond it the principal components hardly change
PER_COMPONENT = 10  # photographs, so that its variance is known
STEPS = 100  # between quantiles
AXIS_DECIMALS, DIGITS = 5, 5  # further ones depend on the CPU


def fit_distance(
    network: CountingNetwork,
    mirror: bool,
    encoded: Encoded,
    train: NDArray[np.int64],
    validation: NDArray[np.int64],
    device: torch.device,
) -> tuple[FeatureDistance, DistanceReference] | None:
    """The distance of features from training photographs', and its quantiles over validation's.

    Validation's, as a network that learned from pixels has fitted the features of its training photographs. None if the
    training photographs are fewer than PER_COMPONENT.

    Args:
        network: on ``device``, in evaluation mode.
        mirror: average over mirror images where the rows are pixels; features hold their views.
        train, validation: rows of encoded bins.
    """
    train, validation = _some(train), _some(validation)
    with progress("measure distances", len(train) + len(validation), "images") as advance:

        @torch.inference_mode()
        def features(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            found = []
            for start in range(0, len(rows), BATCH_SIZE):
                inputs = torch.from_numpy(encoded.rows.take(rows[start : start + BATCH_SIZE])).to(device)
                if encoded.encoding.kind == "pixels":
                    views = stack_views(inputs, mirror)
                    inputs = network.backbone(views.flatten(0, 1)).unflatten(0, views.shape[:2])
                found.append(inputs.mean(1).float().cpu().numpy())
                advance(len(inputs))
            return np.concatenate(found)

        of_train, of_validation = features(train), features(validation)
    distance = _principal_components(of_train)
    if distance is None:
        return None
    distances = distance(torch.from_numpy(of_validation)).numpy().astype(np.float64)
    quantiles = np.quantile(distances, np.linspace(0, 1, STEPS + 1))
    return distance, DistanceReference(
        components=len(distance.deviations),
        photographs=len(validation),
        quantiles=[float(f"{value:.{DIGITS}g}") for value in quantiles],
    )


def _some(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most MAX_PHOTOGRAPHS of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_PHOTOGRAPHS)).astype(np.int64)]


def _principal_components(features: NDArray[np.float32]) -> FeatureDistance | None:
    """The distance from the mean of features, (n, width), along the components with the greatest variance."""
    from scipy.linalg import eigh

    width, most = features.shape[1], min(MAX_COMPONENTS, features.shape[1], len(features) // PER_COMPONENT)
    if not most:
        return None
    mean = features.mean(0, dtype=np.float64)
    variances, axes = eigh(
        np.cov(features, rowvar=False).reshape(width, width), subset_by_index=[width - most, width - 1]
    )
    varies = variances > variances[-1] * 1e-9
    if not variances[-1] > 0:
        return None
    variances, axes = variances[varies], axes[:, varies]
    axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])  # of either sign otherwise
    distance = FeatureDistance(width, len(variances))
    for name, values in (("mean", mean), ("axes", axes.round(AXIS_DECIMALS)), ("deviations", np.sqrt(variances))):
        getattr(distance, name).copy_(torch.from_numpy(values))
    return distance.eval()
