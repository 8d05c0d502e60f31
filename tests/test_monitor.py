"""The monitor of a training: lines, page and scalars while it runs and however it ends."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from bintally import monitor as module
from bintally.errors import UserError
from bintally.interruption import Stopped
from bintally.monitor import TrainingMonitor, tensorboard_folder
from bintally.training.loop import EpochMetrics

KEY = "0123456789abcdef"


def make_metrics(number: int, *figures: float) -> EpochMetrics:
    """Loss and accuracy in training, then in validation; other metrics are 0."""
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    rest: dict[str, Any] = dict.fromkeys((field.name for field in fields(EpochMetrics)), 0.0)
    return EpochMetrics(**rest | dict(zip(names, figures, strict=True)) | {"epoch": number})


EPOCHS = [
    make_metrics(0, 1.5, 0.25, 1.25, 0.5),
    make_metrics(1, 1.0, 0.5, 0.75, 0.625),
    make_metrics(2, 0.5, 0.75, 1.0, 0.5),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "DRAW_EVERY_S", 0)
    for name in ("BINTALLY_EPOCHS", "BINTALLY_TENSORBOARD", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)


def start_monitor() -> TrainingMonitor:
    return TrainingMonitor(Path("live"), KEY, epochs=5)


def page() -> str:
    return Path("live/index.html").read_text(encoding="utf-8")


def lines(path: str = "live/epochs.jsonl") -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def report_epochs(monitor: TrainingMonitor) -> None:
    for epoch in EPOCHS:
        monitor.on_epoch(epoch)


def test_the_page_shows_the_curves_and_reloads_until_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "bintally")
    with start_monitor() as monitor:
        assert "0 of 5 epochs" in page() and 'http-equiv="refresh"' in page()
        assert caplog.messages == [f"to watch the training, open {Path('live/index.html').absolute().as_uri()}"]
        monitor.on_step(10, 50)
        monitor.on_step(30, 50)
        report_epochs(monitor)
        running = page()
        assert (
            "3 of 5 epochs" in running
            and "30 of 50 steps" in running
            and re.search(r"\d s left, until \d\d:\d\d", running)
        )
        assert 'http-equiv="refresh"' in running
        drawn = re.findall(r'<polyline points="([^"]*)" stroke="(#\w+)"', running)
        assert [len(points.split()) for points, _ in drawn] == [3, 3, 3, 3], "two lines in each of two charts"
        assert drawn[0][1] == drawn[2][1] != drawn[1][1]
        heights = [float(point.partition(",")[2]) for point in drawn[1][0].split()]
        assert heights[0] < heights[2] < heights[1], "the validation loss fell, then rose; SVG counts downwards"
        assert running.count("best: epoch 1") == 2 and ">train</text>" in running and ">validation</text>" in running
    done = page()
    assert "<h1>Training: done</h1>" in done and "refresh" not in done and "left, until" not in done
    assert "<script" not in done and "://" not in done.replace('xmlns="http://www.w3.org/2000/svg"', "")


def test_the_lines_are_the_key_and_the_epochs_of_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINTALLY_EPOCHS", "followed.jsonl")
    Path("followed.jsonl").write_text('{"epoch": -1}\n')
    for _ in range(2):
        with start_monitor() as monitor:
            report_epochs(monitor)
    assert lines() == [{"key": KEY}, *map(asdict, EPOCHS)]
    assert [line["epoch"] for line in lines("followed.jsonl")] == [-1, 0, 1, 2, 0, 1, 2]


def test_an_error_is_the_last_line_and_text_on_the_page() -> None:
    with pytest.raises(UserError), start_monitor() as monitor:
        report_epochs(monitor)
        raise UserError("the loss is not finite on <script>alert(1)</script>")
    assert lines()[-1] == {"fault": "the loss is not finite on <script>alert(1)</script>"}
    assert "<h1>Training: failed</h1>" in page() and "<script" not in page() and "refresh" not in page()
    assert "the loss is not finite on &lt;script&gt;" in page()


def test_a_stopped_training_is_shown_as_stopped() -> None:
    with pytest.raises(Stopped), start_monitor() as monitor:
        report_epochs(monitor)
        raise Stopped
    assert "<h1>Training: stopped</h1>" in page() and "refresh" not in page() and "fault" not in lines()[-1]


def test_a_loss_that_is_not_finite_leaves_a_gap() -> None:
    with start_monitor() as monitor:
        monitor.on_epoch(make_metrics(0, float("nan"), 0.2, float("inf"), 0.2))
        monitor.on_epoch(EPOCHS[1])
    assert "nan," not in page() and "inf," not in page() and "best: epoch 1" in page()


def test_the_page_is_not_written_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAW_EVERY_S", 3600)
    with start_monitor() as monitor:
        first = page()
        for step in range(1000):
            monitor.on_step(step, 1000)
        assert page() == first
    assert page() != first


def test_tensorboard_can_read_the_scalars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("BINTALLY_TENSORBOARD", str(tmp_path / "board"))
    for _ in range(2):  # a resumed training reports its earlier epochs again
        with start_monitor() as monitor:
            report_epochs(monitor)
    read = EventAccumulator(str(tmp_path / "board" / KEY[:8])).Reload()
    assert {"train/loss", "train/accuracy", "validation/loss", "validation/accuracy"} <= set(read.Tags()["scalars"])
    assert [(event.step, event.value) for event in read.Scalars("validation/loss")] == [(0, 1.25), (1, 0.75), (2, 1.0)]

    monkeypatch.setenv("DVC_EXP_NAME", "sunny-fig")
    with start_monitor():
        assert list((tmp_path / "board/sunny-fig").iterdir())


def test_without_its_package_or_in_a_relative_folder_tensorboard_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorboard_folder() is None
    monkeypatch.setenv("BINTALLY_TENSORBOARD", "runs")
    with pytest.raises(UserError, match=r"^BINTALLY_TENSORBOARD: 'runs' must be absolute, "):
        tensorboard_folder()
    monkeypatch.setenv("BINTALLY_TENSORBOARD", "/runs")
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"^BINTALLY_TENSORBOARD=/runs needs the package tensorboard: `pip install "):
        tensorboard_folder()


def test_it_needs_no_torch_and_no_matplotlib() -> None:
    code = "import sys, bintally.monitor; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
