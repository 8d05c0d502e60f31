"""An audit as a page to recount bins from: one HTML file with photographs, which may only go where the data may go."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from bintally.apps.audit_judging import Audit
from bintally.apps.photographs import ReadFiles
from bintally.apps.predictions import PREDICTION_COLUMNS
from bintally.bins.corrections import PRODUCT_PATTERN, UNLISTED
from bintally.bins.images import decode_image
from bintally.bins.products import Product, are_named
from bintally.errors import UserError, printable
from bintally.page import curves
from bintally.progress import progress
from bintally.scoring.audit import expected_recall_curve
from bintally.scoring.explain import Hypothesis, evidence_in_words
from bintally.scoring.metrics import Counts, Floats

SHOWN = 300  # bins
THUMBNAIL = 240  # width in pixels


def render_page(
    audit: Audit, read_images: ReadFiles, notes: Sequence[str], budget: int | None, show: int | None
) -> str:
    """The page, with ``notes`` above the first ``show`` bins (None: SHOWN, or the budget if it is larger)."""
    recounts = min(budget or 0, audit.ranked)
    shown = min(audit.ranked, show or max(SHOWN, recounts))
    ranking = json.dumps([audit.bins.ids, audit.judged.error.tolist()]).encode()
    content = {
        # The browser keeps marks under this key: another audit must not take them over.
        "key": hashlib.sha256(ranking).hexdigest()[:16],
        "notes": notes,
        "rest": audit.ranked - shown,
        "counts": audit.bins.calibration.counts,
        "curve": _recall_svg(audit, recounts),
        "unlisted": UNLISTED,
        "bins": [_bin(audit, row, row < recounts) for row in range(shown)],
        "photographs": thumbnails(read_images, audit.bins.ids[:shown]),
    }
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    for character in "<>&":  # so that no text of a record can end the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = (files("bintally.apps") / "audit.html").read_text(encoding="utf-8")
    return template.replace("{{content}}", text)


def _bin(audit: Audit, row: int, recount: bool) -> dict[str, Any]:
    found, verdict = audit.explain(row)
    products = audit.bins.records[row]
    error = next((one for one in found if one.kind != "right"), None)
    named = are_named(products)
    factors = {"the list": audit.evidence.list} if named else {}
    factors["the photograph"] = audit.evidence.photograph
    return {
        "id": audit.bins.ids[row],
        "rank": row + 1,
        "recount": recount,
        "record": int(audit.record_counts[row]),
        "location": audit.bins.locations[row],
        "file": audit.bins.photographs[row],
        "likely_count": int(audit.likely_counts[row]),
        "error_probability": float(audit.judged.error[row]),
        "verdict": verdict,
        "error": error.kind if error else "",
        "doubted": _doubted(error, products) if error else None,
        "is_doubted": bool(audit.judged.error[row] > 0.5),
        "evidence": [evidence_in_words(float(factor[row]), what) for what, factor in factors.items()],
        "photograph": _count(audit.photograph[row], audit.bins.probabilities[row]),
        "given_products": _count(audit.given_products[row], audit.given_products_probabilities[row]),
        "named": named,
        "products": [_product(one, place, found) for place, one in enumerate(products) if named],
        "unlisted": _percent(sum(one.probability for one in found if one.kind == "unlisted")),
    }


def _count(predictions: Counts, probabilities: Floats) -> dict[str, Any]:
    return {**dict(zip(PREDICTION_COLUMNS, predictions.tolist(), strict=True)), "p": probabilities.tolist()}


def _product(product: Product, place: int, found: Sequence[Hypothesis]) -> dict[str, Any]:
    """A line of the list: what is listed, and what there may be instead."""
    others = [f"{_instead(one, product)} ({_percent(one.probability)})" for one in found if one.product == place]
    return {
        "key": _key(product),
        "name": product.name,
        "quantity": product.quantity,
        "instead": " or ".join(others),
    }


def _instead(one: Hypothesis, product: Product) -> str:
    """How many of a product there may be."""
    if one.quantity and not one.sure:
        return "more" if one.quantity > product.quantity else "fewer"
    return str(one.quantity or "none")


def _doubted(error: Hypothesis, products: Sequence[Product]) -> str | None:
    """What a mark calls the item that an error is about."""
    return UNLISTED if error.product is None else _key(products[error.product])


def _key(product: Product) -> str | None:
    """What a mark calls a product; None: a CSV file would not keep its key."""
    return product.key if PRODUCT_PATTERN.fullmatch(product.key) and product.key != UNLISTED else None


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f}\u00a0%" if probability else ""


def _recall_svg(audit: Audit, recounts: int) -> str:
    """The fraction of the wrong records that each number of recounts is expected to find."""
    recall = 100 * expected_recall_curve(audit.at_stake)
    numbers = np.unique(np.linspace(0, audit.ranked, 101).round().astype(int))
    ranked = [(float(number), float(recall[number])) for number in numbers]
    random = [(0.0, 0.0), (float(audit.ranked), 100.0)]
    marked = (float(recounts), float(recall[recounts]), f"{recounts:,} recounts") if recounts else None
    title = "Wrong records found, %" if audit.stakes.values is None else "Wrong value found, %"
    return curves(title, "bins recounted", {"as ranked": ranked, "at random": random}, marked)


def thumbnails(read_images: ReadFiles, ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """By id a small JPEG file as a data URI, ``src``, or the reason why there is none, ``reason``."""
    found = {}
    with progress("thumbnails", len(ids), "photographs", brief=True) as advance:
        for bin_id, read in read_images(ids):
            try:
                small = decode_image(read(), THUMBNAIL)
            except (UserError, OSError) as error:
                found[bin_id] = {"reason": printable(str(error))}
            else:
                file = io.BytesIO()
                small.thumbnail((THUMBNAIL, 2 * THUMBNAIL))
                small.save(file, "JPEG", quality=80)
                found[bin_id] = {"src": "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()}
            advance(1)
    return found
