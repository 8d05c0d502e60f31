"""From image files to probabilities of counts: the one path for everything that predicts with a saved model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from bintally.bins.images import FORMATS
from bintally.inference.runtime import Outputs, load_runner
from bintally.model.card import ModelCard
from bintally.model.encoding import BATCH, decoded_batches
from bintally.model.images import decode
from bintally.model.network import CountingNetwork
from bintally.resources import default_device
from bintally.scoring.calibration import Calibration, Floats


@dataclass(frozen=True)
class Predictions:
    """What a model says of n photographs."""

    probabilities: Floats
    """(n, counts) of the calibration's counts, calibrated."""
    tables: Floats
    """(n, features, counts) of evidence (:mod:`bintally.scoring.evidence`)."""
    distance_ranks: Floats
    """(n,) the share of validation's photographs that lie nearer to training's; NaN by a model that does not say."""

    @classmethod
    def of(cls, outputs: Outputs, card: ModelCard) -> "Predictions":
        probabilities, tables, distances = (values.double().numpy() for values in outputs)
        ranks = card.distances.ranks(distances[:, 0]) if card.distances else np.full(len(distances), np.nan)
        return cls(probabilities, tables, ranks)


class Predictor:
    """A loaded model that predicts from photographs' files; thread-safe."""

    def __init__(
        self, network: CountingNetwork, card: ModelCard, calibration: Calibration, device: torch.device | None = None
    ) -> None:
        device = device or default_device()
        self.card, self.calibration, self.batch_size = card, calibration, BATCH[device.type]
        self.list_features = network.evidence.list_features if network.evidence else 0
        self._run = load_runner(network, card, calibration, device)

    def decode(self, file: bytes, formats: Sequence[str] = FORMATS) -> torch.Tensor:
        """The model's input for a file, uint8 (3, size, size). Raises UserError as :func:`decode` does."""
        return decode(file, self.card.image_size, formats)

    def predict(self, pixels: torch.Tensor) -> Predictions:
        """Predictions for decoded images."""
        return Predictions.of(self._run(pixels), self.card)

    def __call__(self, files: Sequence[bytes]) -> Floats:
        """Probabilities, (n, counts), for files. Raises UserError if one does not decode."""
        batches = decoded_batches([partial(self.decode, file) for file in files], self.batch_size)
        no_rows = np.empty((0, len(self.calibration.counts)))
        return np.concatenate([no_rows, *(self.predict(batch).probabilities for batch in batches)])
