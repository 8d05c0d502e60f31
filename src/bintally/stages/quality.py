"""Judge every photograph, and how probable its record is to a model that has not learned from it."""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, fields
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from bintally.bins.images import decode_fetched
from bintally.bins.quality import REASONS, Measures, measure, near_duplicates, reasons, table
from bintally.bins.shards import Entry, ShardReader, iter_index
from bintally.bins.trained_on import ENCODED_FILE
from bintally.distributed.process_group import RankContext, use_deterministic_algorithms
from bintally.errors import disk_full_as_user_error
from bintally.files import METRIC_DIGITS, SCRATCH, read_columns, read_csv, write_csv, write_json
from bintally.hashing import sha256_hex, source_code
from bintally.memory import configure_malloc
from bintally.model.backbone import Backbone
from bintally.model.encoded import Encoded, MemoryMappedRows, load_encoded
from bintally.model.encoding import encode
from bintally.model.out_of_fold import out_of_fold
from bintally.params import Params
from bintally.paths import BINS, ENCODED, QUALITY, QUALITY_METRICS
from bintally.progress import progress
from bintally.resources import available_cpus, default_device
from bintally.stages import run

SEED = 1  # of the folds
FEATURES = SCRATCH / "quality/features"
DIGITS = 6
AHEAD = 256  # photographs measured ahead of those written
SHARES = (0.02, 0.05, 0.1)  # of the bins, those with the least probable records


def main(params: Params) -> None:
    configure_malloc()
    # Without the places in the shards, which take most of the memory.
    ids, groups, bin_counts = read_columns(BINS / "index.csv", "id", "group", "count")
    measured = _measure(len(ids))
    first = near_duplicates(measured)
    why = reasons(measured, first)
    encoded = load_encoded(ENCODED)
    features = encoded.rows if encoded.encoding.kind == "features" else _features(params, encoded, len(ids))
    counts = params.fetch.counts
    classes = np.searchsorted(counts, np.minimum([*map(int, bin_counts)], counts[-1]))
    probabilities = out_of_fold(features, classes, groups, SEED)
    of_record = probabilities[np.arange(len(ids)), classes]
    shutil.rmtree(FEATURES, ignore_errors=True)
    measures = [field.name for field in fields(Measures)]
    known = ["" if np.isnan(probability) else probability for probability in of_record.tolist()]
    earlier = ["" if row is None else ids[row] for row in first]
    rows = (
        (bin_id, *one.item(), earlier[row], known[row], " ".join(why[row]))
        for row, (bin_id, one) in enumerate(zip(ids, measured, strict=True))
    )
    write_csv(QUALITY, ["id", *measures, "near_duplicate_of", "record_probability", "reasons"], rows, DIGITS)
    numbers = Counter(reason for one in why for reason in one)
    metrics: dict[str, Any] = {
        "photographs": len(ids),
        "good": sum(not one for one in why),
        "reasons": {reason: numbers[reason] for reason in REASONS},
    }
    if params.fetch.source == "demo":
        metrics["known"] = _compared_with_demo(params.fetch.seed, ids, why, of_record)
    write_json(QUALITY_METRICS, metrics, METRIC_DIGITS)


def _measure(number: int) -> NDArray[np.void]:
    """The measures of all photographs, ``number`` of them; those in the scratch folder are not measured again.

    They stay there, since another `model.backbone` runs this stage again and changes none of them.
    """
    photographs, code = (ENCODED / ENCODED_FILE).read_bytes(), source_code("bins/images.py", "bins/quality.py")
    libraries = " ".join(version(name) for name in ("pillow", "imagehash", "scipy", "numpy"))
    key = sha256_hex((BINS / "index.csv").read_bytes(), photographs, code, libraries.encode())[:16]
    path = SCRATCH / "quality" / f"{key}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    for outdated in set(path.parent.glob("*.csv")) - {path}:
        outdated.unlink()
    known = sum(1 for _ in _read_measures(path))
    reader, waiting = ShardReader(BINS), islice(iter_index(BINS), known, None)

    def measured(entry: Entry) -> Measures:
        return measure(decode_fetched(reader.image(entry), entry.id))

    with (
        disk_full_as_user_error(path),
        path.open("a", encoding="ascii", newline="") as file,
        progress("photographs", number - known, "photographs") as advance,
        ThreadPoolExecutor(available_cpus()) as pool,
    ):
        writer = csv.writer(file, lineterminator="\n")
        while some := list(islice(waiting, AHEAD)):
            writer.writerows(map(astuple, pool.map(measured, some)))
            file.flush()
            advance(len(some))
    return table(_read_measures(path), number)


