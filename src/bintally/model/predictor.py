"""From the bytes of photographs to distributions over counts: the one path for whatever uses a model."""

from collections.abc import Sequence
from functools import partial
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.model.encoded import BATCH, decoded_batches
from bintally.model.network import CountDistribution, CountingNetwork
from bintally.model.saved import Card, default_device


class Predictor:
    """A loaded model that takes files as they come from a camera; may be shared between threads."""

    def __init__(self, network: CountingNetwork, card: Card, device: torch.device | None = None) -> None:
        self.card = card
        self._device = device or default_device()
        self._model = CountDistribution(network, card.mirror).to(self._device).eval()
        self._lock = Lock()

    @torch.inference_mode()
    def __call__(self, photographs: Sequence[bytes]) -> NDArray[np.float64]:
        """Probabilities of the card's counts, float64 (photographs, classes), of JPEG or PNG files.

        Raises Fault if one of them does not decode.
        """
        rows = [torch.empty(0, len(self.card.counts), dtype=torch.float64)]
        reads = [partial(bytes, body) for body in photographs]
        for pixels in decoded_batches(reads, self.card.image_size, BATCH[self._device.type]):
            with self._lock:  # the trunk gathers its maps in one list
                rows.append(self._model(pixels.to(self._device)).cpu().double())
        return torch.cat(rows).numpy()
