"""The views of an image that the network sees: the image itself and its mirror image."""

import torch


def horizontal_flip(images: torch.Tensor) -> torch.Tensor:
    """Flip images left to right: (..., height, width) to the same shape."""
    return images.flip(-1)


def stack_views(images: torch.Tensor, mirror: bool) -> torch.Tensor:
    """Stack each image and, with ``mirror``, its mirror image: (n, 3, h, w) to (n, views, 3, h, w)."""
    return torch.stack([images, horizontal_flip(images)] if mirror else [images], dim=1)
