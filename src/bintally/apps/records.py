"""Records beside photographs: what they list, and judgements of them in words."""

import json
from collections.abc import Sequence

from bintally.apps.photographs import ReadFile
from bintally.bins.products import Product, listed_products, one_line
from bintally.bins.record import BadBin, parse_record
from bintally.scoring.explain import Hypothesis, hypotheses, verdict
from bintally.scoring.judgement import Judgements


def read_products(read: ReadFile) -> list[Product]:
    """The products that a record lists. Raises BadBin, with a reason that begins with "record", if it is unusable."""
    return read_record(read)[0]


def read_record(read: ReadFile) -> tuple[list[Product], str]:
    """The products that a record lists, and where the bin is, "" if it does not say. Raises BadBin as above."""
    try:
        body = read()
    except OSError as error:
        raise BadBin(f"record: {error.strerror or error}") from error
    try:
        parse_record(body)
    except BadBin as error:
        raise BadBin(f"record: {str(error).removeprefix('record ')}") from error
    location = json.loads(body).get("location")
    return listed_products(body), one_line(location) if isinstance(location, str) else ""


def explain_record(judged: Judgements, row: int, products: Sequence[Product]) -> tuple[list[Hypothesis], str]:
    """What may be wrong with a record, the most probable first, and the verdict."""
    quantities = [one.quantity for one in products]
    found = hypotheses(judged, row, quantities)
    return found, verdict(found, [one.name for one in products], quantities)
