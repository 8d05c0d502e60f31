"""Predictions for encoded bins."""

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.model.encoded import Encoded
from bintally.model.network import CountingNetwork, log_probabilities
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
) -> NDArray[np.float32]:
    """Log-probabilities of the classes, not calibrated, (rows, classes), of ``rows`` of encoded bins.

    Args:
        network: moved to ``device`` (by default CUDA where it is available) and set to evaluation mode.
        mirror: average over mirror images where the rows are pixels; features and maps hold their views.
    """
    device = device or default_device()
    encoded.configure(network.backbone)
    network.to(device).eval()
    model = network.head if encoded.encoding.kind == "features" else network
    result = [np.empty((0, network.head.classes), np.float32)]
    with progress("predict", len(rows), "images") as advance:
        for start in range(0, len(rows), BATCH_SIZE):
            inputs = torch.from_numpy(encoded.rows.take(rows[start : start + BATCH_SIZE])).to(device)
            if encoded.encoding.kind == "pixels":
                inputs = stack_views(inputs, mirror)
            result.append(log_probabilities(model, inputs).float().cpu().numpy())
            advance(len(inputs))
    return np.concatenate(result)
