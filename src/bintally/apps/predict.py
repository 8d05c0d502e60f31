"""`bintally predict`: what the model says of photographs, wherever they lie and however many they are.

They are scored in parts. A part that is finished is a file, so that what is interrupted goes on from there, and what is
in memory does not grow with their number.
"""

import csv
import fcntl
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bintally import paths
from bintally.apps.photographs import Photographs, Read, open_photographs
from bintally.errors import UserError, disk_full_as_user_error
from bintally.files import SCRATCH, atomic_write
from bintally.hashing import sha256_hex, source_code
from bintally.inference.predictor import Predictor
from bintally.memory import configure_malloc
from bintally.model.card import default_device, load_model
from bintally.params import load_params
from bintally.progress import progress
from bintally.scoring.calibration import Calibration, Floats, answer, load_calibration
from bintally.scoring.decoding import DECODINGS

PART = 256  # photographs in a file; a multiple of every batch, as the last digits of a row depend on its batch
ANSWERS = (*DECODINGS, "low", "high", "unsure")

log = logging.getLogger("bintally")


@dataclass(frozen=True)
class Part:
    """Photographs that were scored, and those that could not be with the reason, each in order."""

    ids: list[str]
    probabilities: Floats
    """(ids, counts)."""
    rejected: list[tuple[str, str]]


@dataclass(frozen=True)
class Scores:
    """Everything that was scored, part by part from the disk."""

    calibration: Calibration
    files: list[Path]

    def __iter__(self) -> Iterator[Part]:
        for file in self.files:
            table = pq.read_table(file)
            ids, reasons = (table.column(name).to_pylist() for name in ("id", "reason"))
            good = np.array([reason is None for reason in reasons])
            columns = [table.column(f"p{count}").to_numpy() for count in self.calibration.counts]
            yield Part(
                [one for one, reason in zip(ids, reasons, strict=True) if reason is None],
                np.stack(columns, 1)[good],
                [(one, reason) for one, reason in zip(ids, reasons, strict=True) if reason is not None],
            )


def write_predictions(source: str, to: Path, models: Path, access: Mapping[str, object], ids: Path | None) -> None:
    """Write what the model in ``models`` says of each photograph of ``source`` to a CSV or Parquet file.

    What cannot be scored goes to ``<to>-rejected.csv`` with the reason. ``source``, ``access`` and ``ids`` are as
    :func:`bintally.apps.photographs.open_photographs` takes them. Raises UserError if there is no such source or model, if
    a source fails, or if the same is being done by another process.
    """
    if to.suffix not in (".csv", ".parquet"):
        raise UserError(f"--to: '{to}' must end in .csv or .parquet")
    make_folder(to.parent)
    photographs = open_photographs(source, paths.BINS, lambda: load_params().fetch, access, ids)
    rejected = to.with_name(f"{to.stem}-rejected.csv")
    why: Counter[str] = Counter()
    with scored(photographs, models) as scores:
        with atomic_write(rejected) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["id", "reason"])
            for part in scores:
                writer.writerows(part.rejected)
                why.update(reason for _, reason in part.rejected)
        (_write_csv if to.suffix == ".csv" else _write_parquet)(to, scores)
    print(f"{to}: {len(photographs.ids) - why.total():,} photographs of {photographs.name}")
    print(f"{rejected}: {why.total():,} that could not be scored")
    for reason, number in why.most_common(5):
        print(f"  {number:,}: {reason}")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to: cannot write to {folder}: {error.strerror}") from error


@contextmanager
def scored(photographs: Photographs, models: Path) -> Iterator[Scores]:
    """Score photographs, or what is left of them; what was kept for going on is removed when the block ends well.

    Raises UserError if there is no model, if the source fails, or if another process is at it.
    """
    needed = [models / name for name in ("model.safetensors", "card.json", "calibration.json")]
    for path in needed:
        if not path.is_file():
            raise UserError(f"{path} is not there: `dvc repro` makes it, `bintally pull` fetches it")
    calibration = load_calibration(models)
    about = "\n".join([default_device().type, photographs.version, *photographs.ids]).encode()
    key = sha256_hex(*(path.read_bytes() for path in needed), source_code("apps", "model"), about)
    folder = SCRATCH / "predict" / key[:16]
    files = [folder / f"{start:09}.parquet" for start in range(0, len(photographs.ids), PART)]
    with _alone(folder.parent / "lock", key, photographs.name), disk_full_as_user_error(folder):
        done = next((number for number, file in enumerate(files) if not file.exists()), len(files))
        if done:
            log.info("predict: going on after %d of %d", min(done * PART, len(photographs.ids)), len(photographs.ids))
        if done < len(files):
            configure_malloc()
            predictor = Predictor(*load_model(models), calibration)
            _score(predictor, photographs.images, photographs.ids[done * PART :], files[done:])
        yield Scores(calibration, files)
        shutil.rmtree(folder)


