"""Backbones: ImageNet classification networks without their classifier, as a sequence of stages."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from bintally.errors import UserError

# Networks with weights in pip packages.
LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
# Scale 0–255. torchvision's preset for ImageNet; EfficientNet-Lite takes (x - 127) / 128.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LITE_MEAN, LITE_STD = (127.0,) * 3, (128.0,) * 3
RESNET_STAGES = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4", "avgpool"))


class Backbone(nn.Module):
    """Normalises images and computes one feature vector from each.

    ``body`` is a sequence of stages, five of a ResNet or EfficientNet-Lite, one of every other network. Each gives maps
    of a lower resolution, the last the vector that the network's classifier would take. Parameters have the network's
    own names behind ``body.<stage>.``.

    Args:
        name: of LITE or ``torchvision.models.list_models()``.
        image_size: side of the images in pixels.
        features: ``last``: the last stage's vector; ``every_scale``: followed by the spatial means of the earlier
            stages' maps, whose textures and edges say as much about a count as the objects of the last.

    Raises UserError if no such network exists or it does not take these arguments.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str, image_size: int, features: str) -> None:
        super().__init__()
        self.name = name
        self.every_scale = features == "every_scale"
        stages = _stages(name)
        if self.every_scale and len(stages) == 1:
            raise UserError(f"model.features: every_scale {_needs_stages(name)}; take last")
        self.body = nn.Sequential(*stages)
        mean, std = (LITE_MEAN, LITE_STD) if name in LITE else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.eval()
        try:
            self.width = self._probe(image_size)
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"model.image_size: {name} does not take images of {image_size} pixels: {error}") from error
        self.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def _probe(self, image_size: int) -> int:
        """The width of the features."""
        return self(torch.zeros(1, 3, image_size, image_size)).shape[1]  # type: ignore[no-any-return]

    def trainable_stages(self, trainable: str | int) -> list[list[nn.Parameter]]:
        """The parameters of each stage that `model.trainable` names, from the image on.

        Raises UserError if there are fewer.
        """
        stages = [list(stage.parameters()) for stage in self.body]
        if isinstance(trainable, str):
            return {"head": [], "all": stages}[trainable]
        if len(stages) == 1:
            raise UserError(f"model.trainable: {trainable} {_needs_stages(self.name)}; take head or all")
        if trainable > len(stages):
            raise UserError(
                f"model.trainable: {trainable} is more than the {len(stages)} stages of {self.name}; take fewer, or all"
            )
        return stages[len(stages) - trainable :]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) of 0–255, any dtype, to float32 (n, width)."""
        maps = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        means = []
        for stage in list(self.body)[:-1]:
            maps = stage(maps)
            if self.every_scale:
                means.append(maps.mean((2, 3)))
        return torch.cat([self.body[-1](maps), *means], 1)

    def train(self, mode: bool = True) -> "Backbone":
        """Set training mode for trainable batch normalisation alone: dropout's draws would differ between ranks."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = mode and module.weight.requires_grad
        return self


def _needs_stages(name: str) -> str:
    return f"needs a network with named stages (ResNets, EfficientNet-Lites), not {name}"


def _stages(name: str) -> Sequence[nn.Module]:
    """The stages of a network with random weights and without its classifier."""
    if name in LITE:
        return _lite_stages(name)
    import torchvision  # takes seconds, and the default backbone does without

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(
            f"model.backbone: '{name}' is not a torchvision classification network; "
            f"take {LITE[0]}, resnet50 or another of torchvision.models.list_models()"
        )
    # These two have auxiliary classifiers by default.
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(name, weights=None, **options)
    if isinstance(network, torchvision.models.ResNet):
        return _sequences([{child: network.get_submodule(child) for child in stage} for stage in RESNET_STAGES])
    if name.startswith("squeezenet"):
        network.classifier = nn.AdaptiveAvgPool2d(1)
    else:
        linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
        parent, _, child = linear[-1].rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Identity())
    return [network]


def _lite_stages(name: str) -> Sequence[nn.Module]:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(name.replace("_", "-"))
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d) and len({*padding.padding}) == 1:  # the convolution itself copies nothing
            module.padding, module.static_padding = padding.padding[:2], nn.Identity()
    groups: list[dict[str, nn.Module]] = [{}]
    for number, block in network._blocks.named_children():
        if block._depthwise_conv.stride[0] > 1:  # the resolution falls
            groups.append({})
        groups[-1][number] = block
    stages: list[dict[str, nn.Module]] = [{"_blocks": nn.Sequential(OrderedDict(group))} for group in groups]
    stages[0] = {child: network.get_submodule(child) for child in ("_conv_stem", "_bn0", "_swish")} | stages[0]
    stages[-1] |= {child: network.get_submodule(child) for child in ("_conv_head", "_bn1", "_swish", "_avg_pooling")}
    return _sequences(stages)


def _sequences(stages: Sequence[Mapping[str, nn.Module]]) -> Sequence[nn.Module]:
    sequences = [nn.Sequential(OrderedDict(stage)) for stage in stages]
    sequences[-1].append(nn.Flatten(1))
    return sequences
