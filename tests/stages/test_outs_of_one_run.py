"""calibrate, evaluate and audit refuse outs that are not of one run, in one sentence; earlier outs stay whole."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bintally import paths
from bintally.bins.shards import write_shards
from bintally.errors import UserError
from bintally.files import read_csv, write_csv
from bintally.params import Params, load_params
from bintally.scoring.calibration import Calibration, save_calibration
from bintally.scoring.evidence import FEATURES, MOST_PRODUCTS
from bintally.scoring.record_model import save_record_model
from bintally.stages import audit, calibrate, evaluate
from small import CALIBRATION, CARD, bins
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
    write_csv(paths.QUALITY, ["id", "reasons"], [(one.id, "blurred" * (n % 3 == 0)) for n, one in enumerate(copies)])
    random = np.random.default_rng(0)
    logits = random.normal(size=(BINS, 5))
    np.save(paths.LOG_PROBABILITIES, logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    np.save(paths.EVIDENCE, random.normal(size=(BINS, FEATURES, 5)))
    paths.MODELS.mkdir()
    (paths.MODELS / "model.safetensors").write_text("weights")
    (paths.MODELS / "card.json").write_text(CARD.model_dump_json())
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


def outs() -> list[bytes]:
    """What calibrate and evaluate have written."""
    models = [paths.MODELS / name for name in ("calibration.json", "records.json")]
    return [one.read_bytes() for one in (*models, paths.VALIDATION_METRICS, paths.PREDICTIONS, paths.TEST_METRICS)]


def changed(params: Params) -> Params:
    """Parameters with which both stages would write something else."""
    return params.model_copy(
        update={
            "calibrate": params.calibrate.model_copy(update={"coverage": 0.5}),
            "evaluate": params.evaluate.model_copy(update={"resamples": 200}),
        }
    )


@pytest.mark.parametrize(
    ("path", "shape"), [(paths.LOG_PROBABILITIES, "20, 5"), (paths.EVIDENCE, f"20, {FEATURES}, 5")]
)
def test_outputs_of_another_run_are_refused(params: Params, path: Path, shape: str) -> None:
    for stage in (calibrate, evaluate):
        stage.main(params)
    earlier, values = outs(), np.load(path)
    of_another_split = values.copy()
    of_another_split[:6, ..., -1] = np.nan
    spoils: list[tuple[Callable[[], object], str]] = [
        (lambda: np.save(path, np.concatenate([values, values[:1]])), r"has the shape \(21, .*: it is of other bins"),
        (lambda: np.save(path, values[..., :4]), rf"has the shape \(20, .*4\), not \({shape}\)"),
        (lambda: np.save(path, values[:, :3]), rf"has the shape \(20, 3.*, not \({shape}\)"),
        (lambda: np.save(path, of_another_split), "lacks 3 of the 10 bins: it is of another split"),
        (lambda: path.write_bytes(b"\x93NUMPY"), "cannot be read"),
        (lambda: path.write_bytes(b""), "cannot be read"),
        (lambda: path.unlink(), "cannot be read"),
    ]
    for spoil, message in spoils:
        spoil()
        for stage in (calibrate, evaluate):
            with pytest.raises(UserError, match=f"^{path} {message}.*`dvc repro`$"):
                stage.main(changed(params))
    assert outs() == earlier


def test_a_model_without_features_of_lists_is_not_calibrated(params: Params) -> None:
    for stage in (calibrate, evaluate):
        stage.main(params)
    earlier = outs()
    (paths.MODELS / "card.json").write_text(CARD.model_dump_json(exclude={"list_features"}))
    with pytest.raises(UserError, match=r"^models/card\.json does not say how lists .*; `dvc repro train` writes it$"):
        calibrate.main(changed(params))
    assert outs() == earlier


def test_the_evidence_of_each_bin_is_read_for_its_own_count(params: Params) -> None:
    tables = np.zeros((BINS, FEATURES, 5))
    counts = [int(row["count"]) for row in read_csv(paths.SPLITS)]
    tables[np.arange(BINS), :MOST_PRODUCTS, np.searchsorted(params.model_counts, counts)] = 9
    np.save(paths.EVIDENCE, tables)
    for stage, path in ((calibrate, paths.VALIDATION_METRICS), (evaluate, paths.TEST_METRICS)):
        stage.main(params)
        metrics = json.loads(path.read_text())
        assert metrics["most_probable"]["accuracy"] < 0.8, "the photographs alone say nothing"
        assert metrics["given_products"]["most_probable"]["accuracy"] == 1


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
