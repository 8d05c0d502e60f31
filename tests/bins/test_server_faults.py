"""A fetch from a server that answers with errors, resets, halves and slow bodies, and is restarted in the middle."""

import threading
import time
from contextlib import closing
from pathlib import Path

from bintally.bins.source import open_source
from bintally.bins.staging import Staging
from bintally.bins.subset import iter_bins, select_bins
from bintally.demo.warehouse import BLOCK
from common.bucket import FAULTS, NAME, Bucket, BucketServer, bucket_server, render
from s3_stub import fetch_params

BINS = 1000  # enough for each of FAULTS


def restart_when(server: BucketServer, requests: int) -> None:
    while server.served()["requests"] < requests:
        time.sleep(0.01)
    server.restart()


def test_no_bin_is_lost_or_doubled_by_the_faults_of_a_server(tmp_path: Path) -> None:
    render(tmp_path / "rendered", 64, 2 * BLOCK)
    bucket = Bucket(tmp_path / "rendered", BINS)
    with bucket_server(tmp_path / "rendered", BINS) as server:
        params = fetch_params(f"s3://{NAME}", server.endpoint, counts=[2, 3, 4], open_ended=True, concurrency=32)
        restarting = threading.Thread(target=restart_when, args=(server, BINS // 2))
        restarting.start()
        with closing(Staging(tmp_path / "objects.sqlite")) as staging:
            subset = select_bins(open_source(params), params, staging)
            fetched = list(iter_bins(subset, staging))
        restarting.join()
        served = server.served()
    assert served.keys() >= {*FAULTS, "restart"}
    good = [number for number in range(1, BINS + 1) if bucket.is_good(number)]
    assert [int(one.id) for one in fetched] == good
    assert len(good) + len(subset.rejected) == BINS
    for one in fetched:
        assert (one.image, one.record) == (bucket.image(int(one.id)), bucket.record(int(one.id)))
