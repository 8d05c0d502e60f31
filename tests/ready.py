"""The small model ready to predict, by PyTorch: to put a model into ONNX takes far longer than to run it."""

import sys

import pytest
import torch

from bintally.inference import predictor
from bintally.inference.runtime import Run, calibrated_network
from bintally.model.card import Card
from bintally.model.network import CountingNetwork
from bintally.scoring.calibration import Calibration

IN_ANOTHER_PROCESS = [
    sys.executable,
    "-c",
    "from bintally import cli; from bintally.inference import predictor; import ready; "
    "predictor.start = ready.start; cli.main()",
]


def start(network: CountingNetwork, card: Card, calibration: Calibration, _device: torch.device) -> Run:
    return torch.inference_mode()(calibrated_network(network, card, calibration))


def by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever predicts in this process does so."""
    monkeypatch.setattr(predictor, "start", start)
