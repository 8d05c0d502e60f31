"""A model on disk: its weights, ``model.safetensors``, and its card, ``card.json``."""

from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bintally.errors import UserError
from bintally.files import atomic_write, write_text
from bintally.model.backbone import Backbone
from bintally.model.network import CountingNetwork, Head


class ModelCard(BaseModel):
    """The structure, input and origin of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    features: str
    image_size: int = Field(ge=1)
    """Side of the square input in pixels; resized by squashing, bilinear with antialiasing."""
    mean: list[float]
    std: list[float]
    """Normalisation of the pixels, scale 0–255, RGB."""
    mirror: bool
    """Whether predictions are averaged over an image and its mirror image."""
    counts: list[int]
    """The count of each class."""
    hidden: int = Field(ge=1)
    ordinal: bool = False
    parameters: dict[str, Any]
    """The parameters of the training."""
    data: str
    """SHA-256 of the encoded images and the split."""
    validation: dict[str, float]
    """Loss and accuracy of the best epoch."""


def save_model(folder: Path, network: CountingNetwork, card: ModelCard) -> None:
    """Write a model; equal weights give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_text(folder / "card.json", card.model_dump_json(indent=2) + "\n")


def load_model(folder: Path) -> tuple[CountingNetwork, ModelCard]:
    """Read a model in evaluation mode; no code in its files is run.

    Raises UserError if it is incomplete or damaged, has weights that are not finite, or does not match its card.
    """
    try:
        card = ModelCard.model_validate_json((folder / "card.json").read_text(encoding="utf-8"))
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} has no complete model: {' '.join(str(error).split())[:200]}") from error
    backbone = Backbone(card.backbone, card.image_size, card.features)
    network = CountingNetwork(backbone, Head(backbone.width, card.hidden, len(card.counts), card.ordinal, seed=0))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{folder}: the weights do not fit the card: {str(error).splitlines()[-1].strip()}") from error
    for name, values in state.items():
        if not values.isfinite().all():
            raise UserError(f"{folder}: the weights of {name} are not all finite; train it again")
    for name, ours, theirs in (("mean", card.mean, backbone.mean), ("std", card.std, backbone.std)):
        if not torch.equal(torch.tensor(ours), theirs.flatten()):
            raise UserError(f"{folder}: the card's {name} is {ours}, the network's is {theirs.flatten().tolist()}")
    return network.eval(), card
