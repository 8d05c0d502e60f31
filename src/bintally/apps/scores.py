"""Probabilities of counts for any number of photographs.

They are computed in parts, each a file: an interrupted run continues after the last finished part, and memory does not
grow with the number of photographs.
"""

import fcntl
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bintally import paths
from bintally.apps.arguments import require_outs
from bintally.apps.photographs import Photographs, ReadFile, ReadFiles, one_ahead
from bintally.bins.images import BadImage
from bintally.errors import UserError, disk_full_as_user_error, printable
from bintally.files import SCRATCH, atomic_write, check_writable
from bintally.hashing import file_digest, sha256_hex, source_code
from bintally.inference.predictor import Predictions, Predictor
from bintally.memory import configure_malloc
from bintally.model.card import load_model
from bintally.progress import progress
from bintally.resources import default_device
from bintally.scoring.calibration import Calibration, Floats, load_calibration, model_name

FEATURES = b"features"  # of a list; in a part's metadata
PART = 256  # photographs in a file; a multiple of every batch size, as the last digits of a row depend on its batch

log = logging.getLogger("bintally")


@dataclass(frozen=True)
class ScoredPart:
    """Photographs that were scored, and those that could not be, each in order."""

    ids: list[str]
    probabilities: Floats  # (ids, counts)
    tables: Floats  # (ids, features, counts) of evidence
    distance_ranks: Floats  # (ids,) as in Predictions
    rejected: list[tuple[str, str]]  # id and reason


@dataclass(frozen=True)
class Scores:
    """All photographs of a run, read from disk part by part."""

    calibration: Calibration
    model: str  # its name in predictions
    files: list[Path]

    def __iter__(self) -> Iterator[ScoredPart]:
        for file in self.files:
            table = _read_part(file)
            scored, rejected = table.filter(table["reason"].is_null()), table.filter(table["reason"].is_valid())
            probabilities = np.stack([scored[f"p{count}"].to_numpy() for count in self.calibration.counts], 1)
            shape = len(scored), int(table.schema.metadata[FEATURES]), len(self.calibration.counts)
            tables = np.array(scored["evidence"].to_pylist(), np.float64).reshape(shape)
            ranks = scored["distance_rank"].to_numpy()
            reasons = zip(rejected["id"].to_pylist(), rejected["reason"].to_pylist(), strict=True)
            yield ScoredPart(scored["id"].to_pylist(), probabilities, tables, ranks, list(reasons))


@dataclass(frozen=True)
class _Rejected:
    reason: str
    was_read: bool  # if not, the next attempt may succeed


@contextmanager
def score_photographs(photographs: Photographs, model_folder: Path) -> Iterator[Scores]:
    """Score photographs, continuing an interrupted run; its files are removed if the block raises nothing.

    Raises UserError if the model is missing, the source fails, or another process scores the same photographs.
    """
    model_files = [model_folder / name for name in paths.MODEL_FILES]
    require_outs(*model_files)
    calibration = load_calibration(model_folder)
    libraries = [f"{name} {version(name)}" for name in ("torch", "torchvision", "onnxruntime", "pillow")]
    job = "\n".join([default_device().type, *libraries, photographs.version, *photographs.ids])
    code = source_code("apps", "bins", "demo", "inference", "model")
    key = sha256_hex(*map(file_digest, model_files), code, job.encode(errors="surrogateescape"))
    folder = SCRATCH / "predict" / key[:16]
    files = [folder / f"{start:09}.parquet" for start in range(0, len(photographs.ids), PART)]
    with _exclusive(folder.parent / "lock", key, photographs.name), disk_full_as_user_error(folder):
        missing = [number for number, file in enumerate(files) if not _is_finished(file)]
        ids = [one for number in missing for one in photographs.ids[number * PART : (number + 1) * PART]]
        if len(missing) < len(files):
            log.info("predict: continuing after %d of %d", len(photographs.ids) - len(ids), len(photographs.ids))
        if missing:
            configure_malloc()
            predictor = Predictor(*load_model(model_folder), calibration)
            _score(predictor, photographs.images, ids, [files[number] for number in missing])
        yield Scores(calibration, model_name(model_folder), files)
        if files:
            shutil.rmtree(folder)