@contextmanager
def _alone(path: Path, key: str, name: str) -> Iterator[None]:
    """Hold one byte of a file, which is free again when this process ends, however it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
        except BlockingIOError as error:
            raise UserError(
                f"{name} is being scored by another process already: wait for it, or end it first"
            ) from error
        yield


def _score(predictor: Predictor, images: Callable[[Sequence[str]], Any], ids: list[str], files: list[Path]) -> None:
    counts = predictor.calibration.counts
    with progress("predict", len(ids), "photographs") as advance:
        batches = _decoded(predictor, images(ids))
        for file in files:
            columns: dict[str, list[Any]] = {"id": [], "reason": [], **{f"p{count}": [] for count in counts}}
            for batch in islice(batches, PART // predictor.batch):
                good = [pixels for _, pixels in batch if isinstance(pixels, torch.Tensor)]
                rows = iter(predictor.distributions(torch.stack(good)).tolist() if good else [])
                for one, pixels in batch:
                    reason = pixels if isinstance(pixels, str) else None
                    row = [None] * len(counts) if reason else next(rows)
                    for column, value in zip(columns.values(), [one, reason, *row], strict=True):
                        column.append(value)
                advance(len(batch))
            kinds = [pa.string(), pa.string(), *[pa.float64()] * len(counts)]
            with atomic_write(file) as temporary:
                pq.write_table(pa.table(columns, pa.schema(zip(columns, kinds, strict=True))), temporary)


def _decoded(predictor: Predictor, reads: Iterable[tuple[str, Read]]) -> Iterator[list[tuple[str, torch.Tensor | str]]]:
    """Batches of ids with their pixels, or why there are none, read and decoded one batch ahead of the caller."""

    def pixels(read: Read) -> torch.Tensor | str:
        try:
            return predictor.decode(read())
        except UserError as fault:
            return str(fault)
        except OSError as error:
            return error.strerror or str(error)

    # One thread an image: nested thread teams would fight the network's for the cores.
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: list[tuple[str, Future[torch.Tensor | str]]] = []
        source = iter(reads)
        while True:
            following = [(one, pool.submit(pixels, read)) for one, read in islice(source, predictor.batch)]
            if waiting:
                yield [(one, future.result()) for one, future in waiting]
            if not following:
                return
            waiting = following


def _write_csv(path: Path, scores: Scores) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", *ANSWERS, *(f"p{count}" for count in scores.calibration.counts)])
        for part in scores:
            answers = answered(part.probabilities, scores.calibration)
            for one, said, row in zip(part.ids, answers, part.probabilities, strict=True):
                writer.writerow([one, *said, *(f"{p:.8g}" for p in row)])


def answered(probabilities: Floats, calibration: Calibration) -> list[list[int]]:
    """What is answered for each row, in the order of ANSWERS."""
    said = answer(probabilities, calibration)
    columns = [*(said.decoded[rule] for rule in DECODINGS), said.low, said.high, said.unsure.astype(np.int64)]
    return np.stack(columns, 1).tolist()  # type: ignore[no-any-return]


def _write_parquet(path: Path, scores: Scores) -> None:
    counts = scores.calibration.counts
    schema = pa.schema(
        [("id", pa.string()), *((name, pa.int64()) for name in ANSWERS[:-1]), ("unsure", pa.bool_())]
        + [(f"p{count}", pa.float64()) for count in counts]
    )
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for part in scores:
            answers = np.array(answered(part.probabilities, scores.calibration), np.int64).reshape(-1, len(ANSWERS))
            columns = [part.ids, *answers.T[:-1], answers[:, -1].astype(bool), *part.probabilities.T]
            writer.write_table(pa.table([pa.array(values) for values in columns], schema=schema))
