"""calibrate, evaluate, audit and compare write the same bytes on every CPU, whatever matplotlib's configuration."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml

from bintally import paths
from bintally.bins.shards import write_shards
from bintally.errors import UserError
from bintally.files import write_csv
from bintally.params import load_params
from bintally.scoring import metrics, record_errors
from bintally.scoring.compositions import CompositionModel
from bintally.scoring.evidence import FEATURES
from bintally.scoring.metrics import Counts, Floats, LabelledPredictions
from bintally.stages import audit, calibrate, compare, evaluate
from small import CARD, bins

ROOT = Path(__file__).parents[2]
BINS = 160
# Each line changes a figure unless it is reset.
MATPLOTLIBRC = "axes.formatter.use_locale: True\nfont.size: 20\nsavefig.dpi: 30\nimage.cmap: gray\nlines.linewidth: 9\n"
SCRIPT = """
from bintally.params import load_params
from bintally.stages import audit, calibrate, compare, evaluate
for stage in (calibrate, evaluate, audit, compare):
    stage.main(load_params())
"""


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the stages read: predictions of all degrees of confidence, two bins a group."""
    monkeypatch.chdir(tmp_path)
    demo = [one for one in bins() if 1 <= one.count <= 5]
    copies = [replace(demo[row % len(demo)], id=f"{row:05d}", group=f"{row // 2 * 2:05d}") for row in range(BINS)]
    write_shards(paths.BINS, copies)
    splits = [("validation", "test", "test", "train")[row // 2 % 4] for row in range(BINS)]
    rows = [(one.id, one.count, one.group, split) for one, split in zip(copies, splits, strict=True)]
    write_csv(paths.SPLITS, ["id", "count", "group", "split"], rows)
    write_csv(paths.QUALITY, ["id", "reasons"], [(one.id, "blurred" * (n % 3 == 0)) for n, one in enumerate(copies)])
    random = np.random.default_rng(0)
    logits = random.normal(size=(BINS, 5)) + np.eye(5)[[one.count - 1 for one in copies]]
    logits[::5] *= 60  # as certain as a float can be
    np.save(paths.LOG_PROBABILITIES, logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    np.save(paths.EVIDENCE, random.normal(size=(BINS, FEATURES, 5)) + logits[:, None] / 10)
    paths.MODELS.mkdir()
    (paths.MODELS / "model.safetensors").write_bytes(b"")  # calibrate hashes it
    (paths.MODELS / "card.json").write_text(CARD.model_dump_json())
    text = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("resamples: 2000", "resamples: 200").replace("draws: 100", "draws: 5"))
    return tmp_path


def written_by_stages() -> dict[str, bytes]:
    params = load_params()
    for stage in (calibrate, evaluate, audit, compare):
        stage.main(params)
    return written()


def written() -> dict[str, bytes]:
    """Every file the stages have written, and its bytes."""
    files = [path for folder in ("models", "metrics", "plots") for path in Path(folder).iterdir()]
    return {str(path): path.read_bytes() for path in (*files, paths.PREDICTIONS)}


def test_the_last_digits_of_floats_change_no_file(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)

    def perturbed(values: Floats) -> Floats:
        return values * (1 + 1e-15 * random.uniform(-1, 1, values.shape))

    first = written_by_stages()
    assert len(first) == 19
    columns, error_model, terms = metrics.columns, record_errors.error_model, CompositionModel.terms

    def perturbed_columns(scored: LabelledPredictions) -> dict[str, Floats]:
        return {name: perturbed(values) for name, values in columns(scored).items()}

    def perturbed_terms(model: CompositionModel, sizes: Floats, number: Counts) -> Floats:
        return perturbed(terms(model, sizes, number))

    # Sums in another order and other implementations of exp and log differ like this.
    monkeypatch.setattr(metrics, "columns", perturbed_columns)
    monkeypatch.setattr(record_errors, "error_model", lambda counts: perturbed(error_model(counts)))
    monkeypatch.setattr(CompositionModel, "terms", perturbed_terms)
    for _ in range(3):
        for path in (paths.LOG_PROBABILITIES, paths.EVIDENCE):
            np.save(path, perturbed(np.load(path)))
        again = written_by_stages()
        assert [name for name in first if again[name] != first[name]] == []


@pytest.mark.parametrize(("number", "message"), [(12, None), (1, "raise fetch.per_count")])
def test_few_bins_are_audited_or_refused_in_a_sentence(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str | None
) -> None:
    calibrate.main(load_params())
    evaluate.main(load_params())
    lines = paths.PREDICTIONS.read_text().splitlines(keepends=True)
    paths.PREDICTIONS.write_text("".join(lines[: 1 + number]))
    if message:
        with pytest.raises(UserError, match=message):
            audit.main(load_params())
        return
    for shares in ("{quantity: 1, unlisted: 0, missing: 0}", "{quantity: 0, unlisted: 1, missing: 0}"):
        model = json.loads((paths.MODELS / "records.json").read_text())
        model["error_shares"] = yaml.safe_load(shares)
        (paths.MODELS / "records.json").write_text(json.dumps(model))
        audit.main(load_params())
        assert "NaN" not in paths.AUDIT_METRICS.read_text()


def test_the_configuration_of_matplotlib_changes_no_file(workspace: Path) -> None:
    first = written_by_stages()
    config = workspace / "config"
    config.mkdir()
    (config / "matplotlibrc").write_text(MATPLOTLIBRC)
    for fonts in Path(matplotlib.get_cachedir()).glob("fontlist-*.json"):
        shutil.copy(fonts, config)  # listing the fonts takes seconds
    environment = os.environ | {"MPLCONFIGDIR": str(config), "MPLBACKEND": "svg", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True)
    again = written()
    assert [name for name in first if again[name] != first[name]] == []
