"""The renderer: equal photographs have equal pixels, their size is right, items and blur are visible."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bintally.demo.render import Item, Kind, Photo, Product, render, to_jpeg


def photo_of(*kinds: Kind) -> Photo:
    """A bin with one item of each kind, side by side."""
    items = tuple(
        Item(Product(kind, f"Maker Thing {k}", 0.3, 0.5, 0.3, k), 0.25 + 0.35 * k, 0.0, 0.2, 3.0, False)
        for k, kind in enumerate(kinds)
    )
    return Photo(460, 330, bin=3, shot=4, items=items)


def pixels(photo: Photo) -> np.ndarray:
    return np.asarray(render(photo), np.float32)


@pytest.mark.parametrize(("width", "height"), [(650, 400), (300, 480), (301, 333)])
def test_a_photo_is_an_rgb_image_of_its_size_and_survives_jpeg(width: int, height: int) -> None:
    image = render(replace(photo_of("box"), width=width, height=height))
    assert (image.mode, image.size) == ("RGB", (width, height))
    decoded = Image.open(io.BytesIO(to_jpeg(image)))
    decoded.load()
    assert (decoded.format, decoded.mode, decoded.size) == ("JPEG", "RGB", (width, height))
    assert np.abs(np.asarray(decoded, np.float32) - np.asarray(image)).mean() < 6


def test_equal_photos_have_equal_bytes_and_every_field_changes_them() -> None:
    photo = photo_of("box", "book", "bottle", "bag")
    first = to_jpeg(render(photo))
    assert to_jpeg(render(photo)) == first
    others = (replace(photo, bin=5), replace(photo, shot=5), replace(photo, items=photo.items[:3]))
    assert first not in [to_jpeg(render(other)) for other in others]


@pytest.mark.parametrize("kind", ["box", "book", "bottle", "bag"])
def test_an_item_changes_the_pixels_where_it_lies_and_no_others(kind: Kind) -> None:
    photo = photo_of(kind)
    changed = np.abs(pixels(photo) - pixels(replace(photo, items=()))).max(axis=2) > 12
    left, top, right, bottom = photo.opening
    middle = int(left + 0.25 * (bottom - top))
    assert changed[top:bottom, middle - 40 : middle + 40].mean() > 0.25
    assert changed[:, (left + right) // 2 + 20 :].mean() < 0.01


def test_blur_removes_detail() -> None:
    photo = photo_of("box", "book", "bottle")
    sharp, soft = (
        np.asarray(render(replace(photo, blur=blur)).convert("L").reduce(4), np.float32) for blur in (0.0, 6.0)
    )
    assert np.abs(np.diff(soft)).mean() < 0.7 * np.abs(np.diff(sharp)).mean()
