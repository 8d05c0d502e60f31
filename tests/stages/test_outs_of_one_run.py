"""calibrate, evaluate and audit refuse outs that are not of one run, in one sentence; earlier outs stay whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bintally import paths
from bintally.bins.shards import write_shards
from bintally.errors import UserError
from bintally.files import write_csv
from bintally.params import Params, load_params
from bintally.scoring.calibration import Calibration, save_calibration
from bintally.scoring.record_model import save_record_model
from bintally.stages import audit, calibrate, evaluate
from small import CALIBRATION, bins
from small_records import record_model, record_text

ROOT = Path(__file__).parents[2]
COUNTS = CALIBRATION.counts
BINS = 20


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The parameters, in a working directory with what the stages read: half of the bins are test bins."""
    monkeypatch.chdir(tmp_path)
    made = bins()
    copies = [
        replace(
            made[n % len(made)],
            id=f"{n:02}",
            count=count,
            group=f"{n:02}",
            record=record_text(A=1, B=count - 1).encode(),
        )
        for n, count in enumerate((COUNTS * BINS)[:BINS])
    ]
    write_shards(paths.BINS, copies)
    rows = [(one.id, one.count, one.group, ("validation", "test")[n % 2]) for n, one in enumerate(copies)]
    write_csv(paths.SPLITS, ["id", "count", "group", "split"], rows)
    logits = np.random.default_rng(0).normal(size=(BINS, 5))
    np.save(paths.LOG_PROBABILITIES, logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    for name in ("model.safetensors", "card.json"):
        path = paths.MODELS / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    save_models(CALIBRATION)
    loaded = load_params(ROOT / "params.yaml")
    return loaded.model_copy(
        update={
            "calibrate": loaded.calibrate.model_copy(update={"counts": COUNTS}),
            "evaluate": loaded.evaluate.model_copy(update={"resamples": 100}),
            "audit": loaded.audit.model_copy(update={"draws": 2}),
        }
    )


def save_models(calibration: Calibration) -> None:
    save_calibration(paths.MODELS, calibration)
    answers = record_model().answers.model_copy(update={"record_error_rate": calibration.record_error_rate})
    save_record_model(paths.MODELS, record_model().model_copy(update={"answers": answers}))


def change(rows: int = BINS, classes: int = 5, missing: int = 0) -> None:
    values = np.full((rows, classes), -1.6)
    values[:missing] = np.nan
    np.save(paths.LOG_PROBABILITIES, values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: change(rows=BINS + 1), r"has the shape \(21, 5\), not \(20, 5\): it is of other bins"),
        (lambda: change(classes=4), r"has the shape \(20, 4\), not \(20, 5\)"),
        (lambda: change(missing=6), "lacks 3 of the 10 bins: it is of another split"),
        (lambda: paths.LOG_PROBABILITIES.write_bytes(b"\x93NUMPY"), "cannot be read"),
        (lambda: paths.LOG_PROBABILITIES.unlink(), "cannot be read"),
    ],
)
def test_log_probabilities_of_another_run_are_refused(
    params: Params, spoil: Callable[[], object], message: str
) -> None:
    evaluate.main(params)
    earlier = paths.PREDICTIONS.read_bytes(), paths.TEST_METRICS.read_bytes()
    spoil()
    for stage in (calibrate, evaluate):
        with pytest.raises(UserError, match=f"^data/log_probabilities.npy {message}.*`dvc repro`$"):
            stage.main(params)
    assert (paths.PREDICTIONS.read_bytes(), paths.TEST_METRICS.read_bytes()) == earlier


def test_predictions_of_another_calibration_or_of_other_bins_are_not_audited(params: Params) -> None:
    evaluate.main(params)
    audit.main(params)
    earlier = paths.AUDIT_METRICS.read_bytes()
    text = paths.PREDICTIONS.read_text()
    for changed in (text.replace(",p2,", ",p4,"), text.replace("\n01,", "\nother,")):
        paths.PREDICTIONS.write_text(changed)
        with pytest.raises(
            UserError, match=r"is not of this calibration or of these bins: .* is missing; run `dvc repro`"
        ):
            audit.main(params)
    paths.PREDICTIONS.write_text("".join(text.splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match="1 test bins are too few"):
        audit.main(params)
    assert paths.AUDIT_METRICS.read_bytes() == earlier


def test_all_records_but_one_may_be_wrong(params: Params) -> None:
    save_models(CALIBRATION.model_copy(update={"record_error_rate": 0.99}))
    evaluate.main(params)
    audit.main(params)
    assert '"images": 10' in paths.AUDIT_METRICS.read_text()
