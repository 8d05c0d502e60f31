"""The counting network: a trunk, a head of two linear layers, and a distribution over counts."""

import math

import torch
from torch import nn

from bintally.model.trunk import Trunk


def make_head(width: int, hidden: int, classes: int, seed: int) -> nn.Sequential:
    """Two linear layers with a ReLU between, as the reference study has them, initialised from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes))


class CountingNetwork(nn.Module):
    """Trunk and head together."""

    def __init__(self, trunk: Trunk, head: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) of 0–255 to logits (n, classes)."""
        return self.head(self.trunk(images))  # type: ignore[no-any-return]


class CountDistribution(nn.Module):
    """From pixels to probabilities in one module: what predicts and what is exported."""

    def __init__(self, network: CountingNetwork, mirrored: bool) -> None:
        super().__init__()
        self.network = network
        self.mirrored = mirrored

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, size, size), RGB, to float32 (n, classes); rows sum to 1."""
        return distribution(self.network, views(images, self.mirrored))


def mirror(images: torch.Tensor) -> torch.Tensor:
    """Flip images left to right: (..., height, width) to the same shape."""
    return images.flip(-1)


def views(images: torch.Tensor, mirrored: bool) -> torch.Tensor:
    """The views of each image that are averaged: (n, 3, h, w) to (n, views, 3, h, w)."""
    return torch.stack([images, mirror(images)] if mirrored else [images], dim=1)


def distribution(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Probability of each class, averaged over views.

    Args:
        network: a head where ``inputs`` are features, a CountingNetwork where they are images.
        inputs: (n, views, width) features or (n, views, 3, h, w) images.

    Returns:
        float32 (n, classes); rows sum to 1.
    """
    return log_distribution(network, inputs).exp()


def log_distribution(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The logarithm of :func:`distribution`, finite where a probability is too small for a float."""
    logits: torch.Tensor = network(inputs.flatten(0, 1))
    by_view = logits.log_softmax(1).unflatten(0, inputs.shape[:2])
    averaged: torch.Tensor = by_view.logsumexp(1) - math.log(inputs.shape[1])
    return averaged
