"""Networks learned on ImageNet, without their classifier, whole or parted in two."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bintally.errors import UserError

# Their weights come by pip.
LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
# Scale 0–255. torchvision's preset for ImageNet; EfficientNet-Lite takes (x - 127) / 128.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LITE_MEAN, LITE_STD = (127.0,) * 3, (128.0,) * 3
GRID = (3, 3)


class Backbone(nn.Module):
    """Normalises images and turns each into one feature vector.

    The vector is what the network would hand to its classifier. With ``features`` ``every_scale`` the spatial means
    of its last map at each finer resolution stand behind it, since how many things there are shows in the textures
    and edges of the early maps as much as in the objects of the last. With ``grid`` it is the last map's means over
    GRID cells, which keep where things are.

    Once it is cut, ``front`` computes what does not learn, and the backbone goes on from there as well as from images.

    Raises UserError if there is no such network.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str, image_size: int, features: str) -> None:
        super().__init__()
        self.body = _headless(name)
        mean, std = (LITE_MEAN, LITE_STD) if name in LITE else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self._means: list[torch.Tensor] = []
        self._front: list[str] = []
        self._map_shape: tuple[int, ...] = ()
        self._name, self._size = name, image_size
        probe = torch.zeros(1, 3, image_size, image_size)
        self.eval()
        try:
            blocks = _scales(self.body, probe)
        except (AssertionError, RuntimeError) as error:
            raise UserError(f"model.image_size: {name} does not take images of {image_size} pixels: {error}") from error
        self._stage_of_block = _stages(blocks)
        self._grid = features == "grid"
        # Methods, not lambdas: in a copy of the backbone they are the copy's.
        if features == "every_scale":
            for tap in _last_of_each_scale(blocks)[:-1]:
                self.body.get_submodule(tap).register_forward_hook(self._note_mean)
        elif self._grid:
            self.body.get_submodule(_last_of_each_scale(blocks)[-1]).register_forward_hook(self._note_cells)
        with torch.no_grad():
            self.width: int = self(probe).shape[1]
        self.to(memory_format=torch.channels_last)

    def _note_mean(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self._means.append(output.mean((2, 3)))

    def _note_cells(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self._means.append(nn.functional.adaptive_avg_pool2d(output, GRID).flatten(1))

    def stages(self) -> list[list[nn.Parameter]]:
        """The parameters of each stage, from the image on: a stage is what computes maps of one resolution."""
        stages = self._learning_stages()
        return [stages[number] for number in sorted(stages)]

    def _learning_stages(self) -> dict[int, list[nn.Parameter]]:
        last = max(self._stage_of_block.values(), default=0)
        stages: dict[int, list[nn.Parameter]] = {}
        for name, parameter in self.body.named_parameters():
            blocks = [stage for block, stage in self._stage_of_block.items() if name.startswith(block + ".")]
            stages.setdefault(blocks[0] if blocks else last, []).append(parameter)
        return stages

    @torch.no_grad()
    def cut(self, learned: int) -> None:
        """Part what comes before the last ``learned`` stages from them.

        Raises UserError if there are not so many, or if what comes before them gives more than one map.
        """
        stages = sorted(self._learning_stages())
        if not 0 < learned < len(stages):
            raise UserError(
                f"model.trainable: {learned} must be below the {len(stages)} stages {self._name} has; take fewer, or all"
            )
        self._front = [block for block, stage in self._stage_of_block.items() if stage < stages[-learned]]
        at = self.mean.device
        probe = torch.rand(2, 3, self._size, self._size, generator=torch.Generator().manual_seed(0)).to(at) * 255
        mode = {module: module.training for module in self.modules()}
        self.eval()
        try:
            agrees = torch.allclose(self(self.front(probe)), self(probe), rtol=1e-3, atol=1e-4)
        except (AttributeError, RuntimeError):
            agrees = False
        for module, training in mode.items():
            module.training = training
        if not agrees:
            raise UserError(
                f"model.trainable: {self._name} does not hand one map on there, so {learned} cannot be; take all"
            )

    def constant(self) -> list[str]:
        """Names of the weights that come before the cut."""
        before = tuple(f"body.{block}." for block in self._front)
        return [name for name in self.state_dict() if name.startswith(before)]

    def front(self, images: torch.Tensor) -> torch.Tensor:
        """What comes before the cut, as rows the backbone takes in place of images.

        (n, 3, size, size) of 0–255, any dtype, to float32 (n, height · width · channels + means): the map at the cut,
        channels last, and the means of the map at every scale up to there where the head sees them.
        """
        self._means.clear()
        hook = self.body.get_submodule(self._front[-1]).register_forward_hook(_stop)
        try:
            self.body(self._normalised(images))
            raise RuntimeError(f"{self._name} does not run {self._front[-1]}")
        except _Reached as reached:
            maps = reached.output
        finally:
            hook.remove()
        self._map_shape = tuple(maps.shape[1:])
        row = self.pack_rows(maps, torch.cat([maps.new_zeros(len(maps), 0), *self._means], 1))
        self._means.clear()
        return row

    def unpack_rows(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The maps (n, channels, height, width) and the means (n, ·) of rows of :meth:`front`."""
        channels, height, width = self._map_shape
        maps, means = rows.tensor_split([channels * height * width], 1)
        return maps.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2), means

    @staticmethod
    def pack_rows(maps: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        """Rows of maps and means: what :meth:`unpack_rows` undoes."""
        return torch.cat([maps.permute(0, 2, 3, 1).flatten(1), means], 1)

    def train(self, mode: bool = True) -> "Backbone":
        """Batch normalisation alone trains, where its weights learn; dropout would differ from rank to rank."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = mode and module.weight.requires_grad
        return self

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) of 0–255, any dtype, or rows of :meth:`front`, to float32 (n, width)."""
        self._means.clear()
        if inputs.dim() == 2:
            maps, means = self.unpack_rows(inputs)
            self._means.append(means)
            with self._skipping_front(maps.contiguous(memory_format=torch.channels_last)) as given:
                last = self.body(given)
        else:
            last = self.body(self._normalised(inputs))
        features = self._means[-1] if self._grid else torch.cat([last.flatten(1), *self._means], dim=1)
        self._means.clear()  # torch.export wants a module to be after a call what it was before
        return features

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        return ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    @contextmanager
    def _skipping_front(self, maps: torch.Tensor) -> Iterator[torch.Tensor]:
        """Let every block before the cut give ``maps`` at once; the last of them is what the rest goes on from."""
        blocks = {block: self.body.get_submodule(block) for block in self._front}
        given = _Given(maps)
        try:
            for block in blocks:
                self._place(block, given)
            yield maps
        finally:
            for block, module in blocks.items():
                self._place(block, module)

    def _place(self, block: str, module: nn.Module) -> None:
        parent, _, child = block.rpartition(".")
        self.body.get_submodule(parent)._modules[child] = module


class _Given(nn.Module):
    def __init__(self, maps: torch.Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, *_: Any, **__: Any) -> torch.Tensor:
        return self.maps


class _Reached(Exception):
    """The last block that is wanted has run."""

    def __init__(self, output: torch.Tensor) -> None:
        self.output = output


def _stop(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
    raise _Reached(output)


def _headless(name: str) -> nn.Module:
    if name in LITE:
        from efficientnet_lite_pytorch import EfficientNet

        body: nn.Module = EfficientNet.from_name(name.replace("_", "-"))
        body._fc = nn.Identity()
        return body
    import torchvision  # takes seconds to import, and the default backbone does without

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(
            f"model.backbone: there is no torchvision classification network '{name}'; "
            f"take {LITE[0]}, resnet50 or another of torchvision.models.list_models()"
        )
    # Only these two know auxiliary classifiers, which nothing here learns from.
    options: dict[str, Any] = (
        {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    )
    body = torchvision.models.get_model(name, weights=None, **options)
    linear = [path for path, module in body.named_modules() if isinstance(module, nn.Linear)]
    if name.startswith("squeezenet"):
        body.classifier = nn.AdaptiveAvgPool2d(1)
    else:
        parent, _, child = linear[-1].rpartition(".")
        setattr(body.get_submodule(parent), child, nn.Identity())
    return body


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules a network is a plain sequence of, with their names."""
    for name, child in module.named_children():
        if type(child) in (nn.Sequential, nn.ModuleList):
            yield from _blocks(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _scales(body: nn.Module, probe: torch.Tensor) -> list[tuple[str, int | None]]:
    """The blocks in the order they are run in, with the side of the square map each gives (None: another shape)."""
    seen: dict[str, int | None] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            is_map = isinstance(output, torch.Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3]
            seen.pop(name, None)  # a module that runs again counts where it runs last
            seen[name] = output.shape[2] if is_map else None

        return hook

    hooks = [block.register_forward_hook(watch(name)) for name, block in _blocks(body)]
    with torch.no_grad():
        body(probe)
    for hook in hooks:
        hook.remove()
    return list(seen.items())


def _last_of_each_scale(blocks: list[tuple[str, int | None]]) -> list[str]:
    """Names of the last block at each resolution, finest first."""
    last = {side: name for name, side in blocks if side is not None and side > 1}
    return [last[side] for side in sorted(last, reverse=True)]


def _stages(blocks: list[tuple[str, int | None]]) -> dict[str, int]:
    """The stage of each block: a new one begins where the resolution falls; what follows the last map is its own's."""
    stages: dict[str, int] = {}
    stage, finest = 0, None
    for name, side in blocks:
        if side is not None and side > 1:
            if finest is not None and side < finest:
                stage += 1
            finest = side
        stages[name] = stage
    return stages