@contextmanager
def _exclusive(path: Path, key: str, name: str) -> Iterator[None]:
    """Lock one byte of a file, at an offset that the key gives; the lock ends with this process."""
    check_writable(path)
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:15], 16))
        except BlockingIOError as error:
            raise UserError(f"another process is scoring {name}: wait for it, or end it first") from error
        yield


def _read_part(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{file} is damaged: remove {file.parent} and run it again") from error


def _is_finished(file: Path) -> bool:
    """Whether a part is there, and no photograph of it is to be read again: access may now be allowed."""
    return file.exists() and all(_read_part(file)["was_read"].to_pylist())


def _score(predictor: Predictor, images: ReadFiles, ids: Sequence[str], files: Sequence[Path]) -> None:
    counts = [f"p{count}" for count in predictor.calibration.counts]
    columns = [("id", pa.string()), ("reason", pa.string()), ("was_read", pa.bool_())]
    evidence = ("evidence", pa.list_(pa.float64()))  # a flattened table
    metadata = {FEATURES: str(predictor.list_features)}
    rank = ("distance_rank", pa.float64())
    schema = pa.schema([*columns, *((name, pa.float64()) for name in counts), evidence, rank], metadata)
    unscored = [None] * (len(counts) + 2)
    with progress("predict", len(ids), "photographs") as advance:
        batches = _decoded_batches(predictor, images(ids))
        for file in files:
            rows: list[list[object]] = []
            for batch in islice(batches, PART // predictor.batch_size):
                decoded = [pixels for _, pixels in batch if isinstance(pixels, torch.Tensor)]
                predictions = iter(_rows(predictor.predict(torch.stack(decoded))) if decoded else [])
                for file_id, pixels in batch:
                    if isinstance(pixels, _Rejected):
                        rows.append([file_id, pixels.reason, pixels.was_read, *unscored])
                        continue
                    distribution, table, distance_rank = next(predictions)
                    if all(map(math.isfinite, (*distribution, *table))):
                        rows.append([file_id, None, True, *distribution, table, distance_rank])
                    else:
                        rows.append([file_id, "its probabilities are not finite", True, *unscored])
                advance(len(batch))
            with atomic_write(file) as temporary:
                pq.write_table(pa.table(list(map(list, zip(*rows, strict=True))), schema=schema), temporary)


def _rows(predictions: Predictions) -> Iterator[tuple[list[float], list[float], float]]:
    """The probabilities, the flattened table and the rank of each photograph's distance."""
    tables = predictions.tables.reshape(len(predictions.tables), -1)
    ranks = predictions.distance_ranks.tolist()
    return zip(predictions.probabilities.tolist(), tables.tolist(), ranks, strict=True)


def _decoded_batches(
    predictor: Predictor, reads: Iterable[tuple[str, ReadFile]]
) -> Iterator[list[tuple[str, torch.Tensor | _Rejected]]]:
    """Batches of ids with pixels, or with the reason why there are none, decoded one batch ahead of the caller."""

    def decode(read: ReadFile) -> torch.Tensor | _Rejected:
        try:
            return predictor.decode(read())
        except BadImage as error:
            return _Rejected(printable(str(error)), was_read=True)
        except UserError as error:
            return _Rejected(printable(str(error)), was_read=False)
        except OSError as error:
            return _Rejected(printable(error.strerror or str(error)), was_read=False)

    # One thread per image: nested thread teams would compete with the network for the cores.
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        decoding = ((file_id, pool.submit(decode, read)) for file_id, read in reads)
        for batch in one_ahead(iter(lambda: list(islice(decoding, predictor.batch_size)), [])):
            yield [(file_id, future.result()) for file_id, future in batch]
