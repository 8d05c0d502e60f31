"""What a person sees of a training while it goes on: its epochs as lines and as a page, dvclive's curves, TensorBoard.

None of it changes what is learned. The curves are an out of the stage; lines and page lie in a folder that is none, so
that they outlive a stage that fails.
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

if TYPE_CHECKING:  # it brings torch
    from bintally.training.loop import EpochMetrics

FOLLOWED = "BINTALLY_EPOCHS"  # names a file that gets the lines, too, for who does not know where an experiment runs
TENSORBOARD = "BINTALLY_TENSORBOARD"
DRAW_EVERY_S = 1.0
LOAD_EVERY_S = 3
SPLITS, METRICS = ("train", "validation"), ("loss", "accuracy")
LISTED = 8  # epochs in the page's table
GOING_ON = "going on"

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


class Live:
    """Tells of one training from ``with`` on until its end, whatever that is.

    ``folder`` comes to hold ``epochs.jsonl`` (the run's key, then a line an epoch, then the fault it ended by, if it
    did) and ``index.html``; ``plots`` what dvclive writes.
    """

    def __init__(self, plots: Path, folder: Path, key: str, epochs: int) -> None:
        self._plots, self._folder, self._key, self._epochs = plots, folder, key, epochs
        self._rows: list[Row] = []
        self._began: tuple[int, float] | None = None  # how many steps were done, and when
        self._done, self._total = 0, 1  # steps
        self._drawn = -math.inf

    def __enter__(self) -> Self:
        """Raises UserError where TensorBoard is asked for and cannot be had."""
        from dvclive.live import Live as Curves

        self._curves = Curves(str(self._plots), dvcyaml=None, report=None, save_dvc_exp=False, monitor_system=False)
        self._board: Any = None
        if board := tensorboard_folder():
            from torch.utils.tensorboard import SummaryWriter

            # A training that goes on after an interruption tells of its earlier epochs again.
            self._board = SummaryWriter(str(board / self._name()), purge_step=0)
        lines, followed = self._folder / "epochs.jsonl", os.environ.get(FOLLOWED)
        write_text(lines, json.dumps({"key": self._key}) + "\n")
        self._lines = [lines, Path(followed)] if followed else [lines]
        self._draw(GOING_ON)
        log.info("to watch the training, open %s", (self._folder / "index.html").resolve().as_uri())
        return self

    def epoch(self, epoch: "EpochMetrics") -> None:
        """Tell of an epoch: one from before an interruption, or one just finished."""
        row = asdict(epoch)
        self._rows.append(row)
        self._say(row)
        self._curves.step = epoch.epoch
        for split in SPLITS:
            for metric in METRICS:
                self._curves.log_metric(f"{split}/{metric}", row[f"{split}_{metric}"])
        self._curves.log_metric("train/gradient_norm", row["gradient_norm"])
        self._curves.make_summary()
        if self._board:
            for name in row.keys() - {"epoch"}:
                self._board.add_scalar(name.replace("_", "/", 1), row[name], epoch.epoch)
            self._board.flush()
        self._draw(GOING_ON)

    def step(self, done: int, total: int) -> None:
        """Tell how many steps are done, and how many there will be."""
        self._began = self._began or (done, time.monotonic())
        self._done, self._total = done, total
        self._draw(GOING_ON)

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            self._say({"fault": str(error)})
        self._draw(*_ending(error))
        if self._board:
            self._board.close()
        if error is None:
            self._curves.end()

    def _say(self, content: Row) -> None:
        for path in self._lines:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(content) + "\n")

    def _name(self) -> str:
        """That of the experiment, if it is one."""
        return os.environ.get("DVC_EXP_NAME") or self._key[:8]

    # --- the page ------------------------------------------------------------------------------------------

    def _draw(self, state: str, reason: str = "") -> None:
        """Write the page, but while it goes on only once in a while."""
        now = time.monotonic()
        if state == GOING_ON and now - self._drawn < DRAW_EVERY_S:
            return
        self._drawn = now
        rows = self._rows
        best = min((row for row in rows if math.isfinite(row["validation_loss"])), key=_loss, default=None)
        far = [f"{rows[-1]['epoch'] + 1 if rows else 0} of {self._epochs} epochs"]
        far += [f"{self._done:,} of {self._total:,} steps"] if self._done else []
        far += [self._left(now)] if state == GOING_ON else []
        why = f'<p class="reason">{escape(reason)}</p>' if reason else ""
        kept = f"<p>EpochMetrics {best['epoch']} has the least validation loss.</p>" if best else ""
        body = (
            f"<h1>Training: {state}</h1>{why}<p>{' · '.join(far)}</p>"
            f'<progress value="{self._done}" max="{self._total}"></progress>'
            f"<section>{_chart(rows, best, 'loss', 'Loss, nats', 1)}"
            f"{_chart(rows, best, 'accuracy', 'Accuracy, %', 100)}</section>{kept}{_table(rows[-LISTED:][::-1])}"
            f"<p><small>{escape(self._name())}, in {escape(str(Path.cwd()))}; {time.strftime('%H:%M:%S')}</small></p>"
        )
        again = LOAD_EVERY_S if state == GOING_ON else None
        write_text(self._folder / "index.html", document(f"Training: {state}", body, STYLE, again))

    def _left(self, now: float) -> str:
        if self._began is None or self._done == self._began[0]:
            return "the time left is not known yet"
        seconds = (self._total - self._done) * (now - self._began[1]) / (self._done - self._began[0])
        end = time.strftime("%H:%M", time.localtime(time.time() + seconds))
        return f"{_duration(seconds)} left, until {end}"


def tensorboard_folder() -> Path | None:
    """Where TensorBoard's files are wanted, if they are. Raises UserError if the place or the package will not do."""
    told = os.environ.get(TENSORBOARD)
    if not told:
        return None
    if not Path(told).is_absolute():
        raise UserError(f"{TENSORBOARD}: '{told}' must be absolute, for an experiment may run in a folder of its own")
    if find_spec("tensorboard") is None:
        raise UserError(f"{TENSORBOARD}={told} needs the package tensorboard: `pip install tensorboard`, or unset it")
    return Path(told)


def _ending(error: BaseException | None) -> tuple[str, str]:
    """How a training ended, and why."""
    if error is None or isinstance(error, Stopped):
        return ("stopped" if error else "done"), ""
    return "failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: its log says more"


def _loss(row: Row) -> float:
    return float(row["validation_loss"])


def _chart(rows: Sequence[Row], best: Row | None, metric: str, title: str, scale: float) -> str:
    lines = {split: [(row["epoch"], scale * row[f"{split}_{metric}"]) for row in rows] for split in SPLITS}
    marked = (best["epoch"], scale * best[f"validation_{metric}"], f"best: epoch {best['epoch']}") if best else None
    return curves(title, "epoch", lines, marked)


def _table(rows: Sequence[Row]) -> str:
    header = [name.replace("_", " ") for name in rows[0]] if rows else []
    shown = [[f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row.values()] for row in rows]
    return table(header, shown) if rows else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 3:
        return f"{60 * minutes + rest} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
