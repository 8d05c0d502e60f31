"""The pipeline on up to 535,234 bins: time, memory and disk of each stage, through the faults of a bucket's server.

A server on loopback gives the objects of a bucket in which a few thousand rendered photographs are repeated
(`common/bucket.py`), answers some requests with 503, 500, a reset, half a body or a slow one, and is restarted in the
middle. The stages run one after the other in a folder of their own, without DVC. What was fetched is compared with the
bucket, byte for byte. Fetch is killed with SIGKILL after three quarters and resumed. The other long stages are run
again, killed in the middle and resumed: they come to the same bytes, `interruption_s` later than without. The
backbone is frozen, the images are small.

    python benchmarks/scale.py                                         1,000 bins, about three minutes
    python benchmarks/scale.py --bins 100000 --only fetch      the stages named, in the folder of --work
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from bintally import paths
from bintally.bins.shards import ShardReader, read_index
from bintally.files import read_csv
from bintally.yaml_files import read_yaml
from common import ROOT, environment, report, rounded, say
from common.bucket import NAME, Bucket, BucketServer, bucket_server, render
from common.usage import MIB, Usage, disk_usage, run_measured


@dataclass(frozen=True)
class Step:
    """A command of the pipeline and what it writes."""

    command: Sequence[str]
    outs: Sequence[Path]
    resumes: bool = False
    """Whether it is long: it is killed in the middle, and resumed."""


def _stage(name: str, *outs: Path, resumes: bool = False) -> Step:
    return Step([sys.executable, "-m", f"bintally.stages.{name}"], outs, resumes)


PREDICTED, PAGE = Path("exports/predictions.csv"), Path("exports/report.html")
STEPS = {
    "fetch": _stage("fetch", paths.BINS, resumes=True),
    "encode": _stage("encode", paths.ENCODED, resumes=True),
    "quality": _stage("quality", paths.QUALITY),
    "split": _stage("split", paths.SPLITS),
    "train": _stage("train", paths.MODELS / "model.safetensors", paths.LOG_PROBABILITIES, paths.EVIDENCE, resumes=True),
    "calibrate": _stage("calibrate", paths.MODELS / "calibration.json", paths.MODELS / "records.json"),
    "evaluate": _stage("evaluate", paths.PREDICTIONS, paths.TEST_METRICS),
    "audit": _stage("audit", paths.AUDIT_METRICS, paths.AUDIT_CURVES),
    "compare": _stage("compare", paths.BENCHMARK),
    "predict": Step(["bintally", "predict", "data", "--to", str(PREDICTED)], [PREDICTED], resumes=True),
    "report": Step(["bintally", "report", "--to", str(PAGE)], [PAGE]),
}


def main() -> None:
    arguments = _arguments()
    rendered = arguments.rendered or Path(tempfile.gettempdir()) / f"bintally-rendered-{arguments.side}"
    render(rendered, arguments.side)
    bucket = Bucket(rendered, arguments.bins)
    with tempfile.TemporaryDirectory(prefix="bintally-scale-") as name:
        folder = arguments.work or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        # More threads would wait for each other where the cores are shared.
        variables = environment(ROOT / "src", Path(name) / "bytecode", OMP_NUM_THREADS="1")
        figures: dict[str, Any] = {}
        with bucket_server(rendered, arguments.bins) as server:
            _write_params(folder, server, arguments)
            for step in arguments.only:
                say(f"{arguments.bins:,} bins: {step}")
                figures[step] = _measure(step, folder, variables, server, bucket, arguments.interrupt)
                say(f"  {figures[step]}")
        parameters = vars(arguments) | {"photograph_bytes": _mean_size(bucket)}
        parameters |= {name: str(parameters[name]) for name in ("rendered", "work")}
        report("scale", parameters, {"steps": figures}, ["torch", "numpy", "pillow"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=1000, help="objects of each kind (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP", help=" ".join(STEPS))
    parser.add_argument("--interrupt", nargs="*", choices=STEPS, metavar="STEP", help="steps to interrupt, too")
    parser.add_argument("--side", type=int, default=224, help="longest side of a photograph (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=64, help="model.image_size (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="train.epochs (default: %(default)s)")
    parser.add_argument("--rendered", type=Path, metavar="FOLDER", help="keeps the rendered photographs")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keeps what the stages write")
    arguments = parser.parse_args()
    if arguments.interrupt is None:
        arguments.interrupt = [name for name in arguments.only if STEPS[name].resumes and name != "fetch"]
    return arguments


def _write_params(folder: Path, server: BucketServer, arguments: argparse.Namespace) -> None:
    """The defaults, with every count, a frozen backbone and one process."""
    params = read_yaml(ROOT / "params.yaml")
    params["fetch"] |= {"source": f"s3://{NAME}", "endpoint": server.endpoint, "per_count": None}
    params["fetch"] |= {"counts": list(range(7)), "open_ended": True}
    params["calibrate"]["counts"] = [1, 2, 3, 4, 5]
    params["model"] |= {"image_size": arguments.image_size, "trainable": "head", "mirror": False}
    params["train"]["epochs"] = arguments.epochs
    params["launch"]["ranks"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def _measure(
    name: str,
    folder: Path,
    variables: dict[str, str],
    server: BucketServer,
    bucket: Bucket,
    interrupted: Sequence[str],
) -> dict[str, Any]:
    step = STEPS[name]
    _remove_outs(step, folder)
    if name == "fetch":
        return _measure_fetch(step, folder, variables, server, bucket)
    disk_before = disk_usage(folder)
    usage = run_measured(step.command, folder, variables)
    figures: dict[str, Any] = {
        "seconds": rounded(usage.seconds, 4),
        "peak_mib": round(usage.peak_mib),
        "peak_disk_mib": rounded((usage.peak_disk - disk_before) / MIB),
        "bins_per_second": rounded(bucket.bins / usage.seconds),
    }
    return figures | (_interrupt(step, folder, variables, usage) if name in interrupted else {})


def _measure_fetch(
    step: Step, folder: Path, variables: dict[str, str], server: BucketServer, bucket: Bucket
) -> dict[str, Any]:
    """Fetch, with the server restarted after half of all requests and the stage killed after three quarters."""
    before, disk_before = server.served(), disk_usage(folder)

    def is_three_quarters(_seconds: float) -> bool:
        served = server.served() - before
        if served["requests"] > bucket.bins and not served["restart"]:
            server.restart()
        return served["requests"] > 1.5 * bucket.bins

    killed = run_measured(step.command, folder, variables, is_three_quarters)
    at_kill, caught_up = server.served(), list[float]()

    def note_first_object(seconds: float) -> bool:
        if not caught_up and server.served()["objects"] > at_kill["objects"]:
            caught_up.append(seconds)
        return False

    resumed = run_measured(step.command, folder, variables, note_first_object)
    served, seconds = server.served(), killed.seconds + resumed.seconds
    checked = _check_bins(folder, bucket)
    peak_disk = max(killed.peak_disk, resumed.peak_disk) - disk_before
    return {
        "seconds": rounded(seconds, 4),
        "peak_mib": round(max(killed.peak_mib, resumed.peak_mib)),
        "peak_mib_until_killed": round(killed.peak_mib),
        "bins_per_second": rounded(bucket.bins / seconds),
        "until_new_objects_s": rounded(caught_up[0]) if caught_up else None,
        "requests_until_killed_and_after": [
            at_kill["requests"] - before["requests"],
            served["requests"] - at_kill["requests"],
        ],
        "served": dict(served - before),
        **checked,
        "peak_disk_mib": rounded(peak_disk / MIB),
        "peak_disk_of_data": rounded(peak_disk / checked["data_bytes"]),
    }


def _interrupt(step: Step, folder: Path, variables: dict[str, str], whole: Usage) -> dict[str, Any]:
    """Run a step again, killed in the middle, and once more. Raises ValueError if it comes to other bytes."""
    expected = _digest(step, folder)
    _remove_outs(step, folder)
    killed = run_measured(step.command, folder, variables, lambda seconds: seconds > whole.seconds / 2)
    resumed = run_measured(step.command, folder, variables)
    if _digest(step, folder) != expected:
        raise ValueError(f"{step.command}: the interrupted run came to other bytes")
    return {
        "was_killed": killed.was_killed,
        "interruption_s": rounded(killed.seconds + resumed.seconds - whole.seconds),
        "peak_mib_resumed": round(resumed.peak_mib),
    }


def _remove_outs(step: Step, folder: Path) -> None:
    for out in step.outs:
        path = folder / out
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _files(step: Step, folder: Path) -> list[Path]:
    outs = (folder / out for out in step.outs)
    return sorted(chain.from_iterable(out.rglob("*") if out.is_dir() else [out] for out in outs))


def _digest(step: Step, folder: Path) -> list[str]:
    digests = []
    for path in _files(step, folder):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests


def _check_bins(folder: Path, bucket: Bucket) -> dict[str, Any]:
    """Compare the fetched bins with the bucket. Raises ValueError if one is lost, doubled, or has other bytes."""
    entries, reader = read_index(folder / paths.BINS), ShardReader(folder / paths.BINS)
    fetched = Counter(entry.id for entry in entries)
    rejected = Counter(row["id"] for row in read_csv(folder / paths.BINS / "rejected.csv"))
    numbers = range(1, bucket.bins + 1)
    good = {bucket.id(number) for number in numbers if bucket.is_good(number)}
    bad = {bucket.id(number) for number in numbers} - good
    if fetched != Counter(good) or rejected != Counter(bad):
        raise ValueError(f"lost or doubled: {sorted((fetched - Counter(good)) + (Counter(good) - fetched))[:10]}")
    for entry in entries:
        if (reader.image(entry), reader.record(entry)) != (bucket.image(int(entry.id)), bucket.record(int(entry.id))):
            raise ValueError(f"{entry.id} has other bytes than the bucket")
    return {
        "bins": len(entries),
        "rejected": rejected.total(),
        "lost_or_doubled": 0,
        "groups": len({entry.group for entry in entries}),
        "data_bytes": sum(entry.image_size + entry.record_size for entry in entries),
        "shard_bytes": disk_usage(folder / paths.BINS),
    }


def _mean_size(bucket: Bucket) -> int:
    numbers = range(1, min(bucket.bins, 10_000) + 1)
    return round(sum(len(bucket.image(number) or b"") for number in numbers) / len(numbers))


if __name__ == "__main__":
    main()
