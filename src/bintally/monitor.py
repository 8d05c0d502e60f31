"""A view of a training while it runs: its epochs as lines of JSON and as an HTML page, and TensorBoard.

It changes nothing in the result, and lies in a folder that is no out, so that it outlives a stage that fails.
"""

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bintally.errors import UserError
from bintally.files import write_text
from bintally.interruption import Stopped
from bintally.page import curves, document, table

if TYPE_CHECKING:  # it imports torch
    from bintally.training.loop import EpochMetrics

EPOCHS_VARIABLE = "BINTALLY_EPOCHS"  # path of a file that gets the lines, too
TENSORBOARD_VARIABLE = "BINTALLY_TENSORBOARD"  # folder for TensorBoard's files
DRAW_EVERY_S = 1.0
RELOAD_EVERY_S = 3
SPLITS = ("train", "validation")
TABLE_ROWS = 8
RUNNING = "running"

STYLE = """
section{display:grid;grid-template-columns:repeat(auto-fit,minmax(26rem,1fr));gap:2rem;margin:1.5rem 0}
h1{margin-bottom:.3rem}
progress{width:100%;height:.8rem}
td,th{text-align:right}
.reason{color:#c53030}
small{color:#4a5568}
"""

Row = Mapping[str, Any]
log = logging.getLogger("bintally")


class TrainingMonitor:
    """A context manager around one training, however it ends, which writes to ``folder``:

    ``epochs.jsonl``, with the run's key, a line for each epoch and the error if it fails, and ``index.html``.
    """

    def __init__(self, folder: Path, key: str, epochs: int) -> None:
        self._folder, self._key, self._epochs = folder, key, epochs
        self._rows: list[Row] = []
        self._start: tuple[int, float] | None = None  # steps done and time at the first step
        self._steps, self._total_steps = 0, 1
        self._drawn = -math.inf
        self._tensorboard: Any = None

    def __enter__(self) -> Self:
        """Raises UserError if TensorBoard is wanted and not available."""
        if folder := tensorboard_folder():
            from torch.utils.tensorboard import SummaryWriter

            # A resumed training reports its earlier epochs again.
            self._tensorboard = SummaryWriter(str(folder / self._name()), purge_step=0)
        lines, copy = self._folder / "epochs.jsonl", os.environ.get(EPOCHS_VARIABLE)
        write_text(lines, json.dumps({"key": self._key}) + "\n")
        self._lines = [lines, Path(copy)] if copy else [lines]
        self._draw(RUNNING)
        log.info("to watch the training, open %s", (self._folder / "index.html").resolve().as_uri())
        return self

    def on_epoch(self, metrics: "EpochMetrics") -> None:
        """Add an epoch: one just finished, or one from before an interruption."""
        row = asdict(metrics)
        self._rows.append(row)
        self._write_line(row)
        if self._tensorboard:
            for name in row.keys() - {"epoch"}:
                self._tensorboard.add_scalar(name.replace("_", "/", 1), row[name], metrics.epoch)
            self._tensorboard.flush()
        self._draw(RUNNING)

    def on_step(self, done: int, total: int) -> None:
        """Update the steps done and the time left."""
        self._start = self._start or (done, time.monotonic())
        self._steps, self._total_steps = done, total
        self._draw(RUNNING)

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            self._write_line({"fault": str(error)})
        self._draw(*_outcome(error))
        if self._tensorboard:
            self._tensorboard.close()

    def _write_line(self, content: Row) -> None:
        for path in self._lines:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(content) + "\n")

    def _name(self) -> str:
        """The name of the experiment, else the start of the key."""
        return os.environ.get("DVC_EXP_NAME") or self._key[:8]

    def _draw(self, state: str, reason: str = "") -> None:
        """Write the page; at most every DRAW_EVERY_S seconds while the training runs."""
        now = time.monotonic()
        if state == RUNNING and now - self._drawn < DRAW_EVERY_S:
            return
        self._drawn = now
        rows = self._rows
        finite = [row for row in rows if math.isfinite(row["validation_loss"])]
        best = min(finite, key=lambda row: row["validation_loss"], default=None)
        status = [f"{rows[-1]['epoch'] + 1 if rows else 0} of {self._epochs} epochs"]
        status += [f"{self._steps:,} of {self._total_steps:,} steps"] if self._steps else []
        status += [self._time_left(now)] if state == RUNNING else []
        why = f'<p class="reason">{escape(reason)}</p>' if reason else ""
        kept = f"<p>Epoch {best['epoch']} has the least validation loss.</p>" if best else ""
        body = (
            f"<h1>Training: {state}</h1>{why}<p>{' · '.join(status)}</p>"
            f'<progress value="{self._steps}" max="{self._total_steps}"></progress>'
            f"<section>{_chart(rows, best, 'loss', 'Loss, nats', 1)}"
            f"{_chart(rows, best, 'accuracy', 'Accuracy, %', 100)}</section>{kept}{_table(rows[-TABLE_ROWS:][::-1])}"
            f"<p><small>{escape(self._name())}, in {escape(str(Path.cwd()))}; {time.strftime('%H:%M:%S')}</small></p>"
        )
        refresh_s = RELOAD_EVERY_S if state == RUNNING else None
        write_text(self._folder / "index.html", document(f"Training: {state}", body, STYLE, refresh_s))

    def _time_left(self, now: float) -> str:
        if self._start is None or self._steps == self._start[0]:
            return "time left unknown"
        seconds = (self._total_steps - self._steps) * (now - self._start[1]) / (self._steps - self._start[0])
        end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
        return f"{_duration(seconds)} left, until {end}"


def tensorboard_folder() -> Path | None:
    """The folder for TensorBoard's files, None if not wanted. Raises UserError if folder or package cannot be used."""
    value = os.environ.get(TENSORBOARD_VARIABLE)
    if not value:
        return None
    if not Path(value).is_absolute():
        reason = "must be absolute, since an experiment may run in a folder of its own"
        raise UserError(f"{TENSORBOARD_VARIABLE}: '{value}' {reason}")
    if find_spec("tensorboard") is None:
        remedy = "`pip install tensorboard`, or unset it"
        raise UserError(f"{TENSORBOARD_VARIABLE}={value} needs the package tensorboard: {remedy}")
    return Path(value)


def _outcome(error: BaseException | None) -> tuple[str, str]:
    """How a training ended, and why."""
    if error is None or isinstance(error, Stopped):
        return ("stopped" if error else "done"), ""
    return "failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: see the log"


def _chart(rows: Sequence[Row], best: Row | None, metric: str, title: str, scale: float) -> str:
    lines = {split: [(row["epoch"], scale * row[f"{split}_{metric}"]) for row in rows] for split in SPLITS}
    marked = (best["epoch"], scale * best[f"validation_{metric}"], f"best: epoch {best['epoch']}") if best else None
    return curves(title, "epoch", lines, marked)


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    shown = [[f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows]
    return table([name.replace("_", " ") for name in rows[0]], shown)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 3:
        return f"{60 * minutes + rest} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
