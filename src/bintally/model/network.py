"""The counting network: a backbone, a head of two linear layers, and the distribution over counts they give."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from bintally.model.backbone import Backbone
from bintally.model.views import stack_views


class Head(nn.Sequential):
    """Two linear layers with a ReLU between them, as in the reference study, initialised from ``seed``.

    With ``ordinal`` its outputs are continuation ratios, one fewer than classes.
    """

    def __init__(self, width: int, hidden: int, classes: int, ordinal: bool, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes - ordinal))
        self.ordinal, self.classes = ordinal, classes

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, width) to logits, with ``ordinal`` log-probabilities, (n, classes)."""
        outputs: torch.Tensor = super().forward(features)
        return continuation_ratio_log_probs(outputs) if self.ordinal else outputs


def continuation_ratio_log_probs(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of ordered classes from continuation ratios (Agresti, Categorical Data Analysis, 8.3.6).

    ``logits``, (n, classes - 1), are of a class above k, given class k or above; the result is (n, classes).
    """
    above = _log_sigmoid(logits).cumsum(1)
    not_above = _log_sigmoid(-logits)
    return torch.cat([not_above[:, :1], above[:, :-1] + not_above[:, 1:], above[:, -1:]], 1)


def _log_sigmoid(values: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_exporting():  # ONNX would take the logarithm of the sigmoid, which has lost digits by then
        return values.clamp(max=0) - (-values.abs()).exp().log1p()
    return nn.functional.logsigmoid(values)


class CountingNetwork(nn.Module):
    """Backbone and head."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images, or rows that the backbone takes in their place, to logits (n, classes)."""
        return self.head(self.backbone(images))  # type: ignore[no-any-return]


class CalibratedNetwork(nn.Module):
    """From pixels to calibrated probabilities: the module that predicts and is exported.

    Args:
        mirror: average over an image and its mirror image.
        classes: indices of the classes to distinguish; None: all.
        temperature: divides the log-probabilities.
    """

    classes: torch.Tensor

    def __init__(
        self, network: CountingNetwork, mirror: bool, classes: Sequence[int] | None = None, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.network, self.mirror, self.temperature = network, mirror, temperature
        indices = list(range(network.head.classes) if classes is None else classes)
        self.register_buffer("classes", torch.tensor(indices), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, size, size), RGB, to float32 (n, classes); rows sum to 1."""
        logs = log_probabilities(self.network, stack_views(images, self.mirror))
        return (logs[:, self.classes] / self.temperature).softmax(1)


def log_probabilities(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The logarithm of each class's probability, averaged over views, float32 (n, classes).

    Args:
        network: a Head for features, a CountingNetwork for images or rows.
        inputs: (n, views, width) features or rows, or (n, views, 3, h, w) images.
    """
    logits: torch.Tensor = network(inputs.flatten(0, 1))
    # A sum of logarithms, which are finite where a probability underflows.
    by_view: torch.Tensor = logits.log_softmax(1).unflatten(0, inputs.shape[:2])
    averaged: torch.Tensor = by_view.logsumexp(1) - math.log(inputs.shape[1])
    return averaged
