"""Judgements in words: what is likely wrong with a record, and what speaks for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bintally.scoring.judgement import Judgements
from bintally.scoring.metrics import Counts, Floats

Kind = Literal["right", "quantity", "unlisted", "missing"]
LEAST = 0.005  # probability of a hypothesis that is told
MOST = 5  # hypotheses that are told
SURE = 0.8  # share of a hypothesis from which on its likeliest quantity is told alone
MAX_NAME = 60  # characters of a product's name in a phrase
EDGE = 1e-9  # a probability is at least so far from 0 and 1 when odds are taken


@dataclass(frozen=True)
class Hypothesis:
    """One way in which a bin and its record may agree or differ."""

    kind: Kind
    probability: float
    product: int | None = None
    """Its place in the record's list, of a listed product."""
    quantity: int | None = None
    """How many items of the product there most probably are then."""
    sure: bool = True
    """Whether no other quantity comes near."""


def hypotheses(judged: Judgements, row: int, quantities: Sequence[int]) -> list[Hypothesis]:
    """The most probable hypotheses of a bin, at most MOST, each with at least LEAST; the record's being right is one.

    All quantities of a product above that in the record are one hypothesis, and all below: how many there are the
    photograph says less well than that there are more. So are all numbers of what is not listed.

    Args:
        quantities: of the products that the record lists, in order.
    """
    found = [Hypothesis("right", 1 - float(judged.error[row]))]
    for place, listed in enumerate(quantities):
        of_product = judged.quantities[row, place]
        found.append(Hypothesis("missing", float(of_product[0]), place, 0))
        for first, some in ((1, of_product[1:listed]), (listed + 1, of_product[listed + 1 :])):
            if some.any():
                likeliest = first + int(some.argmax())
                sure = bool(some.max() > SURE * some.sum())
                found.append(Hypothesis("quantity", float(some.sum()), place, likeliest, sure))
    unlisted = judged.unlisted[row]
    found.append(Hypothesis("unlisted", float(unlisted.sum()), None, int(unlisted.argmax()) + 1))
    found.sort(key=lambda one: -one.probability)
    return found[:1] + [one for one in found[1:MOST] if one.probability >= LEAST]


def in_words(one: Hypothesis, names: Sequence[str], quantities: Sequence[int]) -> str:
    """A hypothesis as a phrase, such as ``2, not 3, of Desk Lamp``, or ``more than 1 of Desk Lamp`` if 2 may be 3."""
    match one.kind:
        case "quantity":
            assert one.product is not None and one.quantity is not None
            name, listed = _short(names[one.product]), quantities[one.product]
            if one.sure:
                return f"{one.quantity}, not {listed}, of {name}"
            return f"{'more' if one.quantity > listed else 'fewer'} than {listed} of {name}"
        case "missing":
            assert one.product is not None
            return f"none of {_short(names[one.product])}"
        case "unlisted":
            return "something that is not in the record"
        case "right":
            return "as in the record"


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1].rstrip() + "…"


def verdict(found: Sequence[Hypothesis], names: Sequence[str], quantities: Sequence[int]) -> str:
    """What is likely in a bin, as a sentence without a full stop.

    What is probable has more than half of the probability. Where that is the record, the likeliest error follows; where
    it is no single hypothesis, the record is probably wrong.
    """
    right = sum(one.probability for one in found if one.kind == "right")
    errors = [one for one in found if one.kind != "right"]
    likeliest = in_words(errors[0], names, quantities) if errors else ""
    if right > 0.5:
        return "probably as in the record" + (f"; otherwise {likeliest}" if errors else "")
    if not errors:
        return "probably wrong"
    return f"probably {likeliest}" if errors[0].probability > 0.5 else f"probably wrong, perhaps {likeliest}"


@dataclass(frozen=True)
class Evidence:
    """How many times as likely an error has become, as odds: above 1 speaks for an error, below 1 for the record."""

    list: Floats
    """(n,) by what is listed, beside the share of wrong records assumed before."""
    photograph: Floats
    """(n,) by the photograph, beside what is listed."""


def evidence(judged: Judgements, error_rate: float) -> Evidence:
    """What speaks for an error in each record."""
    before, by_list, after = (_odds(np.asarray(value)) for value in (error_rate, judged.error_by_list, judged.error))
    return Evidence(by_list / before, after / by_list)


def evidence_in_words(factor: float, what: str) -> str:
    """A factor of the odds as a phrase, such as ``the photograph makes an error 4 times as likely``."""
    if 0.8 <= factor <= 1.25:
        return f"{what} hardly changes that"
    if factor > 1:
        return f"{what} makes an error {_rounded(factor)} times as likely"
    return f"{what} makes an error {_rounded(1 / factor)} times less likely"


def _rounded(factor: float) -> str:
    return f"{factor:.1f}" if factor < 10 else f"{min(factor, 1000):,.0f}" + (" or more" if factor > 1000 else "")


def _odds(probability: Floats) -> Floats:
    clipped = probability.clip(EDGE, 1 - EDGE)
    return np.asarray(clipped / (1 - clipped))


def likely_counts(judged: Judgements, counts: Sequence[int]) -> Counts:
    """(n,) the most probable number of items in each bin, all hypotheses together."""
    return np.asarray(np.asarray(counts)[judged.counts.argmax(1)])
