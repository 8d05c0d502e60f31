"""`bintally export`: encoded bins, predictor and exported files give the same outputs."""

import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bintally import cli, paths
from bintally.bins.shards import write_shards
from bintally.distributed.process_group import RankContext
from bintally.inference.predictor import Predictor
from bintally.model.card import load_model
from bintally.model.encoded import load_encoded
from bintally.model.encoding import encode
from bintally.model.images import decode
from bintally.model.prediction import predict_encoded
from bintally.scoring.calibration import calibrated, load_calibration
from small import CARD, bins, counting_network


@pytest.fixture
def project(model_workspace: Path) -> Path:
    """A folder with bins, their features and a model, to work in."""
    write_shards(paths.BINS, bins())
    images = [partial(decode, one.image, CARD.image_size) for one in bins()]
    encode(
        paths.ENCODED,
        images,
        counting_network().backbone,
        CARD.image_size,
        "features",
        CARD.mirror,
        RankContext(0, 1, torch.device("cpu"), is_main=True),
        Path(".bintally"),
        "key",
    )
    return model_workspace


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "export", *arguments])
    cli.main()


def error_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that fails."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("bintally: ") and captured.err.count("\n") == 1
    return captured.err


def test_encoded_bins_predictor_and_exported_files_give_the_same_outputs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    pattern = r"exports/model\.{}: outputs within \d\.\de[-+]\d\d of the model's on {} images"
    assert len(lines) == 2
    for line, suffix in zip(lines, ("onnx", "pt2"), strict=True):
        assert re.fullmatch(pattern.format(suffix, len(bins())), line), line

    rows = np.arange(len(bins()))[::-1]
    (network, card), calibration = load_model(paths.MODELS), load_calibration(paths.MODELS)
    logs, evidence = predict_encoded(network, card.mirror, load_encoded(paths.ENCODED), rows)
    scored = calibrated(logs[::-1], CARD.counts, calibration.counts, calibration.temperature)
    tables = evidence[::-1][..., np.searchsorted(CARD.counts, calibration.counts)]
    assert min(scored.std(0).mean(), tables.std(0).mean()) > 0.01  # else equality would show nothing
    predicted = Predictor(network, card, calibration)([one.image for one in bins()])
    np.testing.assert_allclose(predicted, scored, atol=1e-4)
    pixels = torch.stack([decode(one.image, 64) for one in bins()])
    import onnxruntime  # not before bintally.inference, which keeps it from sending reports

    session = onnxruntime.InferenceSession("exports/model.onnx", providers=["CPUExecutionProvider"])
    of_onnx = session.run(["probabilities", "evidence"], {"images": pixels.numpy()})
    assert session.get_modelmeta().custom_metadata_map["records"] == "null", "models holds no record model"
    with torch.inference_mode():
        of_program = torch.export.load("exports/model.pt2").module()(pixels)
    for found, found_tables, *_ in (of_onnx, of_program):
        np.testing.assert_allclose(found, scored, atol=1e-4)
        np.testing.assert_allclose(found_tables, tables, atol=1e-4)


def test_missing_model_data_or_folder_ends_with_one_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "file").touch()
    assert "'file/model.onnx' cannot be written (file exists)" in error_message(monkeypatch, capsys, "--to", "file")
    (project / "taken/model.pt2").mkdir(parents=True)
    assert "'taken/model.pt2' cannot be written (it is a folder)" in error_message(monkeypatch, capsys, "--to", "taken")
    assert [path.name for path in (project / "taken").iterdir()] == ["model.pt2"]
    write_shards(paths.BINS, [])
    assert "data/bins holds no bins" in error_message(monkeypatch, capsys)
    (paths.MODELS / "calibration.json").unlink()
    assert "models holds no calibration" in error_message(monkeypatch, capsys)
    (paths.BINS / "index.csv").unlink()
    assert "data/bins/index.csv does not exist: `dvc repro` creates it" in error_message(monkeypatch, capsys)
    (paths.MODELS / "model.safetensors").write_bytes(b"")
    write_shards(paths.BINS, [])
    assert "models has no complete model" in error_message(monkeypatch, capsys)
    (paths.MODELS / "card.json").unlink()
    assert "models/card.json does not exist" in error_message(monkeypatch, capsys)
    assert not (project / "exports").exists()
