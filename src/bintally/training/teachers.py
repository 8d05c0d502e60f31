"""What trained models say of the samples another one learns from (Hinton et al. 2015, arXiv:1503.02531)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bintally.faults import Fault
from bintally.model.encoded import Encoded
from bintally.model.predictor import predict_encoded
from bintally.model.saved import load_model


def taught(folders: Sequence[Path], encoded: Encoded, rows: NDArray[np.int64], counts: Sequence[int]) -> torch.Tensor:
    """The mean distribution of the models in ``folders`` over ``counts``: float32 (rows, counts).

    Raises Fault if one of them cannot be read, counts otherwise or takes other images than those encoded.
    """
    total = np.zeros((len(rows), len(counts)))
    for folder in folders:
        network, card = load_model(folder)
        if card.counts != list(counts) or not encoded.suit(network.trunk, card.image_size):
            raise Fault(
                f"train.teachers: {folder} tells {card.counts} apart in images of {card.image_size} pixels, not "
                f"{list(counts)} in ones of {encoded.encoding.image_size}, or starts from another trunk; take a model "
                "that was trained as this one is to be"
            )
        total += np.exp(predict_encoded(network, card, encoded, rows))
    return torch.from_numpy(total / len(folders)).float()
