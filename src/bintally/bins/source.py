"""Where bins come from: objects by key, in an S3 bucket or a folder laid out like one.

A source holds ``metadata/<id>.json`` and ``bin-images/<id>.jpg``, as the public ABID bucket does.
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
from bintally.demo.warehouse import DemoSource
from bintally.errors import UserError
from bintally.params import Fetch

log = logging.getLogger("bintally.source")
TRIES = 4
KEYS_A_TASK = 16
T = TypeVar("T")
REFUSALS = (
    "NoSuchBucket",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "PermanentRedirect",
    "301",
    "403",
)


def record_key(bin_id: str) -> str:
    return f"metadata/{bin_id}.json"


def image_key(bin_id: str) -> str:
    return f"bin-images/{bin_id}.jpg"


class Source(Protocol):
    """A store of bins."""

    def ids(self) -> list[str]:
        """Every id that has a record, sorted."""

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield (key, bytes), or (key, None) where there is no such object, in any order."""


class ObjectSource:
    """Bins in an object store, read many at once."""

    def __init__(self, store: ObjectStore, name: str, concurrency: int) -> None:
        self._store = store
        self._name = name
        self._concurrency = concurrency

    def ids(self) -> list[str]:
        """Every id that has a record, sorted. Raises UserError if the store cannot be listed."""
        listing = self._tried(
            "be listed",
            "metadata/",
            lambda: [entry["path"] for page in self._store.list("metadata/") for entry in page],
        )
        stems = {PurePosixPath(path).stem for path in listing if path.endswith(".json")}
        if not stems:
            raise UserError(f"{self._name} has no metadata/<id>.json: check fetch.source and its prefix")
        return sorted(stem for stem in stems if ID_PATTERN.fullmatch(stem))

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield (key, bytes or None). Raises UserError where an object cannot be read after a few tries."""
        # Several keys a task: handing over each one by itself would cost about as much as reading it.
        share = max(1, min(KEYS_A_TASK, len(keys) // (4 * self._concurrency)))
        parts = [keys[start : start + share] for start in range(0, len(keys), share)]
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                for part, bodies in zip(parts, pool.map(self._get_all, parts), strict=True):
                    yield from zip(part, bodies, strict=True)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self._get(key) for key in keys]

    def _get(self, key: str) -> bytes | None:
        try:
            return self._tried("be read", key, lambda: bytes(self._store.get(key).bytes()))
        except FileNotFoundError:
            return None

    def _tried(self, what: str, key: str, action: Callable[[], T]) -> T:
        """The result of ``action``, tried a few times. Raises FileNotFoundError as it is, UserError for the rest."""
        for attempt in itertools.count(1):
            try:
                return action()
            except (BaseError, OSError) as error:
                code = _code(error)
                if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
                    raise
                # A refusal stays one however often it is asked again; throttling and time-outs pass.
                if attempt == TRIES or code in REFUSALS:
                    raise self._fault(what, error) from error
                log.info("%s/%s: try %d of %d failed, trying again", self._name, key, attempt, TRIES)
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _fault(self, what: str, error: Exception) -> UserError:
        code = _code(error)
        if code == "NoSuchBucket":
            return UserError(f"{self._name}: there is no such bucket; check fetch.source")
        if code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"):
            return UserError(
                f"{self._name} may not {what}: access denied; check that fetch.source exists, name the ids in "
                "fetch.ids if only listing is forbidden, or sign with AWS credentials by fetch.anonymous: false"
            )
        if code in ("PermanentRedirect", "301"):
            return UserError(f"{self._name} lies in another region; set fetch.region")
        cause = " ".join(str(error).partition("Debug source")[0].split())
        return UserError(f"{self._name} cannot {what}: {cause[:200]}; check fetch.endpoint and the network")


def _code(error: Exception) -> str | None:
    """The S3 error code of a failed request, or its HTTP status where the server gave none."""
    found = re.search(r"<Code>(\w+)</Code>", str(error)) or re.search(r"status code: (\d+)", str(error))
    return found[1] if found else None


def _credentials() -> Any:
    """A callable that gives obstore the credentials AWS tools would use: environment, profile, role."""
    from botocore.session import Session

    found = Session().get_credentials()
    if found is None:
        raise UserError("fetch.anonymous is false but no AWS credentials were found; run `aws configure` or set AWS_*")

    def current() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": None,
        }

    return current


def open_source(fetch: Fetch) -> Source:
    """The source that ``fetch`` names. Raises UserError if it cannot be one."""
    if fetch.source == "demo":
        return DemoSource(fetch.demo_bins, fetch.seed)
    if not fetch.source.startswith("s3://"):
        folder = Path(fetch.source)
        if not folder.is_dir():
            raise UserError(f"fetch.source: '{fetch.source}' is neither demo, nor s3://…, nor a folder that exists")
        return ObjectSource(LocalStore(folder.resolve()), fetch.source, fetch.concurrency)
    url = urlsplit(fetch.source)
    if fetch.anonymous:
        access: dict[str, Any] = {"skip_signature": True}
    else:
        access = {"credential_provider": _credentials()}
    store = S3Store(
        url.netloc,
        prefix=url.path.strip("/") or None,
        endpoint=fetch.endpoint or f"https://s3.{fetch.region}.amazonaws.com",
        region=fetch.region,
        # Retries are ours, where they are logged.
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=0)},
        client_options={"allow_http": True, "connect_timeout": "5s", "timeout": "60s"},
        **access,
    )
    where = f" at {fetch.endpoint}" if fetch.endpoint else ""
    return ObjectSource(store, f"s3://{url.netloc}{url.path.rstrip('/')}{where}", fetch.concurrency)
