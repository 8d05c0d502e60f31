"""The page of an audit: one HTML file with photographs, so it may only go where the data may go."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from bintally.apps.audit_ranking import Audit
from bintally.apps.photographs import ReadFiles
from bintally.apps.scores import PREDICTION_COLUMNS
from bintally.files import write_text
from bintally.page import curves
from bintally.progress import progress
from bintally.scoring.audit import expected_recall_curve

THUMBNAIL = 240  # width in pixels
SHOWN = 300  # bins


def write_page(
    path: Path, audit: Audit, read_images: ReadFiles, notes: Sequence[str], budget: int | None, show: int | None
) -> None:
    """Write the page.

    Args:
        notes: lines above the bins.
        budget: number of bins marked to be recounted.
        show: number of bins on the page; None: SHOWN, or the budget if it is larger.
    """
    recounts = min(budget or 0, audit.ranked)
    shown = min(audit.ranked, show or max(SHOWN, recounts))
    bins = [_bin(audit, row, row < recounts) for row in range(shown)]
    content = {
        # The browser keeps marks under this key: another audit must not take them over.
        "key": hashlib.sha256(json.dumps([audit.ids, audit.error_probabilities.tolist()]).encode()).hexdigest()[:16],
        "notes": notes,
        "rest": audit.ranked - shown,
        "counts": audit.counts,
        "curve": _recall_svg(audit, recounts),
        "bins": bins,
        "photographs": _thumbnails(read_images, audit.ids[:shown]),
    }
    text = json.dumps(content, ensure_ascii=True, allow_nan=False)
    for character in "<>&":  # so that no text of a record can end the script element
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = (files("bintally.apps") / "audit.html").read_text(encoding="utf-8")
    write_text(path, template.replace("{{content}}", text))


def _bin(audit: Audit, row: int, recount: bool) -> dict[str, Any]:
    contents = audit.contents[row]
    return {
        "id": audit.ids[row],
        "rank": row + 1,
        "record": contents.record.count,
        "error_probability": float(audit.error_probabilities[row]),
        "recount": recount,
        **dict(zip(PREDICTION_COLUMNS, audit.predictions[row], strict=True)),
        "p": audit.probabilities[row].tolist(),
        "items": contents.items,
    }


def _recall_svg(audit: Audit, recounts: int) -> str:
    """The fraction of the wrong records that each number of recounts is expected to find."""
    recall = 100 * expected_recall_curve(audit.error_probabilities)
    numbers = np.unique(np.linspace(0, audit.ranked, 101).round().astype(int))
    ranked = [(float(number), float(recall[number])) for number in numbers]
    random = [(0.0, 0.0), (float(audit.ranked), 100.0)]
    marked = (float(recounts), float(recall[recounts]), f"{recounts:,} recounts") if recounts else None
    return curves("Wrong records found, %", "bins recounted", {"as ranked": ranked, "at random": random}, marked)


def _thumbnails(read_images: ReadFiles, ids: Sequence[str]) -> dict[str, str]:
    """Small JPEG files as data URIs, by id."""
    uris = {}
    with progress("thumbnails", len(ids), "photographs", brief=True) as advance:
        for bin_id, read in read_images(ids):
            file = io.BytesIO()
            with Image.open(io.BytesIO(read())) as image:
                image.draft("RGB", (THUMBNAIL, THUMBNAIL))
                small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((THUMBNAIL, 2 * THUMBNAIL))
            small.save(file, "JPEG", quality=80)
            uris[bin_id] = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
            advance(1)
    return uris
