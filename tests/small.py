"""Images, trunks, a model and bins small enough for tests of several rooms."""

from functools import cache

import torch

from bintally.bins.demo import DemoWarehouse
from bintally.bins.shards import Bin
from bintally.model.calibration import Calibration
from bintally.model.network import CountingNetwork, Head
from bintally.model.saved import Card
from bintally.model.trunk import LITE, Trunk
from bintally.model.weights import load_weights

SIZE = 64
CARD = Card(
    trunk=LITE[0],
    features="every_scale",
    image_size=SIZE,
    mean=[127.0] * 3,
    std=[128.0] * 3,
    mirror=True,
    counts=[1, 2, 3, 4, 5],
    hidden=16,
    parameters={"train": {"lr": 0.01, "clip": None}},
    data="abc",
    validation={"loss": 1.5, "accuracy": 0.25},
)
# Answers with some of the counts CARD's model learned.
CALIBRATION = Calibration(
    counts=[2, 3, 5],
    open_ended=False,
    temperature=1.7,
    rmse_decoding="rounded_mean",
    coverage=0.9,
    mass=0.95,
    sure=0.8,
    confidence=0.6,
    wrong_records=0.1,
    kinship=0.0,
)


@cache
def counter() -> CountingNetwork:
    """CARD's network, which gives each image another distribution: the learned trunk, a head of large weights."""
    trunk = Trunk(CARD.trunk, CARD.image_size, CARD.features)
    load_weights(trunk, CARD.trunk, "DEFAULT")
    network = CountingNetwork(trunk, Head(trunk.width, CARD.hidden, len(CARD.counts), CARD.ordinal, seed=1)).eval()
    network.get_parameter("head.2.weight").data *= 10
    return network


@cache
def bins() -> list[Bin]:
    """Demo bins, more than a batch."""
    warehouse = DemoWarehouse(seed=3)
    found = []
    for number in range(1, 13):
        image = warehouse.image(number)
        if image is not None and warehouse.fault(number) is None:
            one = f"{number:05d}"
            found.append(Bin(one, warehouse.bin(number).count, one, image, warehouse.record(number)))
    return found


def images() -> torch.Tensor:
    """Three of noise, uint8 (3, 3, SIZE, SIZE)."""
    return torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def trunk(name: str = "resnet18", features: str = "last", seed: int = 1) -> Trunk:
    """One without weights, for images of SIZE."""
    torch.manual_seed(seed)
    return Trunk(name, SIZE, features).eval()
