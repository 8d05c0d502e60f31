"""An exported file gives the model's outputs, holds its card, and has the same bytes each time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bintally.errors import UserError
from bintally.inference import export as exporting
from bintally.inference.export import FILES, TOLERANCE, export
from bintally.inference.runtime import OUTPUTS, Outputs, Runner
from bintally.model.backbone import Backbone
from bintally.model.card import ModelCard
from bintally.model.network import CalibratedNetwork, CountingNetwork, EvidenceHead, FeatureDistance, Head
from bintally.scoring.calibration import Calibration
from bintally.scoring.evidence import FEATURES
from bintally.scoring.record_model import RecordModel
from small import CALIBRATION
from small import CARD as SMALL
from small_records import record_model

# Quick to export; tests/apps exports the default backbone.
CARD = SMALL.model_copy(update={"backbone": "squeezenet1_1", "features": "last"})


def images(number: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (number, 3, 4, 4), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear").to(torch.uint8)


def calibrated(network: CountingNetwork, mirror: bool) -> CalibratedNetwork:
    """The network with CALIBRATION, whose counts 2, 3 and 5 are the second, the third and the last class."""
    return CalibratedNetwork(network, mirror, [1, 2, 4], CALIBRATION.temperature)


def session(path: Path) -> Any:
    import onnxruntime  # not before bintally.inference, which keeps it from sending reports

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def network() -> CountingNetwork:
    torch.manual_seed(1)
    backbone = Backbone(CARD.backbone, 64, CARD.features)
    head = Head(backbone.width, CARD.hidden, 5, CARD.ordinal, seed=1)
    evidence = EvidenceHead(backbone.width, CARD.hidden, FEATURES, 5, seed=2)
    distance = FeatureDistance(backbone.width, 4)
    distance.axes.fill_diagonal_(1)
    network = CountingNetwork(backbone, head, evidence, distance=distance).eval()
    network.get_parameter("head.2.weight").data *= 5
    return network


@pytest.fixture(scope="module")
def folder(network: CountingNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exports")
    differences = export(to, network, CARD, CALIBRATION, record_model(), list(FILES), [images(3), images(1)])
    assert differences.keys() == {to / "model.onnx", to / "model.pt2"}
    assert 0 <= max(differences.values()) <= TOLERANCE
    assert sorted(path.name for path in to.iterdir()) == ["model.onnx", "model.pt2"]
    return to


def outputs_of_files(folder: Path, batch: torch.Tensor) -> list[Outputs]:
    """What both files give without this project."""
    onnx = session(folder / "model.onnx").run(OUTPUTS, {"images": batch.numpy()})
    return [tuple(map(torch.from_numpy, onnx)), tuple(torch.export.load(folder / "model.pt2").module()(batch))]


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 2, 7])
def test_files_give_the_models_outputs_without_this_project(
    folder: Path, network: CountingNetwork, number: int
) -> None:
    batch = images(number, seed=5)
    expected, plain = (calibrated(network, mirror)(batch) for mirror in (True, False))
    assert expected[2].shape == (number, 1)
    for one, other in zip(expected[:2], plain[:2], strict=True):  # so that equality shows that views are averaged
        assert (one - other).flatten(1).abs().amax(1).min() > 10 * TOLERANCE
    for got in outputs_of_files(folder, batch):
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_files_of_an_older_model_give_tables_without_features_and_no_distances(
    network: CountingNetwork, tmp_path: Path
) -> None:
    older = CountingNetwork(network.backbone, network.head).eval()
    card = CARD.model_copy(update={"list_features": None, "distances": None})
    export(tmp_path, older, card, CALIBRATION, None, list(FILES), [images(2)])
    expected = calibrated(older, mirror=True)(images(3))
    assert expected[1].shape == (3, 0, 3) and expected[2].shape == (3, 0)
    for got in outputs_of_files(tmp_path, images(3)):
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_both_files_hold_card_calibration_and_record_model_and_no_source_code(folder: Path) -> None:
    metadata = session(folder / "model.onnx").get_modelmeta().custom_metadata_map
    strings = {name for name, value in CARD.model_dump().items() if isinstance(value, str)}
    extra = {"card.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    for content in (
        {k: v if k in strings else json.loads(v) for k, v in metadata.items()},
        json.loads(extra["card.json"]),
    ):
        assert Calibration(**content.pop("calibration")) == CALIBRATION
        assert RecordModel(**content.pop("records")) == record_model()
        assert ModelCard(**content) == CARD
    for path in folder.iterdir():
        assert b"network.py" not in path.read_bytes()


def test_equal_models_give_equal_bytes(folder: Path, network: CountingNetwork, tmp_path: Path) -> None:
    export(tmp_path, network, CARD, CALIBRATION, record_model(), list(FILES), [images(2)])
    for name in FILES.values():
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(
    ("wrong", "error"),
    [("probabilities", 2e-4), ("probabilities", float("nan")), ("evidence", -0.5), ("distance", 0.5)],
)
def test_no_file_is_written_if_one_differs_from_the_model(
    tmp_path: Path, network: CountingNetwork, monkeypatch: pytest.MonkeyPatch, wrong: str, error: float
) -> None:
    model = calibrated(network, mirror=True)

    def writer(error: float) -> Callable[[Path, torch.export.ExportedProgram, dict[str, Any]], Runner]:
        def write(path: Path, _program: torch.export.ExportedProgram, _metadata: dict[str, Any]) -> Runner:
            path.write_text("new")

            def run(images: torch.Tensor) -> Outputs:
                values = dict(zip(OUTPUTS, model(images), strict=True))
                values[wrong] = values[wrong] + error * (torch.arange(values[wrong].shape[-1]) == 0)
                return values["probabilities"], values["evidence"], values["distance"]

            return run

        return write

    monkeypatch.setattr(exporting, "trace", lambda *_: None)  # takes seconds, and these writers need no graph
    monkeypatch.setattr(exporting, "_write_onnx", writer(0.5e-4))
    monkeypatch.setattr(exporting, "_write_torch", writer(error))
    (tmp_path / "model.pt2").write_text("old")
    with pytest.raises(
        UserError, match=r"model\.pt2 would differ from the model: by (2\.0e-04|5\.0e-01|nan) in an output"
    ):
        export(tmp_path, network, CARD, CALIBRATION, None, list(FILES), [images(2), images(1)])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.pt2", "old")]
    export(tmp_path, network, CARD, CALIBRATION, None, ["onnx"], [images(2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt2"]
