"""Print how an audit judged a bin, step by step: the tables of docs/judging.md.

python docs/judge_bin.py ID

Reads what `bintally audit` wrote, the bins in data/bins and the model in models/. The numbers are worked out here, one
possibility after the other; a test holds them against :func:`bintally.scoring.judgement.judge`.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bintally import paths
from bintally.bins.products import Product, listed_products, product_arrays
from bintally.bins.shards import ShardReader, read_index
from bintally.files import read_csv
from bintally.scoring.compositions import convolve, quantity_tables
from bintally.scoring.metrics import Floats
from bintally.scoring.record_errors import PossibleErrors, offsets, possible_errors
from bintally.scoring.record_model import RecordModel, require_record_model

AUDIT = Path("exports/audit/audit.csv")


@dataclass(frozen=True)
class Possibility:
    """What may lie in a bin, and what speaks for it."""

    words: str
    items: int
    frequency: float
    """Share of bins with such contents."""
    error: float
    """How often the record then reads as it does."""
    photograph: float
    """How well the photograph fits, beside the record's number of items."""

    @property
    def by_list(self) -> float:
        return self.frequency * self.error

    @property
    def weight(self) -> float:
        return self.by_list * self.photograph


def possibilities(
    model: RecordModel, products: Sequence[Product], probabilities: Floats, rate: float
) -> list[Possibility]:
    """Everything that may lie in a bin; the record's being right comes first.

    Args:
        products: what the record lists; their number of items is one of the model's counts.
        probabilities: (counts,) of the photograph alone.
        rate: fraction of records that are wrong.
    """
    totals, evidence = model.totals, model.evidence(probabilities[None])[0]
    recorded = evidence[totals.column(np.array(sum(one.quantity for one in products)))]
    found = []
    for words, contents, error in _contents(model, products, rate):
        items = np.array(sum(one.quantity for one in contents))
        if totals.allow(items) and error > 0:
            fit = float(np.exp(evidence[totals.column(items)] - recorded))
            found.append(Possibility(words, int(items), _frequency(model, contents), error, fit))
    return found


def _contents(
    model: RecordModel, products: Sequence[Product], rate: float
) -> Iterator[tuple[str, list[Product], float]]:
    """In words, as products, and how often the record then reads as it does."""
    last, steps = model.totals.last, offsets(model.totals.last)
    listed = list(products)
    yield "as in the record", listed, 1 - rate * bool(_errors(model, listed).is_any[0])
    for place, one in enumerate(listed):
        for quantity in range(1, last + 1):
            if one.quantity - quantity in steps:
                true = [*listed[:place], _with(one, quantity), *listed[place + 1 :]]
                possible = _errors(model, true)
                chance = possible.offsets[0, steps.index(one.quantity - quantity)]
                words = f"{quantity}, not {one.quantity}, of {one.name}"
                yield words, true, float(rate * possible.shares["quantity"][0] * chance)
    for place, one in enumerate(listed):
        true = [*listed[:place], *listed[place + 1 :]]
        yield f"none of {one.name}", true, rate * _added(model, true, one.quantity) / len(listed)
    for quantity in range(1, last + 1):
        true = [*listed, Product("", "", quantity, (np.nan,) * len(model.compositions.means))]
        possible = _errors(model, true)
        left_out = possible.shares["unlisted"][0] / max(possible.removable[0], 1)
        # A quantity that was recorded as 0 leaves a product out, too; and any of them may be the one.
        lost = possible.shares["quantity"][0] * possible.offsets[0, steps.index(-quantity)] if -quantity in steps else 0
        yield f"{quantity} of something that is not in the record", true, float(rate * len(true) * (left_out + lost))


def _with(one: Product, quantity: int) -> Product:
    return Product(one.key, one.name, quantity, one.sizes)


def _errors(model: RecordModel, contents: Sequence[Product]) -> PossibleErrors:
    quantities, _ = product_arrays([contents])
    return possible_errors(quantities, model.error_shares, model.totals)


