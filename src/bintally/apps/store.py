"""`bintally store`: the S3 server of the default remote, in the foreground."""

import argparse
import signal
from pathlib import Path

from bintally.apps.arguments import port
from bintally.apps.remote import default_remote, write_keys
from bintally.apps.seaweedfs import FOLDER, s3_server
from bintally.errors import UserError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dir", type=Path, default=FOLDER, metavar="FOLDER", help="folder of its data (default: %(default)s)")
    add("--port", type=port, help="default: the port of the default DVC remote")
    public = "a bucket that anyone may list and read (repeatable)"
    add("--public", action="append", default=[], metavar="BUCKET", help=public)
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the server until SIGINT or SIGTERM. Raises UserError if it cannot start."""
    remote = default_remote()
    port = arguments.port or remote.loopback_port
    if port is None:
        raise UserError(f"the default remote {remote.url} is not on loopback; choose a port with --port")
    # Blocked before the server starts, so that a signal at any moment stops it.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    with s3_server(arguments.dir, port, [remote.bucket], arguments.public) as store:
        write_keys(remote, arguments.dir)
        print(f"S3 at {store.endpoint}, data in {arguments.dir}, keys in .dvc/config.local", flush=True)
        print("Ctrl-C stops it.", flush=True)
        signal.sigwait(STOP_SIGNALS)
