"""What records say of bins beside their number of items."""

import json
from typing import Any

import numpy as np

from bintally.bins.facts import NUMBERS, WORDS, facts


def record(*items: dict[str, Any]) -> bytes:
    named = {str(number): {"name": None} | item for number, item in enumerate(items)}
    return json.dumps({"BIN_FCSKU_DATA": named, "EXPECTED_QUANTITY": sum(i["quantity"] for i in items)}).encode()


def item(quantity: int, name: str = "", size: tuple[float, float, float] | None = (1, 1, 1)) -> dict[str, Any]:
    sides = zip(("height", "length", "width"), size or (), strict=bool(size))
    measures = {side: {"unit": "IN", "value": value} for side, value in sides}
    return {"quantity": quantity, "name": name, "weight": {"unit": "pounds", "value": 2.0}, **measures}


def test_facts_are_standardised_over_the_bins_learned_from() -> None:
    records = [record(item(1)), record(item(3), item(1)), record(item(100))]
    found = facts(records, np.array([True, True, False]))
    assert found.dtype == np.float32 and found.shape == (3, NUMBERS + WORDS)
    # Of products, items, the most of one product: two values are one deviation from their mean.
    np.testing.assert_allclose(found[:2, :3], [[-1] * 3, [1] * 3], rtol=1e-5)
    assert found[2, 1] > 1  # a hundred items, more than any learned from
    # One weight more for each item.
    np.testing.assert_allclose(found[:2, 7], [-1, 1], rtol=1e-5)


def test_sizes_are_of_all_of_the_largest_and_of_the_smallest() -> None:
    records = [record(item(2, size=(1, 1, 8)), item(1, size=(1, 1, 2))), record(item(1)), record(item(4))]
    total, largest, smallest, longest = facts(records, np.ones(3, bool))[:, 3:7].T
    logs = np.log([18, 1, 4])
    np.testing.assert_allclose(total, (logs - logs.mean()) / logs.std(), rtol=1e-5)
    for column in (largest, smallest, longest):
        np.testing.assert_allclose(column, [2**0.5, -(2**-0.5), -(2**-0.5)], rtol=1e-5)


def test_what_a_record_does_not_say_is_no_number() -> None:
    without = item(2, size=None) | {"weight": None}
    odd = item(1) | {"height": {"unit": "IN", "value": "tall"}, "weight": {"unit": "pounds", "value": 0}}
    found = facts([record(without), record(), record(odd), record(item(1))], np.ones(4, bool))
    assert np.isfinite(found[:, :3]).all()
    assert np.isnan(found[:2, 3:NUMBERS]).all() and np.isnan(found[2, [3, 4, 5, 6, 7]]).all()
    assert np.isfinite(found[3, :NUMBERS]).all() and np.isnan(found[:, NUMBERS:]).all()


def test_the_commonest_words_of_the_bins_learned_from_are_told() -> None:
    names = ["Red Book", "red box", "RED, an ox", "zebra zebra"]
    found = facts([record(item(1, name)) for name in names], np.array([True, True, True, False]))
    words = found[:, NUMBERS:]
    # red, then book and box by name; "an" and "ox" are too short, the zebra is not learned from, there are no more.
    assert (words[:3, 0] == 0).all() and (words[:3, 1] > 0).tolist() == [True, False, False]
    assert (words[:3, 2] > 0).tolist() == [False, True, False] and np.isnan(words[:, 3:]).all()
