"""An S3 bucket as a source of bins."""

import html
import http.client
import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from bintally.bins.connections import MAX_BODY_S, PIECE, WAIT_S, BodyGivenUp, Connections, Unreachable
from bintally.bins.objects import (
    DENIED,
    IMAGES,
    RECORDS,
    SIGN,
    UNCHANGED,
    Memory,
    Unread,
    max_bytes,
    read_concurrently,
    record_ids,
    too_large,
)
from bintally.errors import UserError, printable
from bintally.params import Fetch

log = logging.getLogger("bintally.source")
MAX_ATTEMPTS = 4  # until the server has answered once
MAX_ATTEMPTS_LATER = 7  # 25 s in all: as long as it takes to start a server anew
FIRST_PAUSE_S = 0.4  # after the first attempt; twice as long after each other
MAX_FAILED_IN_A_ROW = 32  # objects; more are a server that is down, and not objects that are damaged
MAX_ERROR_BYTES = 2**16
MAX_PAGE_BYTES = 2**24  # of the listing: 1,000 keys are about 350 KB
MAX_LISTED = 5_000_000  # keys
MAX_LISTING_S = 3600.0
MAX_PAGES_WITHOUT_KEYS = 100
CREDENTIALS_REFUSED = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
SAFE = "/~"  # what the signature of a request leaves as it is

Headers = dict[str, str]


@dataclass(frozen=True)
class _Response:
    status: int
    body: bytes | None  # None: too long
    named_region: str | None  # the header, as it came

    @property
    def code(self) -> str:
        """The code of an S3 error, or else the HTTP status."""
        # An object may hold anything, a code too.
        found = None if self.status == 200 else re.search(rb"<Code>([A-Za-z0-9.]{1,64})</Code>", self.body or b"")
        return found[1].decode() if found else str(self.status)

    @property
    def is_temporary(self) -> bool:
        return self.status in (408, 429) or self.status >= 500 or self.code in ("RequestTimeout", "SlowDown")

    @property
    def region(self) -> str | None:
        """The bucket's region, where the server says that it is another one; "" if it does not say which."""
        if self.status not in (301, 302, 307, 308) and self.code != "AuthorizationHeaderMalformed":
            return None
        in_body = re.search(rb"<Region>([^<]{1,64})</Region>", self.body or b"")
        region = self.named_region or (in_body[1].decode(errors="replace") if in_body else "")
        return region if re.fullmatch(r"[a-z0-9-]{1,64}", region) else ""


class _Failed(Exception):
    """No usable answer after all attempts; the message is the reason, in a few words.

    Its cause is a UserError where the answer says what the user can mend.
    """


