"""`bintally export`: what is scored, what is predicted and what is exported are one thing; or one line says why not."""

import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from bintally import cli, paths
from bintally.bins.shards import write_shards
from bintally.inference.predictor import Predictor, predict_encoded
from bintally.model.card import load_model, save_model
from bintally.model.encoded import encode, load_encoded
from bintally.model.images import decode
from bintally.scoring.calibration import calibrated, load_calibration, save_calibration
from small import CALIBRATION, CARD, bins, counter


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with bins, their features and a model, to work in."""
    monkeypatch.chdir(tmp_path)
    write_shards(paths.BINS, bins())
    reads = [partial(bytes, one.image) for one in bins()]
    encode(
        paths.ENCODED,
        reads,
        counter().backbone,
        CARD.image_size,
        "head",
        CARD.mirror,
        torch.device("cpu"),
        Path(".bintally"),
        "key",
    )
    save_model(paths.MODELS, counter(), CARD)
    save_calibration(paths.MODELS, CALIBRATION)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "export", *arguments])
    cli.main()


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that says why the command fails."""
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("bintally: ") and said.err.count("\n") == 1
    return said.err


def test_what_is_scored_predictor_and_exports_say_the_same(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    pattern = r"exports/model\.{}: at most \d\.\de[-+]\d\d from the model's probabilities on {} images"
    assert len(lines) == 2
    for line, suffix in zip(lines, ("onnx", "pt2"), strict=True):
        assert re.fullmatch(pattern.format(suffix, len(bins())), line), line

    rows = np.arange(len(bins()))[::-1]
    model, calibration = load_model(paths.MODELS), load_calibration(paths.MODELS)
    logs = predict_encoded(*model, load_encoded(paths.ENCODED), rows)[::-1]
    scored = calibrated(logs, CARD.counts, calibration.counts, calibration.temperature)
    assert scored.std(0).mean() > 0.01  # so that agreement says something
    predicted = Predictor(*model, calibration)([one.image for one in bins()])
    np.testing.assert_allclose(predicted, scored, atol=1e-4)
    pixels = torch.stack([decode(one.image, 64) for one in bins()])
    session = onnxruntime.InferenceSession("exports/model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"images": pixels.numpy()})[0], scored, atol=1e-4)
    with torch.inference_mode():
        program = torch.export.load("exports/model.pt2").module()(pixels)
    np.testing.assert_allclose(program.numpy(), scored, atol=1e-4)


def test_without_a_model_data_or_a_place_one_line_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "file").touch()
    assert "--to: cannot write to file: File exists" in refused(monkeypatch, capsys, "--to", "file")
    write_shards(paths.BINS, [])
    assert "data/bins holds no bins" in refused(monkeypatch, capsys)
    (paths.MODELS / "calibration.json").unlink()
    assert "models holds no calibration" in refused(monkeypatch, capsys)
    (paths.BINS / "index.csv").unlink()
    assert "data/bins/index.csv is not there: `dvc repro` makes it" in refused(monkeypatch, capsys)
    (paths.MODELS / "model.safetensors").write_bytes(b"")
    write_shards(paths.BINS, [])
    assert "models holds no whole model" in refused(monkeypatch, capsys)
    (paths.MODELS / "card.json").unlink()
    assert "models/card.json is not there" in refused(monkeypatch, capsys)
    assert not (project / "exports").exists()
