"""Figures: equal data give equal bytes, so that DVC sees a change only where there is one."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bintally.scoring import figures
from bintally.scoring.references import REFERENCES, BenchmarkRow

COUNTS = [1, 2, 3]


def photograph(shade: int) -> Image.Image:
    return Image.new("RGB", (60, 40), (shade, 120, 60))


def confusion() -> Figure:
    return figures.confusion_figure(np.array([[5, 1, 0], [2, 9, 3], [0, 0, 0]]), COUNTS, "eleven bins")


def benchmark() -> Figure:
    model = BenchmarkRow("this model", "demo", 0.5, 0.8, accuracy_interval=(0.4, 0.6), rmse_interval=(0.7, 0.9))
    baseline = BenchmarkRow("always 3", "20 bins of this run", 0.2, 1.3)
    return figures.benchmark_figure([model, baseline, *REFERENCES], "counting")


def audit() -> Figure:
    curve = np.linspace(0, 1, 11)
    rankings = {"photograph and list": 0.4, "photograph": 0.5, "list": 0.6, "disagreement": 0.8, "chance": 1.0}
    curves = {name: curve**power for name, power in rankings.items()}
    found = {"one off": (0.2, 0.1, 0.3), "left out": (0.5, 0.4, 0.6)}
    return figures.audit_figure(curves, curve**0.6, found, {"as assumed": (0.4, 0.5)}, "errors")


def confusions() -> Figure:
    tables = {"alone": np.array([[5, 1, 0], [2, 9, 3], [0, 0, 0]]), "together": np.eye(3, dtype=np.int64)}
    return figures.confusions_figure(tables, COUNTS, "eleven bins")


def examples() -> Figure:
    """Five photographs, on two rows."""
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0, 0, 1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
    images = (photograph(40 * k) for k in range(5))
    return figures.examples_figure(images, [1, 2, 3, 1, 2], probabilities, COUNTS, "examples")


@pytest.mark.parametrize(
    ("draw", "size"),
    [
        (confusion, (720, 648)),
        (benchmark, (1200, 571)),
        (audit, (1680, 552)),
        (confusions, (1344, 672)),
        (examples, (1248, 720)),
    ],
)
def test_a_figure_is_complete_and_has_the_same_bytes_each_time(
    tmp_path: Path, draw: Callable[[], Figure], size: tuple[int, int]
) -> None:
    for name in ("first.png", "again.png"):
        figures.save(draw(), tmp_path / name)
    first, again = ((tmp_path / name).read_bytes() for name in ("first.png", "again.png"))
    assert first == again
    assert 10_000 < len(first) < 200_000
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("PNG", size)
        grey = np.asarray(image.convert("L"))
    inside = grey < 250
    assert inside.mean() > 0.02
    margin = np.concatenate([grey[:3].ravel(), grey[-3:].ravel(), grey[:, :3].ravel(), grey[:, -3:].ravel()])
    assert margin.min() == 255, "something is cut off at the edge"


def test_other_data_give_another_figure(tmp_path: Path) -> None:
    figures.save(confusion(), tmp_path / "one.png")
    figures.save(figures.confusion_figure(np.full((3, 3), 2), COUNTS, "eleven bins"), tmp_path / "other.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_a_matplotlibrc_changes_nothing(tmp_path: Path) -> None:
    """Of the folder or of the environment, with another font, LaTeX, which is not installed, or what is not valid."""
    figures.save(confusion(), tmp_path / "plain.png")
    (tmp_path / "rc").write_text("font.family: serif\naxes.titlesize: 20\nfigure.dpi: 300\nlines.linewidth: 9\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/matplotlibrc").write_text("text.usetex: True\nbackend: none such\nfigure.dpi: many\nno colon\n")
    code = "import sys; from pathlib import Path; from test_figures import confusion, figures"
    code += "; figures.save(confusion(), Path(sys.argv[1]))"
    search = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for number, folder, environment in (
        (1, tmp_path, {"MATPLOTLIBRC": str(tmp_path / "rc"), "MPLBACKEND": "svg"}),
        (2, tmp_path / "folder", {"PATH": "/nowhere"}),
    ):
        path = tmp_path / f"{number}.png"
        subprocess.run(
            [sys.executable, "-c", code, str(path)], cwd=folder, env=os.environ | search | environment, check=True
        )
        assert path.read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_a_source_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    assert figures.source_name("demo") == "demo bins, rendered"
    title = figures.source_name(r"/bins/$\frac$")
    figures.save(figures.confusion_figure(np.eye(3, dtype=np.int64), COUNTS, title), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
