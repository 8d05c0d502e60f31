"""The counting network: a backbone, a head of two linear layers, and the distribution over counts they give.

A second head says what the photograph adds to a list of the products in the bin (:mod:`bintally.scoring.evidence`),
and :class:`FeatureDistance` how far its features lie from those of the training photographs.
"""

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


class EvidenceHead(nn.Sequential):
    """Two linear layers with a ReLU between them, to a table of ``features`` of a list by classes."""

    def __init__(self, width: int, hidden: int, features: int, classes: int, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, features * classes))
        self.list_features, self.classes = features, classes

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, width) to tables (n, features, classes)."""
        tables: torch.Tensor = super().forward(features).unflatten(1, (self.list_features, self.classes))
        return tables


class FeatureDistance(nn.Module):
    """How far features lie from the mean of the training photographs', along the principal components of these.

    The Mahalanobis distance (Bishop, Pattern Recognition and Machine Learning, 2.3 and 12.1) over the root of the
    number of components: the root of the mean squared deviation, each in units of its standard deviation.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    deviations: torch.Tensor

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("axes", torch.zeros(width, components))
        self.register_buffer("deviations", torch.ones(components))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(n, width) to distances, (n, 1)."""
        deviations = (features.float() - self.mean) @ self.axes / self.deviations
        return deviations.square().mean(1, keepdim=True).sqrt()


class Heads(nn.Module):
    """The heads of a network, for features of the backbone.

    Args:
        evidence: None for a model that was trained before there were such heads.
        others: networks whose probabilities and tables are averaged with its own.
        distance: of this network's own features; None for a model without it.
    """

    def __init__(
        self,
        head: Head,
        evidence: EvidenceHead | None = None,
        others: "Sequence[Heads]" = (),
        distance: FeatureDistance | None = None,
    ) -> None:
        super().__init__()
        self.head, self.evidence, self.others = head, evidence, nn.ModuleList(others)
        self.distance = distance

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features (n, width) to logits of the photograph alone, (n, classes)."""
        return self.outputs(inputs)[0]

    def outputs(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same logits, and tables of evidence, (n, features of a list, classes), with no features without a head
        for them.
        """
        return self.read(self.features(inputs), inputs)

    def read(self, features: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs for inputs whose features are known."""
        logits: torch.Tensor = self.head(features)
        tables = self.evidence(features) if self.evidence else logits[:, None][:, :0]
        if not self.others:
            return logits, tables
        found = [(logits, tables), *(other.outputs(inputs) for other in self.others)]  # type: ignore[operator]
        logs = torch.stack([logits.log_softmax(1) for logits, _ in found]).logsumexp(0) - math.log(len(found))
        return logs, torch.stack([tables for _, tables in found]).mean(0)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


class CountingNetwork(Heads):
    """A backbone and its heads, for images, or rows that the backbone takes in their place."""

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        evidence: EvidenceHead | None = None,
        others: "Sequence[CountingNetwork]" = (),
        distance: FeatureDistance | None = None,
    ) -> None:
        super().__init__(head, evidence, others, distance)
        self.backbone = backbone

    @staticmethod
    def of(networks: "Sequence[CountingNetwork]") -> "CountingNetwork":
        """A network that predicts the mean of ``networks``."""
        first = networks[0]
        return CountingNetwork(first.backbone, first.head, first.evidence, networks[1:], first.distance)

    def heads(self) -> Heads:
        """The same heads, for features that the backbones, all with the same weights, have computed."""
        others = [other.heads() for other in self.others]  # type: ignore[operator]
        return Heads(self.head, self.evidence, others, self.distance)

    def features(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.backbone(inputs)  # type: ignore[no-any-return]


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

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """uint8 (n, 3, size, size), RGB, to probabilities, float32 (n, classes), whose rows sum to 1, tables of
        evidence, (n, features of a list, classes), and distances, (n, 1), or (n, 0) of a network without them.
        """
        logs, tables, distances = predict_views_and_distances(self.network, stack_views(images, self.mirror))
        return (logs[:, self.classes] / self.temperature).softmax(1), tables[..., self.classes], distances


def predict_views(network: Heads, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first two of :func:`predict_views_and_distances`."""
    return predict_views_and_distances(network, inputs)[:2]


def predict_views_and_distances(
    network: Heads, inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a network says of images, averaged over their views.

    Args:
        network: Heads for features, a CountingNetwork for images or rows.
        inputs: (n, views, width) features or rows, or (n, views, 3, h, w) images.

    Returns the logarithm of each class's probability, float32 (n, classes), tables of evidence, (n, features of a
    list, classes), and the distance of the views' mean features, (n, 1), or (n, 0) without a module for it.
    """
    flat = inputs.flatten(0, 1)
    features = network.features(flat)
    logits, tables = network.read(features, flat)
    views = inputs.shape[:2]
    # A sum of logarithms, which are finite where a probability underflows.
    logs = logits.log_softmax(1).unflatten(0, views).logsumexp(1) - math.log(inputs.shape[1])
    # A tensor without elements that is reshaped cannot be exported.
    averaged = tables.unflatten(0, views).mean(1) if tables.shape[1] else logs[:, None][:, :0]
    distances = network.distance(features.unflatten(0, views).mean(1)) if network.distance else logs[:, :0]
    return logs, averaged, distances
