"""Measures of photographs and the reasons why one is bad."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from bintally.bins import quality
from bintally.bins.images import decode_image
from bintally.demo.warehouse import DemoWarehouse
from bintally.params import Reason

WAREHOUSE = DemoWarehouse(seed=3)


def photographs(defect: str | None, number: int) -> list[Image.Image]:
    numbers = (number for number in itertools.count(1) if WAREHOUSE.defect(number) == defect)
    bodies = [WAREHOUSE.image(number) for number in itertools.islice(numbers, number)]
    return [decode_image(body) for body in bodies if body is not None]


def test_blurred_photographs_are_the_least_sharp() -> None:
    blurred, sharp = ([quality.sharpness(one) for one in photographs(kind, 6)] for kind in ("blurred", None))
    assert len(blurred) == len(sharp) == 6
    assert max(blurred) < min(sharp)


def reasons(measured: list[quality.Measures]) -> list[list[Reason]]:
    table = quality.table(measured, len(measured))
    return quality.reasons(table, quality.near_duplicates(table))


def reasons_of(spoiled: Image.Image) -> list[Reason]:
    """The reasons why a photograph is bad among good ones, of which none is."""
    good = [quality.measure(one) for one in photographs(None, 9)]
    assert reasons(good) == [[]] * len(good)
    return reasons([*good, quality.measure(spoiled)])[-1]


@pytest.fixture
def photograph() -> Image.Image:
    return photographs(None, 10)[-1]


def test_each_kind_of_bad_photograph_is_told(photograph: Image.Image) -> None:
    assert reasons_of(photographs("blurred", 1)[0]) == ["blurred"]
    assert "dark" in reasons_of(ImageEnhance.Brightness(photograph).enhance(0.4))
    white = Image.fromarray(255 - np.asarray(photograph) // 64)
    assert {"glaring", "low_contrast"} <= set(reasons_of(white))
    assert "odd_size" in reasons_of(photograph.resize((photograph.width // 4, photograph.height)))


def test_a_photograph_compressed_again_and_scaled_is_a_near_duplicate_of_the_first(photograph: Image.Image) -> None:
    file = io.BytesIO()
    photograph.resize((photograph.width * 2, photograph.height * 2)).save(file, "JPEG", quality=60)
    others = [quality.measure(one) for one in photographs(None, 4)]
    measured = [*others, quality.measure(photograph), quality.measure(decode_image(file.getvalue()))]
    assert quality.near_duplicates(quality.table(measured, len(measured))) == [None] * 5 + [4]
    assert "near_duplicate" in reasons(measured)[5] and not reasons(measured)[4]


def test_one_pixel_more_than_all_others_is_not_odd(photograph: Image.Image) -> None:
    measured = [quality.measure(photograph.resize(size)) for size in [(400, 300)] * 9 + [(401, 300), (800, 300)]]
    assert ["odd_size" in one for one in reasons(measured)] == [False] * 10 + [True]
