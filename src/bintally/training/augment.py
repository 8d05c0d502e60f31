"""Random changes of photographs that keep the count, for whole batches, on the device.

The change of a sample depends on the seed, the epoch and the sample's number alone, not on its batch, rank or device.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from bintally.params import Augment

DRAWS = 13
"""Random numbers for each sample and epoch. The last is not used; without it a seed would give other augmentations than
in version 0.1."""


def draw(samples: int, seed: int, epoch: int) -> NDArray[np.float32]:
    """Uniform random numbers for an epoch: float32 (samples, DRAWS) in [-1, 1)."""
    random = np.random.default_rng([seed, epoch, 1])
    return random.random((samples, DRAWS), dtype=np.float32) * 2 - 1


def random_affine(images: torch.Tensor, draws: torch.Tensor, params: Augment) -> torch.Tensor:
    """Shift, scale and rotate images: (n, c, side, side) to the same shape.

    Args:
        draws: float32 (n, DRAWS) from :func:`draw`.
    """
    if not (params.shift or params.scale or params.rotation):
        return images
    shift_x, shift_y, scale, angle = draws[:, :4].unbind(1)
    radians = torch.deg2rad(params.rotation * angle)
    zoom = 1 / (1 + params.scale * scale)
    cos, sin = radians.cos() * zoom, radians.sin() * zoom
    # grid_sample's coordinates run from -1 to 1: the side is 2.
    rows = [
        torch.stack([cos, -sin, 2 * params.shift * shift_x], 1),
        torch.stack([sin, cos, 2 * params.shift * shift_y], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


class Augmentation:
    """Random shift, scale, rotation, light, colour, blur and noise, within the limits of ``params``."""

    def __init__(self, params: Augment, size: int, seed: int, device: torch.device) -> None:
        self._params = params
        self._size = size
        self._noise: torch.Tensor | None = None
        if params.noise:
            # Each sample's noise is cut from one field: normal numbers for every pixel would take long to draw.
            field = np.random.default_rng([seed, 0, 2]).standard_normal((3, 2 * size, 2 * size), dtype=np.float32)
            # A view of all its (3, size + 1, size + 1) cuts of size × size.
            self._noise = torch.from_numpy(field).to(device).unfold(1, size, 1).unfold(2, size, 1)

    def __call__(self, images: torch.Tensor, draws: torch.Tensor, side: int) -> torch.Tensor:
        """Change a batch of images.

        Args:
            images: (n, 3, size, size) of 0–255, any dtype.
            draws: float32 (n, DRAWS) from :func:`draw`.
            side: side of the result, in pixels, at most ``size``.

        Returns:
            float32 (n, 3, side, side) of 0–255.
        """
        params = self._params
        images = images.float()
        if side < images.shape[-1]:
            images = functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        images = random_affine(images, draws, params)
        gain, contrast, red, green, blue, blur, noise, cut = draws[:, 4:12].unbind(1)
        if params.blur:
            share = (params.blur * (blur + 1) / 6)[:, None, None, None]
            for axis in (2, 3):
                before, middle, after = (images.narrow(axis, start, side - 2) for start in range(3))
                change = (before + after).sub_(middle, alpha=2)
                images = images.clone()
                images.narrow(axis, 1, side - 2).addcmul_(share, change)
        if params.light or params.colour:
            mean = images.mean((1, 2, 3), keepdim=True)
            factor = (1 + params.light * contrast)[:, None, None, None]
            colours = torch.stack([red, green, blue], 1)
            gains = ((1 + params.light * gain)[:, None] * (1 + params.colour * colours))[:, :, None, None]
            images = torch.addcmul(mean * (1 - factor) * gains, images, factor * gains)
        if self._noise is not None:
            deviation = (params.noise * (noise + 1) / 2)[:, None, None, None]
            images = torch.addcmul(images, self._noise_cut(cut)[..., :side, :side], deviation)
        return images.clamp(0, 255)

    def _noise_cut(self, cut: torch.Tensor) -> torch.Tensor:
        """A cut of the noise for each sample: (n, 3, size, size)."""
        assert self._noise is not None
        # 24 bits of a uniform number make two offsets.
        bits = ((cut + 1) / 2 * 2**24).long()
        return self._noise[:, bits // 4096 % self._size, bits % 4096 % self._size].transpose(0, 1)
