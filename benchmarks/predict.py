"""Throughput of `bintally predict` on a folder of photographs, compared with plain PyTorch and a DataLoader.

All run the same model on the CPU over the same JPEG files and write the same CSV; probabilities are checked to agree.
Each runs in a process of its own, in turns. A run on a few files measures the start; rates and costs are those of the
remaining files. Memory is the peak of a process and its children together, shared pages counted once.

bintally      `bintally predict`
plain         one loop: PIL, ToTensor, Normalize, PyTorch, one photograph at a time
plain_loader  the same in batches of 32 from a DataLoader with as many workers as cores

    python benchmarks/predict.py                                   600 demo bins, two cores: about ten minutes
    python benchmarks/predict.py --number 60 --rounds 1            a quick look
    python benchmarks/predict.py --images FOLDER --price 0.34      your own photographs; the price of an hour
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common import ROOT, photographs, report, rounded, say
from common.plain import Plain, make_model

OURS = "bintally"
METHODS = (OURS, "plain", "plain_loader")
BATCH = 32
LOOK_EVERY_S = 0.5


def main() -> None:
    arguments = _arguments()
    if arguments.method:
        _plain(arguments.model, arguments.images, arguments.to, arguments.method == "plain_loader")
        return
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    answers: dict[str, NDArray[np.float64]] = {}
    with tempfile.TemporaryDirectory(prefix="bintally-predict-") as name:
        folder = Path(name)
        model = arguments.model
        if model is None:
            say("making a model")
            make_model(model := folder / "model")
        bodies = photographs(arguments.images, arguments.number)
        if len(bodies) <= arguments.few:
            raise SystemExit(f"{len(bodies)} photographs are too few; give more than {arguments.few}")
        few, all_ = folder / "few", folder / "all"
        for at, body in enumerate(bodies):
            for some in (few, all_) if at < arguments.few else (all_,):
                some.mkdir(exist_ok=True)
                (some / f"{at:06}.jpg").write_bytes(body)
        for turn in range(arguments.rounds):
            for method in METHODS:
                start, _ = _run(method, model, few, folder / f"{method}-few.csv")
                seconds, peak = _run(method, model, all_, folder / f"{method}.csv")
                rate = (len(bodies) - arguments.few) / (seconds - start)
                runs[method].append({"seconds": seconds, "few_s": start, "images_per_second": rate, "peak_bytes": peak})
                say(
                    f"{turn + 1} of {arguments.rounds}, {method}: {seconds:.1f} s, {rate:.1f}/s, {peak / 2**20:.0f} MiB"
                )
                answers[method] = _read(folder / f"{method}.csv", len(bodies))
        differences = {method: rounded(float(np.abs(answers[method] - answers[OURS]).max())) for method in METHODS[1:]}
    for method, difference in differences.items():
        if difference > arguments.tolerance:
            raise SystemExit(
                f"{method} and {OURS} differ by {difference} in a probability; --tolerance allows {arguments.tolerance}"
            )

    best = {
        method: {
            "seconds": rounded(min(run["seconds"] for run in some)),
            "few_s": rounded(min(run["few_s"] for run in some)),
            "images_per_second": rounded(rate := max(run["images_per_second"] for run in some)),
            "peak_mib": round(max(run["peak_bytes"] for run in some) / 2**20),
            "cost_of_1000_images": rounded(arguments.price * 1000 / rate / 3600),
        }
        for method, some in runs.items()
    }
    report(
        "predict",
        {
            key: str(value) if isinstance(value, Path) else value
            for key, value in vars(arguments).items()
            if key != "method"
        }
        | {"images": len(bodies), "image_bytes_mean": round(float(np.mean([len(body) for body in bodies])))},
        best
        | {
            "bintally_times_as_fast_as": {
                method: rounded(best[OURS]["images_per_second"] / best[method]["images_per_second"])
                for method in METHODS[1:]
            },
            "greatest_difference_of_a_probability": differences,
        },
        ["onnxruntime", "pillow", "torch", "torchvision"],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=600, help="number of photographs (default: %(default)s)")
    parser.add_argument(
        "--few", type=int, default=8, help="photographs of the run that measures the start (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="the best of them is reported (default: %(default)s)")
    parser.add_argument("--images", type=Path, metavar="FOLDER|TAR", help="of JPEG files (default: demo bins)")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="default: one of 224 pixels, not trained")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="between probabilities, as resizing by PIL and by torchvision rounds differently (default: %(default)s)",
    )
    parser.add_argument(
        "--price", type=float, default=0.10, help="price of an hour of this machine (default: %(default)s)"
    )
    parser.add_argument("--method", choices=METHODS[1:], help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(method: str, model: Path, images: Path, to: Path) -> tuple[float, int]:
    """Score a folder in an empty working directory; return seconds and the peak of memory in bytes."""
    if method == OURS:
        command = [str(Path(sys.executable).with_name("bintally")), "predict", str(images)]
    else:
        command = [sys.executable, __file__, "--method", method, "--images", str(images)]
    command += ["--to", str(to), "--model", str(model.resolve())]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(dir=to.parent) as place, (to.parent / f"{method}.log").open("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
        peak = 0
        try:
            while process.poll() is None:
                peak = max(peak, _memory(process.pid))
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_EVERY_S)
        finally:
            process.kill()
        seconds = time.perf_counter() - started
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{method} failed:\n{log.read()[-2000:]}")
    return seconds, peak


def _memory(process: int) -> int:
    """Bytes that a process and those it has started hold: their proportional set sizes."""
    folder = Path(f"/proc/{process}")
    try:
        held = int((folder / "smaps_rollup").read_text().split("\nPss:")[1].split()[0]) * 1024
        children = [int(child) for file in folder.glob("task/*/children") for child in file.read_text().split()]
    except (OSError, IndexError):  # it has ended
        return 0
    return held + sum(_memory(child) for child in children)


def _read(path: Path, number: int) -> NDArray[np.float64]:
    """The probabilities of a CSV file, in order of the photographs' names."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: Path(row["id"]).stem)
    if len(rows) != number:
        raise SystemExit(f"{path.name} has {len(rows)} rows for {number} photographs")
    columns = sorted(
        (name for name in rows[0] if name[0] == "p" and name[1:].isdecimal()), key=lambda name: int(name[1:])
    )
    return np.array([[float(row[name]) for name in columns] for row in rows])


# The methods to compare with, each in a process of its own.


def _plain(folder: Path, images: Path, to: Path, loader: bool) -> None:
    from torch.utils.data import DataLoader, Dataset

    plain = Plain(folder)
    paths = sorted(images.glob("*.jpg"))

    class Photographs(Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, at: int) -> Any:
            return plain.decode(paths[at].read_bytes())

    dataset = Photographs()
    batches = (
        DataLoader(dataset, BATCH, num_workers=len(os.sched_getaffinity(0)))
        if loader
        else (dataset[at][None] for at in range(len(paths)))
    )
    rows = np.concatenate([plain.predict(batch).probabilities for batch in batches])
    with to.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", *(f"p{count}" for count in plain.counts)])
        writer.writerows([path.stem, *row.tolist()] for path, row in zip(paths, rows, strict=True))


if __name__ == "__main__":
    main()
