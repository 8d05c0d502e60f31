"""What the benchmarks share: bins made quickly, a clock, and one JSON report."""

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
DRAWN = 32  # bins really drawn; the others are copies of them that differ in a few bytes
DEMO_BYTES = 28_000  # as they are rendered


def make_bins(number: int, image_bytes: int, seed: int = 1) -> list[Bin]:
    """Good bins in order of id, no two files equal; an image has about `image_bytes` bytes, a record its own."""
    warehouse = DemoWarehouse(seed)
    good = (n for n in count(1) if warehouse.fault(n) is None and warehouse.bin(n).count in COUNTS)
    drawn = [
        (warehouse.bin(n).count, _sized(warehouse.image(n) or b"", image_bytes), warehouse.record(n))
        for n in islice(good, min(number, DRAWN))
    ]
    made = []
    for n in range(number):
        items, image, record = drawn[n % len(drawn)]
        id_ = f"{n + 1:05}"
        # What follows the end of a JPEG, and a name that no reader knows in a record, change nothing.
        made.append(Bin(id_, items, id_, image + id_.encode(), b'{"copy": "' + id_.encode() + b'",' + record[1:]))
    return made


def _sized(image: bytes, wanted: int) -> bytes:
    """The same picture, encoded anew at the least quality that has `wanted` bytes, or at the best."""
    picture = Image.open(io.BytesIO(image))
    again = b""
    for quality in range(40, 101, 2):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        again = file.getvalue()
        if len(again) >= wanted:
            break
    return again


def photographs(source: Path | None, number: int) -> list[bytes]:
    """At most so many JPEG files of a folder or a tar archive, in order of name; None: of demo bins."""
    if source is None:
        return [one.image for one in make_bins(number, DEMO_BYTES)]
    if source.is_dir():
        return [path.read_bytes() for path in islice(sorted(source.rglob("*.jpg")), number)]
    with tarfile.open(source) as archive:
        members = sorted((one for one in archive if one.name.endswith(".jpg")), key=lambda one: one.name)
        files = (archive.extractfile(one) for one in members[:number])
        return [file.read() for file in files if file]


class Clock:
    """Seconds since the start, running or at the end."""

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
    """A clock that stops when the block ends, and says so."""
    clock = Clock()
    yield clock
    clock.stop()
    say(f"{what}: {clock.seconds:.2f} s")


def say(text: str) -> None:
    """A line for whoever is waiting."""
    print(text, file=sys.stderr, flush=True)


def environment(source: Path, bytecode: Path, **more: str) -> dict[str, str]:
    """For commands in a scratch repository: this interpreter's tools, the package in `source`, nobody's settings.

    Python keeps compiled modules unless it is told not to, and starts several seconds sooner with them; where it
    is told so, commands keep them in the folder `bytecode` instead of beside the sources.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_", "GIT_"))}
    people = {
        f"GIT_{who}_{what}": "benchmark@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    if inherited.pop("PYTHONDONTWRITEBYTECODE", ""):
        inherited["PYTHONPYCACHEPREFIX"] = str(bytecode)
    return {
        **inherited,
        **people,
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), inherited.get("PATH", os.defpath)]),
        "PYTHONPATH": str(source),
        "PYTHONUNBUFFERED": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_NO_ANALYTICS": "1",
        **more,
    }


def rounded(value: float, digits: int = 3) -> float:
    """`value` to so many significant digits."""
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
