"""A small model, small images and demo bins for tests of several packages."""

import hashlib
from collections.abc import Sequence
from functools import cache

import torch

from bintally.bins.shards import Bin
from bintally.bins.trained_on import photograph_digest
from bintally.demo.warehouse import DemoWarehouse
from bintally.files import write_csv
from bintally.model.backbone import LITE, Backbone
from bintally.model.card import DistanceReference, ModelCard
from bintally.model.network import CountingNetwork, EvidenceHead, FeatureDistance, Head
from bintally.model.pretrained import load_weights
from bintally.paths import QUALITY
from bintally.scoring.calibration import Calibration
from bintally.scoring.evidence import FEATURES, ListFeatures

SIZE = 64
LEARNED = b"a photograph that CARD's model was trained on"
CARD = ModelCard(
    backbone=LITE[0],
    features="every_scale",
    image_size=SIZE,
    mean=[127.0] * 3,
    std=[128.0] * 3,
    mirror=True,
    counts=[1, 2, 3, 4, 5],
    hidden=16,
    list_features=ListFeatures(means=[3.0, 2.0, 1.0, -0.5], deviations=[1.5, 0.5, 0.75, 1.0]),
    distances=DistanceReference(components=4, photographs=10, quantiles=[0.0, 1.0, 2.0, 3.0, 4.0]),
    parameters={"train": {"lr": 0.01, "clip_grad_norm": None}},
    data="abc",
    trained_on=hashlib.sha256(photograph_digest(LEARNED).to_bytes(8, "little")).hexdigest(),
    validation={"loss": 1.5, "accuracy": 0.25},
)
# Answers with some of the counts of CARD.
CALIBRATION = Calibration(
    counts=[2, 3, 5],
    open_ended=False,
    temperature=1.7,
    rmse_decoding="rounded_mean",
    coverage=0.9,
    conformal_threshold=0.95,
    target_precision=0.8,
    confidence_threshold=0.6,
    record_error_rate=0.1,
    unsure=0.4,
)


@cache
def counting_network() -> CountingNetwork:
    """CARD's network with ImageNet weights and heads of large weights, which make the outputs differ."""
    backbone = Backbone(CARD.backbone, CARD.image_size, CARD.features)
    load_weights(backbone, "DEFAULT")
    head = Head(backbone.width, CARD.hidden, len(CARD.counts), CARD.ordinal, seed=1)
    evidence = EvidenceHead(backbone.width, CARD.hidden, FEATURES, len(CARD.counts), seed=2)
    assert CARD.distances
    distance = FeatureDistance(backbone.width, CARD.distances.components)
    distance.axes.fill_diagonal_(1)
    network = CountingNetwork(backbone, head, evidence, distance=distance).eval()
    for name in ("head", "evidence"):
        network.get_parameter(f"{name}.2.weight").data *= 10
    return network


@cache
def bins() -> list[Bin]:
    """Good demo bins, more than a batch."""
    warehouse = DemoWarehouse(seed=3)
    found = []
    for number in range(1, 13):
        image = warehouse.image(number)
        if image is not None and warehouse.defect(number) is None:
            one = f"{number:05d}"
            found.append(Bin(one, warehouse.bin(number).count, one, image, warehouse.record(number)))
    return found


def write_quality(ids: Sequence[str]) -> None:
    """What the stage quality writes for good photographs with records that are as probable as each other."""
    header = ["id", "near_duplicate_of", "record_probability", "reasons"]
    write_csv(QUALITY, header, [(one, "", 0.5, "") for one in ids])


def images() -> torch.Tensor:
    """Three images of noise, uint8 (3, 3, SIZE, SIZE)."""
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def backbone(name: str = "resnet18", features: str = "last", seed: int = 1) -> Backbone:
    """A backbone with random weights for images of SIZE."""
    torch.manual_seed(seed)
    return Backbone(name, SIZE, features).eval()
