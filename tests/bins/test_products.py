"""The products that a record lists: names, quantities, sizes in any unit, and what a recount makes of them."""

import json
import math
from typing import Any

import numpy as np
import pytest

from bintally.bins.products import SIZES, Product, listed_products, product_arrays, recounted_products
from bintally.demo.warehouse import DemoWarehouse

UNKNOWN = (math.nan,) * len(SIZES)


def item(quantity: int = 1, **changes: Any) -> dict[str, Any]:
    sides = {side: {"unit": "IN", "value": value} for side, value in (("length", 8), ("width", 4.0), ("height", 2))}
    return {"name": "Desk Lamp", "quantity": quantity, "weight": {"unit": "pounds", "value": 2}, **sides, **changes}


def products(**items: dict[str, Any]) -> list[Product]:
    total = sum(one["quantity"] for one in items.values())
    return listed_products(json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": total}).encode())


def test_products_have_key_name_quantity_and_the_logarithms_of_their_sizes() -> None:
    (lamp,) = products(B0LAMP=item(3), B0GONE=item(0))
    assert (lamp.key, lamp.name, lamp.quantity) == ("B0LAMP", "Desk Lamp", 3)
    np.testing.assert_allclose(np.exp(lamp.sizes), [64, 8, 2, 2])


@pytest.mark.parametrize(
    ("measure", "inches"),
    [
        ({"unit": "centimeters.", "value": 1}, None),
        ({"unit": "cm", "value": 20.32}, 8),
        ({"unit": " Inches ", "value": 8}, 8),
        ({"unit": "IN", "value": 0}, None),
        ({"unit": "IN", "value": -3}, None),
        ({"unit": "IN", "value": "8"}, None),
        ({"unit": "IN", "value": True}, None),
        ({"unit": "IN", "value": 10**400}, None),
        ({"unit": "light-years", "value": 8}, None),
        ({"unit": ["IN"], "value": 8}, None),
        ({"value": 8}, None),
        (None, None),
        (8, None),
    ],
)
def test_a_side_that_is_not_known_makes_all_sides_unknown_but_not_the_weight(
    measure: Any, inches: float | None
) -> None:
    (lamp,) = products(B0LAMP=item(length=measure))
    assert lamp.sizes[3] == pytest.approx(math.log(2))
    if inches is None:
        assert all(map(math.isnan, lamp.sizes[:3]))
    else:
        assert lamp.sizes[1] == pytest.approx(math.log(inches))


def test_a_name_is_one_line_of_bounded_length() -> None:
    names = [products(B0=item(name=name))[0].name for name in (None, " ", " two\n lines\x00", "x" * 10_000_000)]
    assert names == ["B0", "no name", "two lines\\x00", "x" * 120]


def test_arrays_are_as_wide_as_the_longest_list() -> None:
    lamps, empty = products(B0=item(2), B1=item(1, weight=None)), list[Product]()
    quantities, sizes = product_arrays([lamps, empty, lamps[:1]])
    assert quantities.tolist() == [[2, 1], [0, 0], [2, 0]]
    assert sizes.shape == (3, 2, len(SIZES)) and np.isnan(sizes[1]).all() and np.isnan(sizes[0, 1, 3])
    assert [array.shape for array in product_arrays([])] == [(0, 0), (0, 0, len(SIZES))]


def test_a_recount_changes_adds_or_removes_one_product() -> None:
    listed = products(B0=item(2), B1=item(1))
    assert [one.quantity for one in recounted_products(listed, "B0", 3)] == [3, 1]
    assert [one.key for one in recounted_products(listed, "B1", 0)] == ["B0"]
    added = recounted_products(listed, "unlisted", 2)[-1]
    assert added.quantity == 2 and all(map(math.isnan, added.sizes))
    assert [one.quantity for one in listed] == [2, 1]


def test_the_demo_has_sizes_of_nearly_all_products() -> None:
    warehouse = DemoWarehouse(seed=1)
    numbers = [number for number in range(1, 100) if warehouse.defect(number) is None]
    _, sizes = product_arrays([listed_products(warehouse.record(number)) for number in numbers])
    quantities, _ = product_arrays([listed_products(warehouse.record(number)) for number in numbers])
    assert np.isfinite(sizes[quantities > 0]).mean() > 0.9
