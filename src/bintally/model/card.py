"""A model on disk: its weights, ``model.safetensors``, and its card, ``card.json``."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bintally.errors import UserError, first_wrong_field
from bintally.files import atomic_write, write_text
from bintally.model.backbone import Backbone
from bintally.model.network import CountingNetwork, EvidenceHead, FeatureDistance, Head
from bintally.params import MAX_IMAGE_SIZE, MAX_NETWORKS, Counts
from bintally.scoring.evidence import FEATURES, ListFeatures

MAX_CARD_BYTES = 1_000_000
MAX_COMPONENTS = 64  # of feature distances
MAX_HEADER_BYTES = 4_000_000  # of the names and shapes of weights; those of the largest backbone are a tenth of it


class DistanceReference(BaseModel):
    """What distances of features (:class:`bintally.model.network.FeatureDistance`) are compared with."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    components: int = Field(ge=1, le=MAX_COMPONENTS)
    photographs: int = Field(ge=1)
    """Number of validation photographs whose distances"""
    quantiles: Annotated[list[float], Field(min_length=2, max_length=1001)]
    """these are, from the least to the greatest, at equal steps of probability."""

    def ranks(self, distances: NDArray[np.floating]) -> NDArray[np.float64]:
        """The share of the validation photographs that lie nearer to training's than each of (n,).

        The mean over photographs is the probability that one of them lies farther than one of validation: the statistic
        of Mann and Whitney (1947) over the number of pairs, 0.5 for photographs like them.
        """
        return np.asarray(np.interp(distances, self.quantiles, np.linspace(0, 1, len(self.quantiles))))


class ModelCard(BaseModel):
    """The structure, input and origin of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    backbone: str
    features: str
    image_size: int = Field(ge=1, le=MAX_IMAGE_SIZE)
    """Side of the square input in pixels; resized by squashing, bilinear with antialiasing."""
    mean: list[float]
    std: list[float]
    """Normalisation of the pixels, scale 0–255, RGB."""
    mirror: bool
    """Whether predictions are averaged over an image and its mirror image."""
    counts: Counts
    """The count of each class."""
    hidden: int = Field(ge=1)
    ordinal: bool = False
    networks: int = Field(default=1, ge=1, le=MAX_NETWORKS)
    """Number of networks whose predictions are averaged."""
    list_features: ListFeatures | None = None
    """Of a network that reads a photograph with the list of products in its bin; None: of an older one, which does
    not."""
    distances: DistanceReference | None = None
    """Of a model that says how far photographs lie from training's; None: of one that does not."""
    parameters: dict[str, Any]
    """The parameters of the training."""
    data: str
    """SHA-256 of the encoded images, the split and what is known of the lists."""
    trained_on: str | None = None
    """SHA-256 of ``trained_on.bin``, which lists what it was trained on; None: of an older model, without that file."""
    validation: dict[str, float]
    """Loss and accuracy of the best epoch."""


def save_model(folder: Path, network: CountingNetwork, card: ModelCard) -> None:
    """Write a model; equal weights give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_text(folder / "card.json", card.model_dump_json(indent=2) + "\n")


def load_card(folder: Path) -> ModelCard:
    """Read a model's card. Raises UserError if it is missing or damaged."""
    try:
        with (folder / "card.json").open("rb") as file:
            return ModelCard.model_validate_json(file.read(MAX_CARD_BYTES))
    except ValidationError as error:
        raise _incomplete(folder, f"card.json: {first_wrong_field(error)}") from error
    except OSError as error:
        raise _incomplete(folder, error) from error


def load_model(folder: Path) -> tuple[CountingNetwork, ModelCard]:
    """Read a model in evaluation mode; no code in its files is run.

    Raises UserError if it is incomplete or damaged, has weights that are not finite, or does not match its card.
    """
    card = load_card(folder)
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise ValueError(f"{weights} begins with a header of {header:,} bytes, more than {MAX_HEADER_BYTES:,}")
        state = load_file(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise _incomplete(folder, error) from error
    # Before the network is made, which takes as much memory as the card says.
    if "head.0.bias" not in state or state["head.0.bias"].shape != (card.hidden,):
        raise UserError(f"{folder}: the weights do not fit the card: they have no hidden layer of {card.hidden} units")
    network = CountingNetwork.of([_network(card) for _ in range(card.networks)])
    backbone = network.backbone
    if card.distances:
        network.distance = FeatureDistance(backbone.width, card.distances.components)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{folder}: the weights do not fit the card: {str(error).splitlines()[-1].strip()}") from error
    for name, values in network.state_dict().items():
        if not values.isfinite().all():
            raise UserError(f"{folder}: the weights of {name} are not all finite; train it again")
    for name, ours, theirs in (("mean", card.mean, backbone.mean), ("std", card.std, backbone.std)):
        if not torch.equal(torch.tensor(ours), theirs.flatten()):
            raise UserError(f"{folder}: the card's {name} is {ours}, the network's is {theirs.flatten().tolist()}")
    return network.eval(), card


def _network(card: ModelCard) -> CountingNetwork:
    backbone, classes = Backbone(card.backbone, card.image_size, card.features), len(card.counts)
    head = Head(backbone.width, card.hidden, classes, card.ordinal, seed=0)
    evidence = EvidenceHead(backbone.width, card.hidden, FEATURES, classes, seed=0) if card.list_features else None
    return CountingNetwork(backbone, head, evidence)


def _incomplete(folder: Path, reason: object) -> UserError:
    why = " ".join(str(reason).split())[:200]
    return UserError(f"{folder} has no complete model: {why}; `dvc repro` writes one, `bintally pull` fetches it")
