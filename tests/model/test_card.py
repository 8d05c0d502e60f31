"""A model is loaded as it was saved, or refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bintally.errors import UserError
from bintally.files import write_json
from bintally.model.backbone import LITE, Backbone
from bintally.model.card import DistanceReference, ModelCard, load_model, save_model
from bintally.model.network import CountingNetwork, EvidenceHead, FeatureDistance, Head
from bintally.scoring.evidence import FEATURES, ListFeatures

CARD = ModelCard(
    backbone=LITE[0],
    features="last",
    image_size=64,
    mean=[127.0] * 3,
    std=[128.0] * 3,
    mirror=True,
    counts=[1, 2, 5],
    hidden=8,
    list_features=ListFeatures(means=[3.0, 2.0, 1.0, -0.5], deviations=[2.0, 0.5, 0.75, 1.0]),
    parameters={"train": {"lr": 0.01}},
    data="abc",
    validation={"loss": 1.5, "accuracy": 0.25},
)


@pytest.fixture(scope="module")
def network() -> CountingNetwork:
    torch.manual_seed(1)
    backbone = Backbone(CARD.backbone, 64, CARD.features)
    head, evidence = Head(backbone.width, 8, 3, CARD.ordinal, seed=1), EvidenceHead(backbone.width, 8, FEATURES, 3, 1)
    return CountingNetwork(backbone, head, evidence).eval()


@pytest.fixture
def folder(tmp_path: Path, network: CountingNetwork) -> Path:
    save_model(tmp_path / "model", network, CARD)
    return tmp_path / "model"


@torch.no_grad()
def test_a_loaded_model_equals_the_saved_one(folder: Path, network: CountingNetwork) -> None:
    loaded, card = load_model(folder)
    assert card == CARD
    assert not loaded.training
    state, expected = loaded.state_dict(), network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    assert all(map(torch.equal, loaded.outputs(images), network.outputs(images)))


def test_an_older_model_whose_card_names_no_features_of_lists_has_no_head_for_them(
    folder: Path, network: CountingNetwork
) -> None:
    values = CARD.model_dump()
    del values["list_features"]
    save_model(folder, CountingNetwork(network.backbone, network.head), ModelCard(**values))
    write_json(folder / "card.json", values)
    loaded, card = load_model(folder)
    assert loaded.evidence is None and card.list_features is None
    assert torch.equal(loaded.head.get_parameter("2.bias"), network.head.get_parameter("2.bias"))


@torch.no_grad()
def test_a_model_keeps_how_far_features_lie_from_training(tmp_path: Path, network: CountingNetwork) -> None:
    distance = FeatureDistance(network.backbone.width, 2)
    distance.axes.fill_diagonal_(1)
    measured = CountingNetwork(network.backbone, network.head, network.evidence, distance=distance)
    reference = DistanceReference(components=2, photographs=7, quantiles=[0.5, 1.0, 1.5])
    save_model(tmp_path, measured, CARD.model_copy(update={"distances": reference}))
    loaded, card = load_model(tmp_path)
    assert card.distances == reference and loaded.distance
    assert torch.equal(loaded.distance.axes, distance.axes)
    assert reference.ranks(np.array([0.1, 0.5, 0.75, 1.5, 9.0])).tolist() == [0, 0, 0.25, 1, 1]
    save_model(tmp_path, network, card)
    with pytest.raises(UserError, match=r"the weights do not fit the card: .*distance"):
        load_model(tmp_path)


@torch.no_grad()
def test_a_model_of_several_networks_is_loaded_as_it_was_saved(tmp_path: Path, network: CountingNetwork) -> None:
    torch.manual_seed(2)
    backbone = Backbone(CARD.backbone, 64, CARD.features)
    heads = Head(backbone.width, 8, 3, CARD.ordinal, seed=2), EvidenceHead(backbone.width, 8, FEATURES, 3, 2)
    both = CountingNetwork.of([network, CountingNetwork(backbone, *heads).eval()])
    save_model(tmp_path, both, CARD.model_copy(update={"networks": 2}))
    loaded, card = load_model(tmp_path)
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    assert card.networks == 2 and all(map(torch.equal, loaded.outputs(images), both.outputs(images)))
    for number in (1, 3):
        write_json(tmp_path / "card.json", CARD.model_copy(update={"networks": number}).model_dump())
        with pytest.raises(UserError, match="the weights do not fit the card"):
            load_model(tmp_path)


def test_equal_models_give_equal_files(folder: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again", *load_model(folder))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["card.json", "model.safetensors"]
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)


def test_a_missing_or_damaged_model_is_a_user_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere has no complete model"):
        load_model(tmp_path / "nowhere")
    weights = folder / "model.safetensors"
    complete = weights.read_bytes()
    for damaged in (b"", complete[: len(complete) // 2], complete[:-1], b"\x80\x04" + complete[2:]):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{folder} has no complete model"):
            load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "has no complete model.*colour"),
        ({"counts": None}, "has no complete model.*counts"),
        ({"hidden": 9}, "weights do not fit the card"),
        ({"counts": [1, 2]}, "weights do not fit the card"),
        ({"features": "every_scale"}, "weights do not fit the card"),
        ({"backbone": "resnet1"}, "'resnet1' is not a torchvision classification network"),
        ({"ordinal": True}, "weights do not fit the card"),
        ({"list_features": None}, "weights do not fit the card: .*evidence"),
        ({"list_features": {"means": [0.0] * 4, "deviations": [1.0, 1.0, 0.0, 1.0]}}, "greater than 0"),
        ({"list_features": {"means": [0.0] * 3, "deviations": [1.0] * 4}}, "card.json: list_features.means"),
        ({"ordinal": 3}, "has no complete model.*ordinal"),
        (
            {"mean": [127.0, 127.0, 126.0]},
            r"card's mean is \[127.0, 127.0, 126.0\], the network's is \[127.0, 127.0, 127",
        ),
        ({"std": [128.0]}, "card's std is"),
        ({"image_size": 10**9}, "has no complete model: card.json: image_size: .* less than or equal to 1024"),
        ({"hidden": 10**12}, "weights do not fit the card: they have no hidden layer of 1000000000000 units"),
        ({"counts": [5, 2, 1]}, r"has no complete model: card.json: counts: .*\[5, 2, 1\] must be ascending"),
        ({"counts": list(range(2000))}, "has no complete model: card.json: counts"),
        ({"backbone": "../../etc"}, "'../../etc' is not a torchvision classification network"),
    ],
)
def test_a_wrong_card_is_a_user_error(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_json(folder / "card.json", CARD.model_dump() | changes)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_a_user_error(folder: Path, value: float) -> None:
    state = load_file(folder / "model.safetensors")
    state["head.2.bias"][1] = value
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"{folder}: the weights of head\.2\.bias are not all finite"):
        load_model(folder)


@pytest.mark.parametrize(
    "content",
    [
        b'{"hidden": ' + b"9" * 5000 + b"}",
        b'{"parameters": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b" " * 10_000_000,
        b"\xff\xfe{}",
        b'{"validation": {"loss": Infinity}}',
    ],
    ids=["digits", "depth", "size", "encoding", "infinity"],
)
def test_a_hostile_card_is_a_user_error(folder: Path, content: bytes) -> None:
    (folder / "card.json").write_bytes(content)
    with pytest.raises(UserError, match=f"{folder} has no complete model: card.json: ") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_values_of_a_card_are_finite(folder: Path) -> None:
    text = (folder / "card.json").read_text()
    (folder / "card.json").write_text(text.replace("1.5", "Infinity"))
    with pytest.raises(UserError, match=r"card\.json: validation\.loss: Input should be a finite number"):
        load_model(folder)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (2**63, "begins with a header of 9,223,372,036,854,775,808 bytes, more than 4,000,000"),
        (
            90_000_000,
            "begins with a header of 90,000,000 bytes, more than 4,000,000",
        ),  # a minute's work, if it were read
        (3_000_000, ""),  # more than there are
    ],
)
def test_a_header_of_weights_that_lies_or_is_too_long_is_a_user_error(folder: Path, size: int, message: str) -> None:
    (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(UserError, match=f"{folder} has no complete model.*{message}"):
        load_model(folder)


def test_weights_of_another_type_are_taken_if_they_stay_finite(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["head.0.bias"] = state["head.0.bias"].double()
    save_file(state, folder / "model.safetensors")
    assert load_model(folder)[0].get_parameter("head.0.bias").dtype == torch.float32
    state["head.0.bias"][0] = 1e300
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"the weights of head\.0\.bias are not all finite"):
        load_model(folder)


def test_a_truncated_card_is_a_user_error(folder: Path) -> None:
    path = folder / "card.json"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=f"{folder} has no complete model"):
        load_model(folder)
