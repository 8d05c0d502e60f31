"""Shared by the benchmarks: bins made quickly, a clock, and one JSON report."""

import io
import json
import os
import platform
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import Any

from PIL import Image

from bintally.bins.shards import Bin
from bintally.demo.warehouse import DemoWarehouse

ROOT = Path(__file__).resolve().parents[2]
COUNTS = [1, 2, 3, 4, 5]
RENDERED = 32  # bins that are rendered; the rest are copies that differ in a few bytes
DEMO_BYTES = 28_000  # of a rendered image


def make_bins(number: int, image_bytes: int, seed: int = 1) -> list[Bin]:
    """Valid bins in order of id, no two files equal, with images of about `image_bytes` bytes."""
    warehouse = DemoWarehouse(seed)
    valid = (n for n in count(1) if warehouse.defect(n) is None and warehouse.bin(n).count in COUNTS)
    rendered = [
        (warehouse.bin(n).count, _sized(warehouse.image(n) or b"", image_bytes), warehouse.record(n))
        for n in islice(valid, min(number, RENDERED))
    ]
    made = []
    for n in range(number):
        items, image, record = rendered[n % len(rendered)]
        id_ = f"{n + 1:05}"
        # Readers ignore what follows the end of a JPEG, and unknown keys of a record.
        made.append(Bin(id_, items, id_, image + id_.encode(), b'{"copy": "' + id_.encode() + b'",' + record[1:]))
    return made


def _sized(image: bytes, wanted: int) -> bytes:
    """The image encoded again at the lowest JPEG quality that gives `wanted` bytes, or at quality 100."""
    picture = Image.open(io.BytesIO(image))
    encoded = b""
    for quality in range(40, 101, 2):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        encoded = file.getvalue()
        if len(encoded) >= wanted:
            break
    return encoded


def photographs(source: Path | None, number: int) -> list[bytes]:
    """Up to `number` JPEG files of a folder or a tar archive, in order of name; of demo bins if `source` is None."""
    if source is None:
        return [one.image for one in make_bins(number, DEMO_BYTES)]
    if source.is_dir():
        return [path.read_bytes() for path in islice(sorted(source.rglob("*.jpg")), number)]
    with tarfile.open(source) as archive:
        members = sorted((one for one in archive if one.name.endswith(".jpg")), key=lambda one: one.name)
        files = (archive.extractfile(one) for one in members[:number])
        return [file.read() for file in files if file]


class Clock:
    """Seconds since the start, until `stop`."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._end: float | None = None

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self._end is None else self._end) - self._start

    def stop(self) -> None:
        self._end = time.perf_counter()


@contextmanager
def timed(what: str) -> Iterator[Clock]:
    """A clock that stops, and prints its time, when the block ends."""
    clock = Clock()
    yield clock
    clock.stop()
    say(f"{what}: {clock.seconds:.2f} s")


def say(text: str) -> None:
    """Print a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def environment(source: Path, bytecode: Path, **more: str) -> dict[str, str]:
    """Environment of commands in a scratch repository: this interpreter's tools, the package in `source`.

    Settings of AWS, DVC and git are left out. Compiled modules save seconds at every start: if PYTHONDONTWRITEBYTECODE
    is set, they are kept in the folder `bytecode` instead of beside the sources.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_", "GIT_"))}
    identity = {
        f"GIT_{role}_{key}": "benchmark@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    if inherited.pop("PYTHONDONTWRITEBYTECODE", ""):
        inherited["PYTHONPYCACHEPREFIX"] = str(bytecode)
    return {
        **inherited,
        **identity,
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), inherited.get("PATH", os.defpath)]),
        "PYTHONPATH": str(source),
        "PYTHONUNBUFFERED": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_NO_ANALYTICS": "1",
        **more,
    }


def rounded(value: float, digits: int = 3) -> float:
    """`value` rounded to significant digits."""
    return float(f"{value:.{digits}g}")


def report(name: str, parameters: dict[str, Any], figures: dict[str, Any], packages: Sequence[str]) -> None:
    """Print the one JSON object of a benchmark."""
    content = {
        "benchmark": name,
        **figures,
        "parameters": parameters,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }
    print(json.dumps(content, indent=2, allow_nan=False), flush=True)