def _read_measures(path: Path) -> Iterator[Measures]:
    """Yield the measures of the lines up to the first that is not whole; it and what follows are cut off."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            try:
                width, height, *values, perceptual = line.decode("ascii").rstrip("\n").split(",")
                sharp, bright, dark, contrast = map(float, values)
                measures = Measures(int(width), int(height), sharp, bright, dark, contrast, perceptual)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            end += len(line)
            yield measures
        file.truncate(end)


def _features(params: Params, encoded: Encoded, number: int) -> MemoryMappedRows:
    """Features of the backbone as it is before training, where what is encoded are pixels."""
    model = params.model
    backbone = Backbone(model.backbone, model.image_size, model.features)
    backbone.load_state_dict(encoded.backbone_state)
    pixels = encoded.rows
    images = [partial(lambda row: torch.from_numpy(pixels.take(row)[0]), np.array([row])) for row in range(number)]
    code = source_code("model/backbone.py", "model/encoding.py", "model/resumable_array.py")
    key = sha256_hex(encoded.encoding.digest.encode(), model.model_dump_json().encode(), code)
    use_deterministic_algorithms()
    context = RankContext(0, 1, default_device(), is_main=True)
    scratch = SCRATCH / "quality/encode"
    encode(FEATURES, images, backbone, model.image_size, "features", False, context, scratch, key)
    return MemoryMappedRows(FEATURES / "array.npy")


def _compared_with_demo(seed: int, ids: list[str], why: list[list[Any]], of_record: Any) -> dict[str, Any]:
    """Precision and recall of what is known of the demo's bins."""
    from bintally.demo.warehouse import DemoWarehouse  # not needed for real bins

    warehouse = DemoWarehouse(seed)
    rejected = [row["id"] for row in read_csv(BINS / "rejected.csv")]
    defects = {one: warehouse.defect(int(one)) for one in [*rejected, *ids]}
    among = {kind: np.array([defects[one] == kind for one in ids]) for kind in ("blurred", "wrong record")}
    broken = {one for one, defect in defects.items() if defect not in (None, *among)}
    blurred = np.array(["blurred" in one for one in why])
    wrong, ascending = among["wrong record"], np.argsort(of_record, kind="stable")  # unknown ones are the last
    return {
        "broken": {
            "precision": float(np.mean([one in broken for one in rejected])) if rejected else None,
            "recall": float(np.mean([one in rejected for one in broken])) if broken else None,
        },
        "blurred": _precision_and_recall(blurred, among["blurred"]),
        "wrong_record": {
            "auc": float(roc_auc_score(wrong, -np.nan_to_num(of_record, nan=1)))
            if wrong.any() and not wrong.all()
            else None,
            **{
                f"least_probable_{share:.0%}".replace("%", "_percent"): _precision_and_recall(
                    np.isin(np.arange(len(ids)), ascending[: round(share * len(ids))]), wrong
                )
                for share in SHARES
            },
        },
    }


def _precision_and_recall(found: Any, true: Any) -> dict[str, float | None]:
    return {
        "precision": float(true[found].mean()) if found.any() else None,
        "recall": float(found[true].mean()) if true.any() else None,
    }


if __name__ == "__main__":
    run("quality", main)
