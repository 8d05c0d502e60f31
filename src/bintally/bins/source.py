"""Where bins come from: objects by key, in an S3 bucket or a folder laid out like one.

A source holds ``metadata/<id>.json`` and ``bin-images/<id>.jpg``, as the public ABID bucket does.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, S3Store

from bintally.bins.demo import DemoSource
from bintally.bins.record import ID_PATTERN
from bintally.faults import Fault
from bintally.params import Fetch

log = logging.getLogger("bintally.source")
TRIES = 4


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
        """Every id that has a record, sorted. Raises Fault if the store cannot be listed."""
        try:
            listing = [entry["path"] for page in self._store.list("metadata/") for entry in page]
        except (BaseError, OSError) as error:
            raise self._fault("be listed", error) from error
        stems = {PurePosixPath(path).stem for path in listing if path.endswith(".json")}
        if not stems:
            raise Fault(f"{self._name} has no metadata/<id>.json: check fetch.source and its prefix")
        return sorted(stem for stem in stems if ID_PATTERN.fullmatch(stem))

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield (key, bytes or None). Raises Fault where an object cannot be read after a few tries."""
        with ThreadPoolExecutor(self._concurrency) as pool:
            try:
                yield from zip(keys, pool.map(self._get, keys), strict=True)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _get(self, key: str) -> bytes | None:
        for attempt in range(1, TRIES + 1):
            try:
                return bytes(self._store.get(key).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise self._fault("be read", error) from error
                return None
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise self._fault("be read", error) from error
            except (BaseError, OSError) as error:
                if attempt == TRIES:
                    raise self._fault("be read", error) from error
                log.info("%s/%s: try %d of %d failed, trying again", self._name, key, attempt, TRIES)
                time.sleep(0.2 * 2**attempt)
        raise AssertionError("unreachable")

    def _fault(self, what: str, error: Exception) -> Fault:
        text = str(error)
        if "NoSuchBucket" in text:
            return Fault(f"{self._name}: there is no such bucket; check fetch.source")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            return Fault(
                f"{self._name} may not {what}: access denied; check fetch.source, give the ids in fetch.ids if only "
                "listing is forbidden, or set fetch.anonymous to false to use AWS credentials"
            )
        if isinstance(error, FileNotFoundError):
            return Fault(f"{self._name} is not there; check fetch.source")
        return Fault(f"{self._name} cannot {what}: {_cause(error)}; check fetch.endpoint and the network")


def _cause(error: Exception) -> str:
    """The innermost reason a client reports, without its debugging output."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return first.partition("Debug source")[0][:300].strip()


def _credentials() -> Any:
    """A callable that gives obstore the credentials AWS tools would use: environment, profile, role."""
    from botocore.session import Session

    found = Session().get_credentials()
    if found is None:
        raise Fault("fetch.anonymous is false but no AWS credentials were found; run `aws configure` or set AWS_*")

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
    """The source that ``fetch`` names. Raises Fault if it cannot be one."""
    if fetch.source == "demo":
        return DemoSource(fetch.demo_bins, fetch.seed)
    if not fetch.source.startswith("s3://"):
        folder = Path(fetch.source)
        if not folder.is_dir():
            raise Fault(f"fetch.source: '{fetch.source}' is neither demo, nor s3://…, nor a folder that exists")
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
