"""Sources of bins: an S3 bucket, or a folder with the same layout.

A source has the objects ``metadata/<id>.json`` and ``bin-images/<id>.jpg``, as the public ABID bucket does.
"""

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, S3Store

from bintally.bins.record import ID_PATTERN
from bintally.errors import UserError
from bintally.params import Fetch

log = logging.getLogger("bintally.source")
MAX_ATTEMPTS = 4
MAX_KEYS_PER_TASK = 16
T = TypeVar("T")
ACCESS_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403")
WRONG_REGION = ("PermanentRedirect", "301")
NOT_RETRIED = ("NoSuchBucket", *ACCESS_DENIED, *WRONG_REGION)  # throttling and time-outs pass, these do not


def record_key(bin_id: str) -> str:
    return f"metadata/{bin_id}.json"


def image_key(bin_id: str) -> str:
    return f"bin-images/{bin_id}.jpg"


class Source(Protocol):
    """A store of bins. Both methods raise UserError if it cannot be read."""

    def ids(self) -> list[str]:
        """Return the id of every record, sorted."""

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield (key, bytes), or (key, None) if the object does not exist, in any order."""


class ObjectSource:
    """Bins in an object store, read with concurrent requests, each in up to MAX_ATTEMPTS attempts."""

    def __init__(self, store: ObjectStore, name: str, concurrency: int) -> None:
        self._store, self._name, self._concurrency = store, name, concurrency

    def ids(self) -> list[str]:
        pages = self._with_retries("be listed", "metadata/", lambda: list(self._store.list("metadata/")))
        paths = [PurePosixPath(entry["path"]) for page in pages for entry in page]
        stems = {path.stem for path in paths if path.suffix == ".json"}
        if not stems:
            raise UserError(f"{self._name} has no metadata/<id>.json: check fetch.source and its prefix")
        return sorted(stem for stem in stems if ID_PATTERN.fullmatch(stem))

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        # Several keys per task: a task of one key would cost about as much as reading it.
        size = max(1, min(MAX_KEYS_PER_TASK, len(keys) // (4 * self._concurrency)))
        chunks = [keys[start : start + size] for start in range(0, len(keys), size)]
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for objects in pool.map(lambda chunk: [(key, self._get(key)) for key in chunk], chunks):
                    yield from objects
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _get(self, key: str) -> bytes | None:
        try:
            return self._with_retries("be read", key, lambda: bytes(self._store.get(key).bytes()))
        except FileNotFoundError:
            return None

    def _with_retries(self, purpose: str, key: str, request: Callable[[], T]) -> T:
        """Return the result of a request, with retries and exponential backoff.

        Raises FileNotFoundError if the object does not exist, UserError for any other failure.
        """
        for attempt in itertools.count(1):
            try:
                return request()
            except (BaseError, OSError) as error:
                code = _code(error)
                if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
                    raise
                if attempt == MAX_ATTEMPTS or code in NOT_RETRIED:
                    raise self._user_error(purpose, error) from error
                log.info("%s/%s: attempt %d of %d failed, retrying", self._name, key, attempt, MAX_ATTEMPTS)
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _user_error(self, purpose: str, error: Exception) -> UserError:
        code = _code(error)
        if code == "NoSuchBucket":
            return UserError(f"{self._name}: the bucket does not exist; check fetch.source")
        if code in ACCESS_DENIED:
            return UserError(
                f"{self._name} cannot {purpose}: access denied; check that fetch.source exists, list the ids in "
                "fetch.ids if only listing is forbidden, or set fetch.anonymous: false to sign with AWS credentials"
            )
        if code in WRONG_REGION:
            return UserError(f"{self._name} is in another region; set fetch.region")
        cause = " ".join(str(error).partition("Debug source")[0].split())
        return UserError(f"{self._name} cannot {purpose}: {cause[:200]}; check fetch.endpoint and the network")


def _code(error: Exception) -> str | None:
    """The S3 error code of a failed request, or its HTTP status if the server gave no code."""
    found = re.search(r"<Code>(\w+)</Code>", str(error)) or re.search(r"status code: (\d+)", str(error))
    return found[1] if found else None


def _credentials() -> Any:
    """A credential provider for obstore: environment, profile or role, in the order of the AWS tools."""
    from botocore.session import Session

    found = Session().get_credentials()
    if found is None:
        raise UserError("fetch.anonymous is false but no AWS credentials were found; run `aws configure` or set AWS_*")

    def current() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        keys = {"access_key_id": frozen.access_key, "secret_access_key": frozen.secret_key}
        return keys | {"token": frozen.token, "expires_at": None}

    return current


def open_source(fetch: Fetch) -> Source:
    """Open the bucket or folder `fetch.source`. Raises UserError if the folder does not exist.

    `demo` is neither; the caller opens it as a :class:`bintally.demo.warehouse.DemoSource`.
    """
    if not fetch.source.startswith("s3://"):
        folder = Path(fetch.source)
        if not folder.is_dir():
            raise UserError(f"fetch.source: '{fetch.source}' is neither demo, nor s3://…, nor an existing folder")
        return ObjectSource(LocalStore(folder.resolve()), fetch.source, fetch.concurrency)
    url = urlsplit(fetch.source)
    access: dict[str, Any] = {"skip_signature": True} if fetch.anonymous else {"credential_provider": _credentials()}
    store = S3Store(
        url.netloc,
        prefix=url.path.strip("/") or None,
        endpoint=fetch.endpoint or f"https://s3.{fetch.region}.amazonaws.com",
        region=fetch.region,
        # obstore does not log its retries, so ObjectSource retries.
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=0)},
        client_options={"allow_http": True, "connect_timeout": "5s", "timeout": "60s"},
        **access,
    )
    where = f" at {fetch.endpoint}" if fetch.endpoint else ""
    return ObjectSource(store, f"s3://{url.netloc}{url.path.rstrip('/')}{where}", fetch.concurrency)
