"""Predictions for encoded bins."""

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.model.encoded import Encoded
from bintally.model.network import CountingNetwork, predict_views
from bintally.model.views import stack_views
from bintally.progress import progress
from bintally.resources import default_device

BATCH_SIZE = 32


@torch.inference_mode()
def predict_encoded(
    network: CountingNetwork,
    mirror: bool,
    encoded: Encoded,
    rows: NDArray[np.int64],
    device: torch.device | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Predictions for ``rows`` of encoded bins.

    Args:
        network: moved to ``device`` (by default CUDA where it is available) and set to evaluation mode.
        mirror: average over mirror images where the rows are pixels; features hold their views.

    Returns log-probabilities of the classes, not calibrated, (rows, classes), and tables of evidence, (rows, features
    of a list, classes).
    """
    device = device or default_device()
    network.to(device).eval()
    model = network.heads() if encoded.encoding.kind == "features" else network
    predicted: list[NDArray[np.float32]] = []
    with progress("predict", len(rows), "images") as advance:
        for start in range(0, max(len(rows), 1), BATCH_SIZE):  # no rows are a batch, too: shapes need one
            inputs = torch.from_numpy(encoded.rows.take(rows[start : start + BATCH_SIZE])).to(device)
            if encoded.encoding.kind == "pixels":
                inputs = stack_views(inputs, mirror)
            of_batch = predict_views(model, inputs)
            predicted = predicted or [np.empty((len(rows), *found.shape[1:]), np.float32) for found in of_batch]
            for values, found in zip(predicted, of_batch, strict=True):
                values[start : start + len(inputs)] = found.float().cpu().numpy()
            advance(len(inputs))
    log_probabilities, tables = predicted
    return log_probabilities, tables
