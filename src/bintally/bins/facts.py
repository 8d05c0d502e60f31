"""What records say of bins beside the number of items: more to learn from, where photographs are few.

Records are there for training alone; what is learned needs only photographs (Vapnik and Vashist 2009, "Learning using
privileged information").
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBERS = 8
WORDS = 120
SIDES = ("height", "length", "width")
WORD = re.compile(r"[a-z]{3,}")


def facts(records: Sequence[bytes], learned: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Standardised facts of bins: float32 (bins, NUMBERS + WORDS), NaN where a record does not say.

    They are logarithms (of the number of products and of items, of the most items of one product, of the volume of
    all, of the largest and of the smallest item, of the longest side and of the weight of all) and whether the names
    of the items hold each of the commonest words, of which there may be fewer than WORDS.

    Args:
        records: good ones, as :func:`bintally.bins.record.parse_record` takes them.
        learned: of each bin, whether it is learned from: those give the words, means and deviations.
    """
    items = [list(json.loads(record)["BIN_FCSKU_DATA"].values()) for record in records]
    words = [set(WORD.findall(" ".join(str(item.get("name") or "") for item in of_bin).lower())) for of_bin in items]
    usual = Counter(word for of_bin, is_learned in zip(words, learned, strict=True) if is_learned for word in of_bin)
    commonest = sorted(usual, key=lambda word: (-usual[word], word))[:WORDS]
    values = np.full((len(records), NUMBERS + WORDS), np.nan)
    for row, of_bin in zip(values, items, strict=True):
        row[:NUMBERS] = _numbers([item for item in of_bin if item["quantity"]])
    values[:, NUMBERS : NUMBERS + len(commonest)] = [[word in of_bin for word in commonest] for of_bin in words]
    known = np.isfinite(values) & learned[:, None]
    number = known.sum(0).clip(1)
    mean = np.where(known, values, 0).sum(0) / number
    deviation = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(0) / number)
    return np.asarray((values - mean) / np.where(deviation > 0, deviation, 1), np.float32)


def _numbers(items: Sequence[dict[str, Any]]) -> list[float]:
    quantities = np.array([item["quantity"] for item in items], float)
    sides = np.array([[measure(item, side) for side in SIDES] for item in items]).reshape(-1, len(SIDES))
    weights = np.array([measure(item, "weight") for item in items])
    volumes = sides.prod(1)
    most = quantities.max(initial=0)
    counted = [float(np.log1p(number)) for number in (len(items), quantities.sum(), most)]
    if not len(items):
        return counted + [np.nan] * (NUMBERS - len(counted))
    measured = ((volumes * quantities).sum(), volumes.max(), volumes.min(), sides.max(), (weights * quantities).sum())
    return counted + [float(np.log(value)) for value in measured]


def measure(item: Mapping[str, Any], name: str) -> float:
    """A measure of an item, in the record's unit, as a positive number; NaN where the record has none."""
    written = item.get(name)
    value = written.get("value") if isinstance(written, dict) else None
    return float(value) if isinstance(value, int | float) and 0 < value < 1e9 else np.nan
