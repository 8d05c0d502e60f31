"""A plain PyTorch predictor, with which serving and predicting are compared, and an untrained model to run."""

import io
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms

from bintally.bins.products import SIZES
from bintally.inference.predictor import Predictions
from bintally.inference.runtime import calibrated_network
from bintally.model.backbone import LITE, LITE_MEAN, LITE_STD, Backbone
from bintally.model.card import ModelCard, load_model, save_model
from bintally.model.network import CountingNetwork, EvidenceHead, Head
from bintally.model.pretrained import load_weights
from bintally.scoring.calibration import Calibration, load_calibration, save_calibration
from bintally.scoring.evidence import FEATURES, ListFeatures
from common import COUNTS


class Plain:
    """PIL, torchvision's transforms and PyTorch behind the methods of a Predictor, `decode` and `predict`."""

    def __init__(self, folder: Path) -> None:
        network, card = load_model(folder)
        self.card, self.counts = card, load_calibration(folder).counts
        self._transform = transforms.Compose(
            [
                transforms.Resize((card.image_size, card.image_size)),
                transforms.ToTensor(),
                transforms.Normalize([mean / 255 for mean in card.mean], [std / 255 for std in card.std]),
            ]
        )
        network.backbone.mean.zero_()  # the transforms normalise
        network.backbone.std.fill_(1)
        self._model = calibrated_network(network, card, load_calibration(folder))

    def decode(self, photograph: bytes) -> torch.Tensor:
        """float32 (3, size, size), normalised."""
        pixels: torch.Tensor = self._transform(Image.open(io.BytesIO(photograph)).convert("RGB"))
        return pixels

    @torch.inference_mode()
    def predict(self, pixels: torch.Tensor) -> Predictions:
        """Predictions for decoded photographs; one call at a time."""
        return Predictions.of(self._model(pixels), self.card)


def make_model(folder: Path, size: int = 224) -> None:
    """Save a model with untrained heads, which takes as long as a trained one."""
    backbone = Backbone(LITE[0], size, "every_scale")
    load_weights(backbone, "DEFAULT")
    head = Head(backbone.width, 512, len(COUNTS), ordinal=False, seed=1)
    network = CountingNetwork(backbone, head, EvidenceHead(backbone.width, 512, FEATURES, len(COUNTS), seed=1))
    save_model(
        folder,
        network,
        ModelCard(
            backbone=LITE[0],
            features="every_scale",
            image_size=size,
            mean=list(LITE_MEAN),
            std=list(LITE_STD),
            mirror=True,
            counts=COUNTS,
            hidden=512,
            list_features=ListFeatures(means=[0.0] * len(SIZES), deviations=[1.0] * len(SIZES)),
            parameters={},
            data="none",
            validation={},
        ),
    )
    save_calibration(
        folder,
        Calibration(
            counts=COUNTS,
            open_ended=False,
            temperature=1.5,
            rmse_decoding="rounded_mean",
            coverage=0.9,
            conformal_threshold=0.95,
            target_precision=0.8,
            confidence_threshold=0.6,
            record_error_rate=0.1,
        ),
    )