def _added(model: RecordModel, contents: Sequence[Product], quantity: int) -> float:
    """How often a wrong record of these contents lists so many of a product that is not there."""
    items, frequencies = sum(one.quantity for one in contents), np.array(model.compositions.quantities)
    fits = model.totals.allow(items + np.arange(1, len(frequencies) + 1))
    among = float((fits * frequencies).sum())
    chance = frequencies[min(quantity, len(frequencies)) - 1] / among if among else 0.0
    return float(_errors(model, contents).shares["missing"][0] * chance)


def _frequency(model: RecordModel, contents: Sequence[Product]) -> float:
    """The share of bins with as many products, times that of these quantities among them."""
    quantities, sizes = product_arrays([contents])
    present, last = quantities > 0, model.totals.last
    number = present.sum(1)
    terms = model.compositions.terms(sizes, np.broadcast_to(number.clip(1)[:, None], quantities.shape))
    tables = quantity_tables(terms, present)
    allowed = convolve(tables, model.totals.open_ended).of_all[0, model.totals.counts].sum()
    these = np.prod([tables[0, place, min(one.quantity, last)] for place, one in enumerate(contents)])
    return float(np.exp(model.compositions.log_numbers(number, sizes))[0] * these / allowed)


def tables(model: RecordModel, products: Sequence[Product], probabilities: Floats, rate: float) -> str:
    """The steps as Markdown."""
    found = possibilities(model, products, probabilities, rate)
    right, wrong = found[0], found[1:]
    evidence = model.evidence(probabilities[None])[0]
    beside = np.exp(evidence - evidence[model.totals.column(np.array(right.items))])
    lines = ["| items | probability by the photograph | beside the record's number |", "|---|---|---|"]
    lines += [
        f"| {count} | {_number(probability)} | {_number(factor)} |"
        for count, probability, factor in zip(model.answers.counts, probabilities, beside, strict=True)
    ]
    whole = sum(one.weight for one in found)
    lines += ["", "| what may lie there | items | frequency | error | photograph | weight | share |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for one in found:
        parts = map(_number, (one.frequency, one.error, one.photograph, one.weight))
        lines.append(f"| {one.words} | {one.items} | {' | '.join(parts)} | {one.weight / whole:.1%} |")
    lines.append(f"| sum | | | | | {_number(whole)} | 100.0% |")
    before = rate / (1 - rate)
    by_list = sum(one.by_list for one in wrong) / right.by_list
    after = sum(one.weight for one in wrong) / right.weight
    lines += ["", "| | odds of an error | times |", "|---|---|---|"]
    lines += [
        f"| before | {_number(before)} | |",
        f"| by the list | {_number(by_list)} | {_number(by_list / before)} |",
    ]
    lines.append(f"| and by the photograph | {_number(after)} | {_number(after / by_list)} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    digits = 2 - int(np.floor(np.log10(value))) if value > 0 else 0
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Print how an audit judged a bin, step by step.")
    parser.add_argument("id", help="of a bin in exports/audit/audit.csv")
    parser.add_argument("--error-rate", type=float, help="as given to the audit (default: that of the model)")
    arguments = parser.parse_args()
    bin_id = arguments.id
    rows = [row for row in read_csv(AUDIT) if row["id"] == bin_id and row["rank"]]
    entries = [entry for entry in read_index(paths.BINS) if entry.id == bin_id]
    if not rows or not entries:
        parser.error(f"{AUDIT} and {paths.BINS} have no judged bin {bin_id}; `bintally audit` writes the first")
    model = require_record_model(paths.MODELS)
    products = listed_products(ShardReader(paths.BINS).record(entries[0]))
    probabilities = np.array([float(rows[0][f"p{count}"]) for count in model.answers.counts])
    print(tables(model, products, probabilities, arguments.error_rate or model.answers.record_error_rate))


if __name__ == "__main__":
    main()
