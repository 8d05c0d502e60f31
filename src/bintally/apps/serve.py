"""`bintally serve`: the model over HTTP."""

import argparse
import logging
import os
import shutil
import tempfile
from pathlib import Path

from bintally import paths
from bintally.apps.arguments import non_negative_int, port, positive_int
from bintally.errors import UserError
from bintally.files import SCRATCH, file_lock

TOKEN_VARIABLE = "BINTALLY_TOKEN"  # noqa: S105

log = logging.getLogger("bintally")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Counts the items in photographs over HTTP: POST /invocations takes JPEG or PNG, /openapi.json describes the "
        "rest, / is a page to try it. On SIGTERM the server answers what it admitted and exits with 0. "
        f"A token from --token-file or the environment variable {TOKEN_VARIABLE} is required of clients as "
        "'Authorization: Bearer TOKEN'."
    )
    add = parser.add_argument
    add("--host", type=_not_empty, default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=port, default=8080, help="0: any free port (default: %(default)s)")
    model = parser.add_mutually_exclusive_group()
    content = "with model.safetensors, card.json, calibration.json, records.json (default: %(default)s)"
    model.add_argument(
        "--model", type=lambda text: Path(_not_empty(text)), default=paths.MODELS, metavar="FOLDER", help=content
    )
    model.add_argument(
        "--rev", type=_not_empty, help="serve the model of this tag, branch, commit or experiment, fetched through DVC"
    )
    add("--queue", type=positive_int, default=64, help="images admitted and not yet answered (default: %(default)s)")
    wait = "how long a batch that is not full waits for images being decoded (default: %(default)s)"
    add("--wait-ms", type=non_negative_int, default=5, help=wait)
    add("--max-bytes", type=positive_int, default=10 * 2**20, help="size of a request's body (default: %(default)s)")
    timeout = "refuse images that would wait longer; also the time to stop within (default: %(default)s)"
    add("--timeout", type=positive_int, default=30, metavar="SECONDS", help=timeout)
    add("--token-file", type=Path, metavar="FILE", help=f"replaces {TOKEN_VARIABLE}")
    add("--open", action="store_true", help="listen beyond loopback, or answer to any name there, without a token")
    parser.set_defaults(func=run)


def _not_empty(text: str) -> str:
    """The text, which is empty where a script's variable is unset. Raises ArgumentTypeError then."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty; give a value, or leave the option out")
    return text


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises UserError for a token, model or address that is unusable."""
    token = read_token(arguments.token_file)

    from bintally.serving.endpoint import Limits
    from bintally.serving.server import listen, serve

    limits = Limits(arguments.queue, arguments.wait_ms / 1000, arguments.max_bytes, arguments.timeout)
    with listen(arguments.host, arguments.port, token is not None, arguments.open) as address:
        folder = arguments.model if arguments.rev is None else fetch_model(arguments.rev)
        serve(address, folder, limits, token)


def read_token(file: Path | None) -> str | None:
    """The token in a file, else in the environment, else None. Raises UserError if it is unreadable or malformed."""
    if file is None:
        token, origin = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if token is None:
            return None
    else:
        origin = f"--token-file {file}"
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{origin} cannot be read: {error}") from error
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"{origin} holds no token: use one word of visible ASCII, such as of `openssl rand -hex 32`")
    return token


def fetch_model(rev: str) -> Path:
    """The folder with the model of a tag, branch, commit or experiment, from DVC's cache or its remote.

    Raises UserError if the revision does not exist or its model cannot be fetched.
    """
    # Serving a folder needs no DVC.
    from dvc.exceptions import DvcException
    from dvc.scm import RevError, SCMError, resolve_rev

    from bintally.apps.remote import remote_server
    from bintally.apps.repository import open_repository

    with open_repository() as repo:
        try:
            commit = resolve_rev(repo.scm, rev)
        except (DvcException, RevError, SCMError) as error:
            raise UserError(
                f"--rev {rev} is no revision here: {error}; `git tag` and `dvc exp show` list them"
            ) from error
    folder: Path = SCRATCH / "served" / commit
    with file_lock(folder):  # two servers may fetch the same model
        if not all((folder / name).is_file() for name in paths.MODEL_FILES):
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                fetched = Path(temporary) / "model"
                try:
                    _copy_model(commit, fetched, remote="")
                except UserError:  # not in the cache
                    with remote_server():
                        _copy_model(commit, fetched)
                shutil.rmtree(folder, ignore_errors=True)
                fetched.rename(folder)
    log.info("%s is %s", rev, commit[:7])
    return folder


def _copy_model(commit: str, to: Path, **core: str) -> None:
    """Copy the model of a commit with other settings of DVC's section `core`. Raises UserError if that fails."""
    from dvc.api import DVCFileSystem

    from bintally.scoring.record_model import FILE

    to.mkdir(exist_ok=True)
    try:
        filesystem = DVCFileSystem(rev=commit, config={"core": core})
        names = [*paths.MODEL_FILES]
        if filesystem.exists(str(paths.MODELS / FILE)):
            names.append(FILE)
        for name in names:
            filesystem.get_file(str(paths.MODELS / name), str(to / name))
    except Exception as error:  # each kind of remote has errors of its own
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:200]
        raise UserError(f"the model of commit {commit[:7]} cannot be fetched: {reason}") from error
