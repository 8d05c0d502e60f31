"""A predictor gives each image its own distribution and table, in any batch and from any thread."""

import os
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch.onnx.errors import OnnxExporterError

from bintally.errors import UserError
from bintally.inference import runtime
from bintally.inference.predictor import Predictor
from bintally.model.backbone import Backbone
from bintally.model.encoding import BATCH
from bintally.model.images import decode
from bintally.model.network import CountingNetwork, Head, predict_views_and_distances
from bintally.model.views import stack_views
from bintally.scoring.calibration import calibrated
from bintally.scoring.evidence import FEATURES
from small import CALIBRATION, CARD, bins, counting_network

CPU = torch.device("cpu")
FILES = [one.image for one in bins()]

pytestmark = pytest.mark.usefixtures("model_workspace")


def small_predictor() -> Predictor:
    return Predictor(counting_network(), CARD, CALIBRATION, CPU)


def check_predictions(predictor: Predictor, network: CountingNetwork) -> None:
    """Compare predictions for all files at once, in one thread and in several, with those for one image at a time."""
    assert len(FILES) > BATCH["cpu"]
    distributions = predictor(FILES)
    assert distributions.dtype == np.float64 and distributions.shape == (len(FILES), 3)
    np.testing.assert_allclose(distributions.sum(1), 1, atol=1e-6)
    assert distributions.std(0).mean() > 0.01  # else equal distributions would show nothing
    card = predictor.card
    predicted = predictor.predict(torch.stack([predictor.decode(file) for file in FILES]))
    tables, ranks = predicted.tables, predicted.distance_ranks
    assert tables.dtype == np.float64 and tables.shape == (len(FILES), predictor.list_features, 3)
    with torch.no_grad():
        for row, table, rank, file in zip(distributions, tables, ranks, FILES, strict=True):
            views = stack_views(decode(file, card.image_size)[None], card.mirror)
            logs, of_one, distance = predict_views_and_distances(network, views)
            alone = calibrated(logs.double().numpy(), card.counts, CALIBRATION.counts, CALIBRATION.temperature)
            np.testing.assert_allclose(row, alone[0], atol=1e-4)
            np.testing.assert_allclose(table, of_one[0][:, [1, 2, 4]], atol=1e-4)
            if card.distances:
                features = network.backbone(views[0])[:, :4].mean(0)  # axes, mean and deviations of the small network
                np.testing.assert_allclose(distance, features.square().mean().sqrt()[None, None], rtol=1e-5)
                assert rank == pytest.approx(min(distance.item() / 4, 1), abs=1e-4)  # by the quantiles of CARD
            else:
                assert distance.shape == (1, 0) and np.isnan(rank)
    with ThreadPoolExecutor(4) as pool:
        for in_thread in pool.map(predictor, [FILES] * 4):
            np.testing.assert_allclose(in_thread, distributions, atol=1e-5)


def test_predictions_by_onnx_runtime_are_those_of_the_network() -> None:
    predictor = small_predictor()
    assert predictor.list_features == FEATURES
    check_predictions(predictor, counting_network())


def test_an_older_model_without_mirrored_views_tables_and_distances_is_exported_as_it_is() -> None:
    # A network that is quick to export.
    changes = {
        "backbone": "squeezenet1_1",
        "features": "last",
        "mirror": False,
        "list_features": None,
        "distances": None,
    }
    card = CARD.model_copy(update=changes)
    torch.manual_seed(1)
    backbone = Backbone(card.backbone, card.image_size, card.features)
    network = CountingNetwork(backbone, Head(backbone.width, card.hidden, 5, card.ordinal, seed=1)).eval()
    network.get_parameter("head.2.weight").data *= 5
    predictor = Predictor(network, card, CALIBRATION, CPU)
    assert predictor.list_features == 0
    check_predictions(predictor, network)


def test_a_network_that_onnx_cannot_express_runs_by_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> torch.export.ExportedProgram:
        raise OnnxExporterError("no such operator")

    monkeypatch.setattr(runtime, "trace", fail)
    card = CARD.model_copy(update={"mirror": False})  # another one than the model that is exported already
    check_predictions(Predictor(counting_network(), card, CALIBRATION, CPU), counting_network())
    assert "cannot be exported to ONNX, so PyTorch runs it: no such operator" in caplog.text


def test_counts_that_the_model_does_not_know_are_a_user_error() -> None:
    with pytest.raises(
        UserError, match=r"answers with the counts \[7, 8\], the model knows \[1, 2, 3, 4, 5\]: copy all"
    ):
        Predictor(counting_network(), CARD, CALIBRATION.model_copy(update={"counts": [7, 8]}), CPU)


# --- the model kept as ONNX ------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[bytes, int]]:
    """Loads a runner; returns the ONNX that it runs, and how often a model has been exported until then."""
    exports: list[bytes] = []

    def to_onnx(*_: object) -> bytes:
        exports.append(b"the model")
        return exports[-1]

    shutil.rmtree(runtime.ONNX_CACHE)
    monkeypatch.setattr(runtime, "trace", lambda *_: None)
    monkeypatch.setattr(runtime, "to_onnx", to_onnx)
    monkeypatch.setattr(runtime, "onnx_runner", lambda onnx: onnx)

    def load() -> tuple[bytes, int]:
        return cast(bytes, runtime.load_runner(counting_network(), CARD, CALIBRATION, CPU)), len(exports)

    return load


def test_a_kept_model_is_its_owners_alone_and_exported_once(kept: Callable[[], tuple[bytes, int]]) -> None:
    assert [kept(), kept()] == [(b"the model", 1)] * 2
    (path,) = runtime.ONNX_CACHE.iterdir()
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)] == [0o600, 0o700]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def overwritten(path: Path) -> None:
    path.write_bytes(b"the other")


def of_a_group(path: Path) -> None:
    path.chmod(0o620)


def of_everyone(path: Path) -> None:
    path.chmod(0o602)


def linked(path: Path) -> None:
    path.rename("elsewhere")
    path.symlink_to(Path("elsewhere").resolve())


def named_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("change", [cut_short, overwritten, of_a_group, of_everyone, linked, named_pipe])
def test_a_kept_model_that_is_damaged_or_may_be_anothers_is_made_anew(
    kept: Callable[[], tuple[bytes, int]], change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    kept()
    (path,) = runtime.ONNX_CACHE.iterdir()
    change(path)
    with caplog.at_level("INFO", "bintally"):
        assert kept() == (b"the model", 2)
    assert f"{path} is damaged or not this user's alone, and is made anew" in caplog.text
    assert kept() == (b"the model", 2)
    assert list(runtime.ONNX_CACHE.iterdir()) == [path] and path.read_bytes() == b"the model"


def test_a_kept_model_of_another_user_is_made_anew(
    kept: Callable[[], tuple[bytes, int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert kept() == (b"the model", 2)


def test_a_model_that_cannot_be_kept_is_exported_each_time(
    kept: Callable[[], tuple[bytes, int]], caplog: pytest.LogCaptureFixture
) -> None:
    runtime.ONNX_CACHE.touch()
    assert [kept(), kept()] == [(b"the model", 1), (b"the model", 2)]
    assert "the exported model cannot be kept for the next start: " in caplog.text


def test_no_files_give_no_rows() -> None:
    assert small_predictor()([]).shape == (0, 3)


def test_a_file_that_is_not_an_image_is_a_user_error() -> None:
    with pytest.raises(UserError, match="image does not decode"):
        small_predictor()([FILES[0], b"garbage"])