class S3Source:
    """Bins in a bucket, read with concurrent requests, each in up to MAX_ATTEMPTS_LATER attempts."""

    def __init__(self, fetch: Fetch) -> None:
        """Raises UserError if requests are to be signed and there are no credentials."""
        bucket, _, prefix = fetch.source.removeprefix("s3://").partition("/")
        url = (fetch.endpoint or f"https://s3.{fetch.region}.amazonaws.com").rstrip("/")
        self._prefix = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
        self._name = f"s3://{bucket}/{self._prefix}".rstrip("/") + (f" at {fetch.endpoint}" if fetch.endpoint else "")
        self._bucket_path, self._threads = f"/{bucket}", fetch.concurrency
        self._sign = (lambda _path: {}) if fetch.anonymous else signer(url, fetch.region)
        self._connections = Connections(url)
        self._remedy = f"check fetch.{'endpoint' if fetch.endpoint else 'region'} and the network"
        self._ids: list[str] | None = None  # once listed, of half a million in 535 pages
        self._has_answered = False  # for the bucket: what it then refuses is one object
        self._failed_in_a_row, self._lock = 0, threading.Lock()

    def ids(self) -> list[str]:
        if self._ids is None:
            self._ids = record_ids((name for name, _ in self._listed(RECORDS)), self._name)
        return self._ids

    def digests(self) -> Iterator[tuple[str, str]]:
        records = list[str]()
        for folder in (RECORDS, IMAGES):
            for name, md5 in self._listed(folder):
                if folder == RECORDS:
                    records.append(name)
                if md5:
                    yield f"{folder}/{name}", md5
        self._ids = record_ids(records, self._name)

    def read(
        self, keys: Sequence[str], known: Mapping[str, str] | None = None
    ) -> Iterator[tuple[str, bytes | Unread | None]]:
        digests = known or {}
        return read_concurrently(keys, lambda key, memory: self._read(key, digests.get(key), memory), self._threads)

    def _read(self, key: str, md5: str | None, memory: Memory) -> bytes | Unread | None:
        path = f"{self._bucket_path}/{quote(self._prefix + key, safe=SAFE)}"
        condition = {"If-None-Match": f'"{md5}"'} if md5 else {}  # the entity tag of an object is its MD5, as a rule
        try:
            response = self._request(path, "be read", max_bytes(key), condition, memory)
            if refusal := self._refusal(response, "be read"):
                if not self._has_answered:
                    raise refusal
                raise _Failed(f"the server answered {response.code}") from refusal
            found: bytes | Unread | None
            match response.status:
                case 200:
                    found = too_large(key) if response.body is None else response.body
                case 304 if md5:
                    found = UNCHANGED
                case 404:
                    found = None
                case 401 | 403:
                    found = DENIED
                case _:
                    raise _Failed(f"the server answered {response.code}")
        except _Failed as failure:
            with self._lock:
                self._failed_in_a_row += 1
            if self._failed_in_a_row > MAX_FAILED_IN_A_ROW:
                if isinstance(failure.__cause__, UserError):
                    raise failure.__cause__ from None
                raise self._unusable("be read", f"{failure}, for each of the last {MAX_FAILED_IN_A_ROW}") from failure
            return Unread(f"cannot be read: {failure}")
        self._failed_in_a_row, self._has_answered = 0, True
        return found

    def _listed(self, of: str) -> Iterator[tuple[str, str]]:
        """The keys in a folder, without its name, each with its MD5, or "" where the entity tag is none.

        Raises UserError if the listing has no end.
        """
        start, folder = time.monotonic(), f"{self._prefix}{of}/"
        names, listed, pages_without_keys = list[tuple[str, str]](), 0, 0
        query = {"list-type": "2", "prefix": folder}
        while True:
            before, page = names, self._page(query)
            objects = [_key_and_md5(part) for part in page.split(b"<Key>")[1:]]
            names = [(key.removeprefix(folder), md5) for key, md5 in objects if key.startswith(folder)]
            yield from names
            if not re.search(rb"<IsTruncated>\s*true\s*<", page):
                return
            token = re.search(rb"<NextContinuationToken>([^<]{1,4000})</NextContinuationToken>", page)
            pages_without_keys = 0 if names and names != before else pages_without_keys + 1
            listed += len(names)
            if not token or pages_without_keys > MAX_PAGES_WITHOUT_KEYS:
                raise self._endless("its next page brings nothing new")
            if listed > MAX_LISTED or time.monotonic() - start > MAX_LISTING_S:
                raise self._endless(f"it goes on after {listed:,} keys and {time.monotonic() - start:.0f} s")
            query["continuation-token"] = html.unescape(token[1].decode(errors="replace"))

    def _page(self, query: Mapping[str, str]) -> bytes:
        path = f"{self._bucket_path}?{urlencode(query, quote_via=quote, safe='~')}"
        try:
            response = self._request(path, "be listed", MAX_PAGE_BYTES)
        except _Failed as failure:
            raise self._unusable("be listed", str(failure)) from failure
        if refusal := self._refusal(response, "be listed"):
            raise refusal
        if response.status in (401, 403):
            raise self._denied("be listed")
        if response.status != 200:
            raise self._unusable("be listed", f"the server answered {response.code}")
        if response.body is None:
            raise self._endless(f"one of its pages has more than {MAX_PAGE_BYTES:,} bytes")
        if b"<ListBucketResult" not in response.body:
            raise self._unusable("be listed", "the answer is no listing of S3")
        self._has_answered = True
        return response.body

    def _request(
        self, path: str, purpose: str, limit: int, headers: Headers | None = None, memory: Memory | None = None
    ) -> _Response:
        """Return the answer, after as many attempts as it takes.

        Raises UserError if the server cannot be reached, _Failed if it gives no usable answer.
        """
        stopped = memory.stopped if memory else threading.Event()
        for attempt in itertools.count(1):
            error: Exception
            try:
                response = self._get(path, limit, headers or {}, memory)
                if not response.is_temporary:
                    return response
                error = _Failed(f"the server answered {response.code}")
            except Unreachable as unreachable:
                error = self._unusable(purpose, str(unreachable))
            except BodyGivenUp:
                raise _Failed(f"it took more than {MAX_BODY_S:.0f} s") from None
            except TimeoutError:
                error = _Failed(f"it stood still, or {PIECE} bytes took more than {WAIT_S:.0f} s")
            except (http.client.HTTPException, OSError) as broken:
                is_cut = isinstance(broken, http.client.IncompleteRead | OSError)
                error = _Failed("the connection was cut" if is_cut else "the answer is not HTTP")
            attempts = MAX_ATTEMPTS_LATER if self._has_answered else MAX_ATTEMPTS
            if attempt >= attempts or stopped.is_set():
                raise error
            # First attempts fail by the thousand in a large bucket.
            level = logging.DEBUG if attempt == 1 else logging.INFO
            log.log(level, "%s: attempt %d of %d for %s failed, retrying", self._name, attempt, attempts, path)
            stopped.wait(FIRST_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _get(self, path: str, limit: int, headers: Headers, memory: Memory | None) -> _Response:
        connection, answer = self._connections.get(path, self._sign(path) | headers)
        try:
            if answer.status != 200:
                limit = MAX_ERROR_BYTES
            body = None
            if answer.length is None or answer.length <= limit:
                if memory:
                    memory.reserve(limit if answer.length is None else answer.length)
                body = answer.body(limit, memory.stopped if memory else None)
            return _Response(answer.status, body, answer.headers.get("x-amz-bucket-region"))
        finally:
            self._connections.keep(connection, answer)

    def _refusal(self, response: _Response, purpose: str) -> UserError | None:
        """The error to end with if the answer is about the bucket or the credentials, and not about one object."""
        if response.code == "NoSuchBucket":
            return UserError(f"{self._name}: the bucket does not exist; check fetch.source")
        if response.code in CREDENTIALS_REFUSED:
            remedy = "check the AWS credentials and the clock, or set fetch.anonymous: true for a public bucket"
            return UserError(f"{self._name} cannot {purpose}: {response.code}; {remedy}")
        if response.region is not None:
            region = f"to '{response.region}'" if response.region else "to the bucket's, or check fetch.endpoint"
            return UserError(f"{self._name} is in another region than fetch.region says; set fetch.region {region}")
        return None

    def _denied(self, purpose: str) -> UserError:
        return UserError(
            f"{self._name} cannot {purpose}: access denied; check that fetch.source exists, list the ids in "
            f"fetch.ids if only listing is forbidden, or {SIGN}"
        )

    def _unusable(self, purpose: str, why: str) -> UserError:
        return UserError(f"{self._name} cannot {purpose}: {why}; {self._remedy}")

    def _endless(self, why: str) -> UserError:
        return UserError(
            f"{self._name}: the listing has no end ({why}); check the server, or list the ids in fetch.ids"
        )


def _key_and_md5(listed: bytes) -> tuple[str, str]:
    """The key at the start of a part of a listing, "" if it is none, and its MD5 if the entity tag after it is one."""
    key = re.match(rb"([^<]{1,4000})</Key>", listed)
    tag = re.search(rb'<ETag>(?:&quot;|&#34;|")?([0-9a-f]{32})(?:&quot;|&#34;|")?</ETag>', listed)
    return html.unescape(key[1].decode(errors="replace")) if key else "", tag[1].decode() if tag else ""


def signer(url: str, region: str) -> Callable[[str], Headers]:
    """Return a function that signs a GET request for a path of ``url`` and returns its headers.

    Credentials are those of the environment, a profile or a role, in the order of the AWS tools.

    Raises UserError if there are none.
    """
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    def unusable(error: Exception) -> UserError:
        text = printable(str(error))[:200].rstrip(".")
        return UserError(
            f"fetch.anonymous is false and the AWS credentials cannot be used: {text}; see `aws configure`"
        )

    try:
        credentials = Session().get_credentials()
    except BotoCoreError as error:
        raise unusable(error) from error
    if credentials is None:
        raise UserError("fetch.anonymous is false but no AWS credentials were found; run `aws configure` or set AWS_*")

    def sign(path: str) -> Headers:
        request = AWSRequest("GET", url + path)
        try:
            S3SigV4Auth(credentials.get_frozen_credentials(), "s3", region).add_auth(request)
        except BotoCoreError as error:
            raise unusable(error) from error
        headers = {name: str(value) for name, value in request.headers.items()}
        if not all(value.isascii() and value.isprintable() for value in headers.values()):
            raise unusable(ValueError("they hold characters that are no part of a key, such as line ends"))
        return headers

    return sign
