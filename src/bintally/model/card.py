"""A model on disk: ``model.safetensors`` and a card that says how to use it."""

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


class Card(BaseModel):
    """What is needed to build the network again and to know where it came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    features: str
    image_size: int = Field(ge=1)
    """Side of the square input in pixels; resized by squashing, bilinear with antialiasing."""
    mean: list[float]
    std: list[float]
    """Normalisation of the pixels, scale 0–255, RGB."""
    mirror: bool
    """Whether both mirror images are averaged."""
    counts: list[int]
    """The count each output stands for."""
    hidden: int = Field(ge=1)
    ordinal: bool = False
    parameters: dict[str, Any]
    """The parameters it was trained with."""
    data: str
    """SHA-256 over the encoded images and the split it was trained on."""
    validation: dict[str, float]


def save_model(folder: Path, network: CountingNetwork, card: Card) -> None:
    """Write weights and card; equal weights give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_text(folder / "card.json", card.model_dump_json(indent=2) + "\n")


def load_model(folder: Path) -> tuple[CountingNetwork, Card]:
    """Read a model without running any code of its file.

    Raises UserError if it is missing or damaged, if a weight is not finite, or if the card normalises otherwise.
    """
    try:
        card = Card.model_validate_json((folder / "card.json").read_text(encoding="utf-8"))
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} holds no whole model: {' '.join(str(error).split())[:200]}") from error
    backbone = Backbone(card.backbone, card.image_size, card.features)
    network = CountingNetwork(backbone, Head(backbone.width, card.hidden, len(card.counts), card.ordinal, seed=0))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{folder}: the weights do not fit the card: {str(error).splitlines()[-1].strip()}") from error
    for name, values in state.items():
        if not values.isfinite().all():
            raise UserError(f"{folder}: the weights of {name} are not all finite; train it again")
    for name, wanted, found in (("mean", card.mean, backbone.mean), ("std", card.std, backbone.std)):
        if not torch.equal(torch.tensor(wanted), found.flatten()):
            raise UserError(f"{folder}: the card's {name} is {wanted}, the network's is {found.flatten().tolist()}")
    return network.eval(), card


def default_device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
