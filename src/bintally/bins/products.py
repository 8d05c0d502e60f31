"""The products that a record lists: how many of each, how large, and what they are called."""

import json
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bintally.errors import printable

SIZES = ("log volume", "log longest side", "log shortest side", "log weight")  # inches and pounds
MAX_NAME = 120  # characters of a product's name
SIDES = ("length", "width", "height")
UNITS = {  # of the inch and of the pound
    "in": 1.0, "inch": 1.0, "inches": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "m": 100 / 2.54, "ft": 12.0, "feet": 12.0,
    "pounds": 1.0, "pound": 1.0, "lb": 1.0, "oz": 1 / 16, "ounces": 1 / 16, "kg": 1 / 0.45359237, "g": 1 / 453.59237,
}  # fmt: skip


UNNAMED = "unnamed items"  # key of the one product of a bin whose products are not known


@dataclass(frozen=True)
class Product:
    """One product in a record."""

    key: str
    """Its key in the record: the ASIN."""
    name: str
    """One line of at most MAX_NAME characters; the key if the record has no name."""
    quantity: int
    """1 or more."""
    sizes: tuple[float, ...]
    """SIZES; not a number where the record does not say."""
    value: float = math.nan
    """Of one item, in any currency; not a number where the record does not say."""


def listed_products(record: bytes) -> list[Product]:
    """The products of a record that :func:`bintally.bins.record.parse_record` accepts.

    Those of quantity 0 are left out, but for UNNAMED.
    """
    items = json.loads(record)["BIN_FCSKU_DATA"].items()
    return [
        Product(key, one_line(item.get("name") or key), item["quantity"], _sizes(item), _value(item.get("value")))
        for key, item in items
        if item["quantity"] or key == UNNAMED
    ]


def are_named(products: Sequence[Product]) -> bool:
    """Whether it is known which products lie in a bin, and not only how many items."""
    return all(one.key != UNNAMED for one in products)


def recounted_products(listed: Sequence[Product], key: str, quantity: int) -> list[Product]:
    """The products of a bin after a recount of one of them; ``key`` may be of a product that is not listed."""
    changed = [replace(one, quantity=quantity) if one.key == key else one for one in listed]
    if key not in {one.key for one in listed}:
        changed.append(Product(key, "not in the record", quantity, (math.nan,) * len(SIZES)))
    return [one for one in changed if one.quantity]


def product_arrays(bins: Iterable[Sequence[Product]]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Quantities, (n, m), and sizes, (n, m, SIZES), of the products of n bins; 0 and NaN where one has fewer than m."""
    lengths, listed, measures = array("q"), array("q"), array("d")  # objects would take ten times the memory
    for products in bins:
        lengths.append(len(products))
        for product in products:
            listed.append(product.quantity)
            measures.extend(product.sizes)
    number = np.array(lengths, np.int64)
    lies = np.arange(number.max(initial=0)) < number[:, None]
    quantities, sizes = np.zeros(lies.shape, np.int64), np.full((*lies.shape, len(SIZES)), np.nan)
    quantities[lies], sizes[lies] = listed, np.reshape(measures, (-1, len(SIZES)))
    return quantities, sizes


def one_line(name: object) -> str:
    """A name in one line of at most MAX_NAME characters."""
    start = str(name)[: 2 * MAX_NAME]  # a name may have a megabyte
    return printable(" ".join(start.split()))[:MAX_NAME] or "no name"


def _sizes(item: dict[str, object]) -> tuple[float, ...]:
    sides, weight = [_measure(item.get(side)) for side in SIDES], _measure(item.get("weight"))
    if not all(map(math.isfinite, sides)):
        return math.nan, math.nan, math.nan, weight
    return sum(sides), max(sides), min(sides), weight


def _value(value: object) -> float:
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else math.nan  # type: ignore[operator,arg-type]


def _measure(value: object) -> float:
    """The logarithm of a measure of a record, such as {"unit": "IN", "value": 3.5}; NaN if it is none."""
    if not isinstance(value, dict):
        return math.nan
    number, unit = value.get("value"), UNITS.get(str(value.get("unit"))[:20].strip().lower().rstrip("."))
    known = unit is not None and type(number) in (int, float) and 1e-6 < number < 1e6  # type: ignore[operator]
    return math.log(number * unit) if known else math.nan  # type: ignore[operator]
