"""`bintally store`: the S3 server of the default remote, in the foreground."""

import argparse
import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bintally.apps.arguments import port
from bintally.apps.remote import OTHER_FOLDER, USERS, default_remote, free_port, write_keys
from bintally.apps.seaweedfs import FOLDER, HOST, s3_server
from bintally.errors import UserError
from bintally.files import check_writable, file_lock, write_text

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dir", type=Path, default=FOLDER, metavar="FOLDER", help="folder of its data (default: %(default)s)")
    add("--port", type=port, help="default: the port of the default DVC remote, or another if that is taken")
    public = "a bucket that anyone may list and read (repeatable)"
    add("--public", action="append", default=[], metavar="BUCKET", help=public)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the server until SIGINT or SIGTERM. Raises UserError if it cannot start."""
    remote, folder = default_remote(), arguments.dir
    preferred = remote.loopback_port
    port = arguments.port or (free_port(preferred) if preferred else None)
    if port is None:
        raise UserError(f"the default remote {remote.url} is not on loopback; choose a port with --port")
    check_writable(USERS)
    with ExitStack() as server:
        with file_lock(USERS):  # as `bintally repro` and `bintally pull` do
            # Blocked before the server starts, so that a signal at any moment stops it.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            buckets = [remote.bucket] if preferred else []
            store = server.enter_context(s3_server(folder, port, buckets, arguments.public))
            keys = folder / "keys.json"
            if preferred:
                write_keys(replace(remote, endpoint=store.endpoint), folder)
                write_text(OTHER_FOLDER, str(folder.resolve()))
                keys = Path(".dvc/config.local")
        print(f"S3 at {store.endpoint}, data in {folder}, keys in {keys}", flush=True)
        if any(os.environ.get(name) for name in ("HTTP_PROXY", "http_proxy")):
            print(f"A proxy is set: `export NO_PROXY={HOST}` for `dvc push` and others beside it.", flush=True)
        print("Ctrl-C stops it.", flush=True)
        signal.sigwait(STOP_SIGNALS)
