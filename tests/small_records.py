"""A small record model for CALIBRATION's counts, and records to send beside photographs."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from bintally import paths
from bintally.bins.products import listed_products, product_arrays
from bintally.demo.warehouse import DemoWarehouse
from bintally.params import ErrorShares
from bintally.scoring.compositions import fit_compositions
from bintally.scoring.record_errors import Totals
from bintally.scoring.record_model import RecordModel, save_record_model
from small import CALIBRATION


@cache
def record_model() -> RecordModel:
    """A record model that is learned from demo records and weighs the photograph with 0.9."""
    warehouse = DemoWarehouse(seed=3)
    numbers = [number for number in range(1, 200) if warehouse.defect(number) is None]
    quantities, sizes = product_arrays([listed_products(warehouse.record(number)) for number in numbers])
    totals = Totals(CALIBRATION.counts, CALIBRATION.open_ended)
    allowed = totals.allow(quantities.sum(1))
    return RecordModel(
        compositions=fit_compositions(quantities[allowed], sizes[allowed], totals),
        photograph_weight=0.9,
        offsets=[0.1, -0.1, 0.0],
        error_shares=ErrorShares(quantity=0.5, unlisted=0.45, missing=0.05),
        answers=CALIBRATION.model_copy(update={"conformal_threshold": 0.8, "confidence_threshold": 0.5}),
    )


def record(**quantities: int) -> dict[str, Any]:
    """A record in ABID's format that lists products of these keys and quantities."""
    inches = {side: {"unit": "IN", "value": 3.5} for side in ("length", "width", "height")}
    items = {
        key: {"asin": key, "name": f"Product {key}", "quantity": quantity, **inches}
        for key, quantity in quantities.items()
    }
    return {"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": sum(quantities.values())}


def record_text(**quantities: int) -> str:
    return json.dumps(record(**quantities))


def copy_model_with_records(exported_model: Path, to: Path) -> Path:
    """Copy the small model, with its ONNX, to a folder and save the record model beside it."""
    shutil.copytree(exported_model, to, dirs_exist_ok=True)
    save_record_model(to / paths.MODELS, record_model())
    return to
