"""The counting network: a backbone, a head of two linear layers, and a distribution over counts."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from bintally.model.backbone import Backbone


class Head(nn.Sequential):
    """Two linear layers with a ReLU between, as the reference study has them, initialised from ``seed``.

    With ``ordinal`` each output but the last class's answers whether the count is of a higher class, given that it is
    of its own or a higher one. ``facts`` further outputs tell what else is learned of a bin, until they are dropped.
    """

    def __init__(self, width: int, hidden: int, classes: int, ordinal: bool, seed: int, facts: int = 0) -> None:
        outputs = classes - ordinal
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, outputs + facts))
        self.ordinal = ordinal
        self.classes = classes
        self._outputs = outputs

    def forward(self, features: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """(n, width), each times its share in ``kept``, to logits and facts (n, classes + facts)."""
        outputs: torch.Tensor = super().forward(features if kept is None else features * kept)
        if not self.ordinal:
            return outputs
        return torch.cat([continued(outputs[:, : self._outputs]), outputs[:, self._outputs :]], 1)

    @torch.no_grad()
    def drop_facts(self) -> None:
        """Become the head that tells counts alone."""
        last = self[2]
        assert isinstance(last, nn.Linear)
        last.weight = nn.Parameter(last.weight[: self._outputs].clone())
        last.bias = nn.Parameter(last.bias[: self._outputs].clone())
        last.out_features = self._outputs


def continued(answers: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of classes from the logits of going on beyond each: (n, classes - 1) to (n, classes).

    The continuation ratios of ordinal regression (Agresti, Categorical Data Analysis, 8.3.6).
    """
    beyond = _log_sigmoid(answers).cumsum(1)
    stop = _log_sigmoid(-answers)
    return torch.cat([stop[:, :1], beyond[:, :-1] + stop[:, 1:], beyond[:, -1:]], 1)


def _log_sigmoid(values: torch.Tensor) -> torch.Tensor:
    if torch.compiler.is_exporting():  # ONNX would take the logarithm of the sigmoid, which has lost digits by then
        return values.clamp(max=0) - (-values.abs()).exp().log1p()
    return nn.functional.logsigmoid(values)


class CountingNetwork(nn.Module):
    """Backbone and head together."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """(n, 3, size, size) of 0–255 to what the head gives; ``kept`` as the head takes it."""
        return self.head(self.backbone(images), kept)  # type: ignore[no-any-return]


class CountDistribution(nn.Module):
    """From pixels to calibrated probabilities in one module: what predicts and what is exported."""

    chosen: torch.Tensor

    def __init__(
        self, network: CountingNetwork, mirrored: bool, chosen: Sequence[int] | None = None, temperature: float = 1.0
    ) -> None:
        """``chosen``: the classes there are to answer with; None is all."""
        super().__init__()
        self.network = network
        self.mirrored = mirrored
        self.temperature = temperature
        classes = range(network.head.classes) if chosen is None else chosen
        self.register_buffer("chosen", torch.tensor(list(classes)), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, size, size), RGB, to float32 (n, chosen); rows sum to 1."""
        logs = log_distribution(self.network, views(images, self.mirrored))
        return (logs[:, self.chosen] / self.temperature).softmax(1)


def mirror(images: torch.Tensor) -> torch.Tensor:
    """Flip images left to right: (..., height, width) to the same shape."""
    return images.flip(-1)


def views(images: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """The views of each image that are averaged: (n, 3, h, w) to (n, views, 3, h, w)."""
    return torch.stack([images, mirror(images)] if mirrored else [images], dim=1)


def log_distribution(network: nn.Module, inputs: torch.Tensor, classes: int | None = None) -> torch.Tensor:
    """The logarithm of the probability of each class, averaged over views.

    It is finite where a probability is too small for a float.

    Args:
        network: a head where ``inputs`` are features, a CountingNetwork where they are images.
        inputs: (n, views, width) features or (n, views, 3, h, w) images.
        classes: so many of its first outputs are logits; None is all.

    Returns:
        float32 (n, classes).
    """
    logits: torch.Tensor = network(inputs.flatten(0, 1))[:, :classes]
    by_view = logits.log_softmax(1).unflatten(0, inputs.shape[:2])
    averaged: torch.Tensor = by_view.logsumexp(1) - math.log(inputs.shape[1])
    return averaged
