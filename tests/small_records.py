"""A small record model for CALIBRATION's counts, what it works on, and records to send beside photographs."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bintally import paths
from bintally.bins.products import listed_products, product_arrays
from bintally.demo.warehouse import DemoWarehouse
from bintally.inference.predictor import Predictions
from bintally.inference.runtime import calibrated_network
from bintally.model.card import save_model
from bintally.model.images import decode
from bintally.model.network import CountingNetwork
from bintally.params import ErrorShares
from bintally.scoring.calibration import save_calibration
from bintally.scoring.compositions import fit_compositions
from bintally.scoring.record_errors import Totals
from bintally.scoring.record_model import ReadWithList, RecordModel, save_record_model
from small import CALIBRATION, CARD, counting_network

OLDER = {"list_features": None, "distances": None}


@cache
def record_model() -> RecordModel:
    """A record model that is learned from demo records, whose weights leave no count of the demo bins certain."""
    warehouse = DemoWarehouse(seed=3)
    numbers = [number for number in range(1, 200) if warehouse.defect(number) is None]
    quantities, sizes = product_arrays([listed_products(warehouse.record(number)) for number in numbers])
    totals = Totals(CALIBRATION.counts, CALIBRATION.open_ended)
    allowed = totals.allow(quantities.sum(1))
    assert CARD.list_features
    return RecordModel(
        compositions=fit_compositions(quantities[allowed], sizes[allowed], totals),
        photograph_weight=0.9,
        offsets=[0.1, -0.1, 0.0],
        with_list=ReadWithList(
            features=CARD.list_features, evidence_weight=0.1, photograph_weight=0.2, offsets=[2.5, -0.5, 1.0]
        ),
        error_shares=ErrorShares(quantity=0.5, unlisted=0.45, missing=0.05),
        answers=CALIBRATION.model_copy(update={"conformal_threshold": 0.8, "confidence_threshold": 0.5}),
    )


def saw(images: Sequence[bytes], network: CountingNetwork | None = None) -> Predictions:
    """What a network, by default the small one, says of photographs, computed by PyTorch in one batch."""
    network = network or counting_network()
    card = CARD if network.distance else CARD.model_copy(update=OLDER)
    model = calibrated_network(network, card, CALIBRATION)
    with torch.inference_mode():
        return Predictions.of(model(torch.stack([decode(image, CARD.image_size) for image in images])), card)


def older_network() -> CountingNetwork:
    """The small network without the head that reads photographs with lists, and without distances."""
    return CountingNetwork(counting_network().backbone, counting_network().head).eval()


def older_record_model() -> RecordModel:
    """The record model of such a network."""
    return record_model().model_copy(update={"with_list": None})


def save_older_model(folder: Path) -> None:
    save_model(folder, older_network(), CARD.model_copy(update=OLDER))
    save_calibration(folder, CALIBRATION)
    save_record_model(folder, older_record_model())


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
