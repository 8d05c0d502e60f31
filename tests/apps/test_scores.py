"""Parts of scored photographs: what the model says of each photograph, and no rows for those that were not scored."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch.onnx.errors import OnnxExporterError

from bintally import paths
from bintally.apps import scores
from bintally.apps.photographs import open_photographs
from bintally.apps.scores import score_photographs
from bintally.inference import runtime
from bintally.inference.predictor import Predictions, Predictor
from bintally.model.encoding import BATCH
from bintally.model.network import CountingNetwork
from bintally.scoring.evidence import FEATURES
from small import bins, counting_network
from small_records import older_network, save_older_model, saw

IMAGES = [one.image for one in bins()]


@pytest.fixture
def album(model_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of photographs for three parts: of the first all are broken, of the second every other one."""
    part = BATCH["cpu"]
    monkeypatch.setattr(scores, "PART", part)
    bodies = [b"garbage"] * part
    bodies += [IMAGES[row % len(IMAGES)] if row % 2 else b"garbage" for row in range(part)]
    bodies += [IMAGES[-1], IMAGES[0]]
    Path("album").mkdir()
    names = [f"{number:02}.jpg" for number in range(len(bodies))]
    for name, body in zip(names, bodies, strict=True):
        Path("album", name).write_bytes(body)
    return names


@pytest.mark.parametrize(("network", "features"), [(counting_network, FEATURES), (older_network, 0)])
def test_parts_have_the_probabilities_and_tables_of_their_photographs(
    album: list[str], monkeypatch: pytest.MonkeyPatch, network: Callable[[], CountingNetwork], features: int
) -> None:
    if not features:
        save_older_model(paths.MODELS)
        monkeypatch.setattr(runtime, "trace", Mock(side_effect=OnnxExporterError("this would take a while")))
    with score_photographs(open_photographs("album"), paths.MODELS) as found:
        parts = list(found)
    is_good = [Path("album", name).read_bytes() != b"garbage" for name in album]
    for number, part in enumerate(parts):
        here = range(len(album))[number * scores.PART : (number + 1) * scores.PART]
        good = [album[place] for place in here if is_good[place]]
        assert part.ids == good
        assert [name for name, _ in part.rejected] == [album[place] for place in here if not is_good[place]]
        assert part.probabilities.shape == (len(good), 3) and part.tables.shape == (len(good), features, 3)
        if good:
            expected = saw([Path("album", name).read_bytes() for name in good], network())
            np.testing.assert_allclose(part.probabilities, expected.probabilities, atol=1e-4)
            np.testing.assert_allclose(part.tables, expected.tables, atol=1e-3)
            np.testing.assert_allclose(part.distance_ranks, expected.distance_ranks, atol=1e-4)
            assert np.isnan(part.distance_ranks).all() == (not features)
    assert [len(part.ids) for part in parts] == [0, scores.PART // 2, 2]


@pytest.mark.parametrize("output", ["probabilities", "tables"])
def test_a_photograph_of_which_the_model_says_nothing_finite_is_set_aside(
    model_workspace: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    predict = Predictor.predict

    def one_overflows(self: Predictor, pixels: torch.Tensor) -> Predictions:
        found = predict(self, pixels)
        getattr(found, output)[1, ..., -1] = np.inf
        return found

    monkeypatch.setattr(Predictor, "predict", one_overflows)
    Path("album").mkdir()
    for name in ("a", "b", "c"):
        Path("album", f"{name}.jpg").write_bytes(IMAGES[0])
    with score_photographs(open_photographs("album"), paths.MODELS) as found:
        (part,) = found
    assert part.ids == ["a.jpg", "c.jpg"] and part.rejected == [("b.jpg", "its probabilities are not finite")]
