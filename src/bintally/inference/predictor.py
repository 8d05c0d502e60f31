"""From the bytes of photographs to distributions over counts: the one path for whatever uses a model."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.inference.runtime import start
from bintally.model.card import Card, default_device
from bintally.model.encoded import BATCH, Encoded, decoded_batches
from bintally.model.network import CountingNetwork, log_distribution, views
from bintally.progress import progress
from bintally.scoring.calibration import Calibration, Floats

ROWS = 32  # of arrays a forward pass


class Predictor:
    """A loaded model that takes files as they come from a camera; may be shared between threads."""

    def __init__(
        self, network: CountingNetwork, card: Card, calibration: Calibration, device: torch.device | None = None
    ) -> None:
        self.card = card
        self.calibration = calibration
        device = device or default_device()
        self.batch = BATCH[device.type]
        """How many photographs are worked through at once, where there are so many."""
        self._run = start(network, card, calibration, device)

    def decode(self, photograph: bytes) -> torch.Tensor:
        """The pixels the network sees, uint8 (3, size, size), of a JPEG or PNG file.

        Raises UserError if it does not decode, or is too large to be decoded.
        """
        from bintally.model.images import decode  # brings torchvision, which the stages on arrays do without

        return decode(photograph, self.card.image_size)

    def distributions(self, pixels: torch.Tensor) -> Floats:
        """Probabilities of the calibration's counts, float64 (n, counts), of decoded photographs."""
        return self._run(pixels).double().numpy()

    def __call__(self, photographs: Sequence[bytes]) -> Floats:
        """Probabilities of the calibration's counts, float64 (photographs, counts), of JPEG or PNG files.

        Raises UserError if one of them does not decode.
        """
        reads = [partial(bytes, body) for body in photographs]
        batches = decoded_batches(reads, self.card.image_size, self.batch)
        return np.concatenate(
            [np.empty((0, len(self.calibration.counts))), *(self.distributions(pixels) for pixels in batches)]
        )


@torch.inference_mode()
def predict_encoded(network: CountingNetwork, card: Card, encoded: Encoded, rows: NDArray[np.int64]) -> Floats:
    """Log-probabilities of the card's counts, float64 (rows, classes), of encoded bins, not yet calibrated."""
    device = default_device()
    encoded.ready(network.backbone)
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
