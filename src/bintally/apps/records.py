"""Records beside photographs: what they list, and judgements of them in words."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bintally.apps.photographs import ReadFile
from bintally.bins.products import Product, listed_products, one_line
from bintally.bins.record import BadBin, parse_record
from bintally.scoring.explain import Hypothesis, hypotheses, verdict
from bintally.scoring.judgement import Judgements


def read_products(read: ReadFile) -> list[Product]:
    """The products that a record lists. Raises BadBin, with a reason that begins with "record", if it is unusable."""
    return read_record(read).products


@dataclass(frozen=True)
class ReadRecord:
    """What a record says."""

    products: list[Product]
    location: str
    """Where the bin is; "" if it does not say."""
    photograph: str
    """The path of its photograph; "" if it does not say."""
    bin: str | None
    """Which bin it is; None if it does not say."""


def read_record(read: ReadFile) -> ReadRecord:
    """What a record says. Raises BadBin as above."""
    try:
        body = read()
    except OSError as error:
        raise BadBin(f"record: {error.strerror or error}") from error
    try:
        record = parse_record(body)
    except BadBin as error:
        raise BadBin(f"record: {str(error).removeprefix('record ')}") from error
    location = json.loads(body).get("location")
    return ReadRecord(
        products=listed_products(body),
        location=one_line(location) if isinstance(location, str) else "",
        photograph=one_line(record.photograph) if record.photograph else "",
        bin=record.bin,
    )


def explain_record(judged: Judgements, row: int, products: Sequence[Product]) -> tuple[list[Hypothesis], str]:
    """What may be wrong with a record, the most probable first, and the verdict."""
    quantities = [one.quantity for one in products]
    found = hypotheses(judged, row, quantities)
    return found, verdict(found, [one.name for one in products], quantities)
