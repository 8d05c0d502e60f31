"""From the bytes of photographs to distributions over counts: the one path for whatever uses a model."""

from collections.abc import Sequence
from functools import partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.model.calibration import Calibration, Floats
from bintally.model.encoded import BATCH, Encoded, decoded_batches
from bintally.model.network import CountDistribution, CountingNetwork, log_distribution, views
from bintally.model.saved import Card, default_device
from bintally.progress import progress

ROWS = 32  # of arrays a forward pass


class Predictor:
    """A loaded model that takes files as they come from a camera; may be shared between threads."""

    def __init__(
        self, network: CountingNetwork, card: Card, calibration: Calibration, device: torch.device | None = None
    ) -> None:
        self.card = card
        self.calibration = calibration
        self._device = device or default_device()
        self._model = calibrated_network(network, card, calibration).to(self._device).eval()
        self._lock = Lock()

    @torch.inference_mode()
    def __call__(self, photographs: Sequence[bytes]) -> NDArray[np.float64]:
        """Probabilities of the calibration's counts, float64 (photographs, counts), of JPEG or PNG files.

        Raises Fault if one of them does not decode.
        """
        rows = [torch.empty(0, len(self.calibration.counts), dtype=torch.float64)]
        reads = [partial(bytes, body) for body in photographs]
        for pixels in decoded_batches(reads, self.card.image_size, BATCH[self._device.type]):
            with self._lock:  # the trunk gathers its maps in one list
                rows.append(self._model(pixels.to(self._device)).cpu().double())
        return torch.cat(rows).numpy()


def calibrated_network(network: CountingNetwork, card: Card, calibration: Calibration) -> CountDistribution:
    """From pixels to what is answered, in one module."""
    chosen = [card.counts.index(count) for count in calibration.counts]
    return CountDistribution(network, card.mirror, chosen, calibration.temperature)


@torch.inference_mode()
def predict_encoded(network: CountingNetwork, card: Card, encoded: Encoded, rows: NDArray[np.int64]) -> Floats:
    """Log-probabilities of the card's counts, float64 (rows, classes), of encoded bins, not yet calibrated."""
    device = default_device()
    encoded.ready(network.trunk)
    network.to(device)
    model = network.head if encoded.encoding.kind == "features" else network
    pixels = encoded.encoding.kind == "pixels"
    result = [torch.empty(0, len(card.counts), dtype=torch.float64)]
    with progress("predict", len(rows), "images") as advance:
        for start in range(0, len(rows), ROWS):
            chosen = rows[start : start + ROWS]
            batch = torch.from_numpy(encoded.rows.take(chosen)).to(device)
            logs = log_distribution(model, views(batch, card.mirror) if pixels else batch)
            result.append(logs.cpu().double())
            advance(len(chosen))
    return torch.cat(result).numpy()
