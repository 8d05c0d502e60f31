"""An exported file says what the model says, holds its card, and is the same bytes each time; or it is not written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from bintally.errors import UserError
from bintally.inference import export as exporting
from bintally.inference.export import FILES, TOLERANCE, export
from bintally.model.backbone import Backbone
from bintally.model.card import Card
from bintally.model.network import CountDistribution, CountingNetwork, Head
from bintally.scoring.calibration import Calibration
from small import CALIBRATION
from small import CARD as SMALL

Run = Callable[[torch.Tensor], torch.Tensor]
# Quick to trace; tests/apps exports the default backbone.
CARD = SMALL.model_copy(update={"backbone": "squeezenet1_1"})


def images(number: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (number, 3, 4, 4), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear").to(torch.uint8)


def answering(network: CountingNetwork, mirrored: bool) -> CountDistribution:
    """What CALIBRATION says of the network: 2, 3 and 5 are the second, the third and the last class."""
    return CountDistribution(network, mirrored, [1, 2, 4], CALIBRATION.temperature)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def network() -> CountingNetwork:
    torch.manual_seed(1)
    backbone = Backbone(CARD.backbone, 64, CARD.features)
    network = CountingNetwork(backbone, Head(backbone.width, CARD.hidden, 5, CARD.ordinal, seed=1)).eval()
    network.get_parameter("head.2.weight").data *= 5
    return network


@pytest.fixture(scope="module")
def folder(network: CountingNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("exports")
    differences = export(to, network, CARD, CALIBRATION, list(FILES), [images(3), images(1)])
    assert differences.keys() == {to / "model.onnx", to / "model.pt2"}
    assert 0 <= max(differences.values()) <= TOLERANCE
    assert sorted(path.name for path in to.iterdir()) == ["model.onnx", "model.pt2"]
    return to


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_file_read_as_a_stranger_reads_it_says_what_the_model_says(
    folder: Path, network: CountingNetwork, number: int
) -> None:
    batch = images(number, seed=5)
    expected, plain = (answering(network, mirrored)(batch) for mirrored in (True, False))
    assert (expected - plain).abs().amax(1).min() > 10 * TOLERANCE  # so that agreement says that views are averaged
    onnx = torch.from_numpy(session(folder / "model.onnx").run(None, {"images": batch.numpy()})[0])
    program = torch.export.load(folder / "model.pt2").module()(batch)
    for got in (onnx, program):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_both_files_hold_card_and_calibration_and_no_line_of_source(folder: Path) -> None:
    metadata = session(folder / "model.onnx").get_modelmeta().custom_metadata_map
    strings = {name for name, value in CARD.model_dump().items() if isinstance(value, str)}
    extra = {"card.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    for content in (
        {k: v if k in strings else json.loads(v) for k, v in metadata.items()},
        json.loads(extra["card.json"]),
    ):
        assert Calibration(**content.pop("calibration")) == CALIBRATION
        assert Card(**content) == CARD
    for path in folder.iterdir():
        assert b"network.py" not in path.read_bytes()


def test_equal_models_are_equal_bytes(folder: Path, network: CountingNetwork, tmp_path: Path) -> None:
    export(tmp_path, network, CARD, CALIBRATION, list(FILES), [images(2)])
    for name in FILES.values():
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("error", [2e-4, -0.5, float("nan")])
def test_a_file_that_says_something_else_is_not_written_nor_is_the_other(
    tmp_path: Path, network: CountingNetwork, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    model = answering(network, mirrored=True)

    def is_main_process(error: float) -> Callable[[Path, torch.export.ExportedProgram, dict[str, Any]], Run]:
        def write(path: Path, _program: torch.export.ExportedProgram, _about: dict[str, Any]) -> Run:
            path.write_text("new")
            return lambda images: model(images) + torch.tensor([0, 0, error])

        return write

    monkeypatch.setattr(exporting, "_write_onnx", is_main_process(0.5e-4))
    monkeypatch.setattr(exporting, "_write_torch", is_main_process(error))
    (tmp_path / "model.pt2").write_text("old")
    with pytest.raises(
        UserError, match=r"model\.pt2 would not be the model: a probability differs by (2\.0e-04|5|nan)"
    ):
        export(tmp_path, network, CARD, CALIBRATION, list(FILES), [images(2), images(1)])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model.pt2", "old")]
    export(tmp_path, network, CARD, CALIBRATION, ["onnx"], [images(2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.pt2"]
