"""Buckets whose server answers as S3 does, as a hostile one may, or not at all."""

import hashlib
import itertools
import logging
import socket
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import pytest

from bintally.apps.seaweedfs import Store
from bintally.bins import connections, s3
from bintally.bins.objects import DENIED, UNCHANGED, Unread, image_key, record_key
from bintally.bins.s3 import S3Source
from bintally.bins.source import open_source
from bintally.errors import UserError
from s3_stub import Answer, Request, error, fetch_params, listing, stub_server


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(endpoint: str, **changes: object) -> str:
    """The message of the UserError that a listing ends with, in one short line."""
    with pytest.raises(UserError) as caught:
        open_source(fetch_params("s3://b", endpoint, **changes)).ids()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400
    return message


def test_a_listing_is_read_to_its_end_and_only_names_of_records_count(caplog: pytest.LogCaptureFixture) -> None:
    pages = {
        None: listing(["p/metadata/", "p/metadata/.DS_Store", "p/metadata/00002.json", "p/metadata/1.json"], "a&amp;b"),
        "a&b": listing(["p/metadata/a b.json", "p/metadata/old/3.json", "p/metadata/é\x1b.json", "p/metadata/4.txt"]),
    }
    with stub_server(lambda request: pages[request.query.get("continuation-token")]) as stub:
        assert open_source(fetch_params("s3://b/p/", stub.endpoint)).ids() == ["00002", "1"]
    assert stub.requests[0].query["prefix"] == "p/metadata/"
    assert "3 records are left out" in caplog.text
    assert "'a b.json', 'old/3.json', 'é\\x1b.json'" in caplog.text


def endless_pages() -> Iterator[Answer]:
    for number in itertools.count():
        yield listing([f"metadata/{number}-{key}.json" for key in range(10)], f"token{number}")


@pytest.mark.parametrize(
    "pages",
    [
        itertools.repeat(listing(["metadata/1.json"], "same")),
        (listing(["metadata/1.json"], f"token{number}") for number in itertools.count()),
        (listing([], f"token{number}") for number in itertools.count()),
        itertools.repeat(Answer(b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>")),
        endless_pages(),
        itertools.repeat(listing([f"metadata/{number}.json" for number in range(3000)])),
    ],
    ids=["same token", "same page", "empty pages", "no token", "ever new keys", "a page too large"],
)
def test_a_listing_without_end_is_a_user_error(pages: Iterator[Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MAX_LISTED", 500)
    monkeypatch.setattr(s3, "MAX_PAGE_BYTES", 100_000)
    with stub_server(lambda _: next(pages)) as stub:
        assert "the listing has no end" in refusal(stub.endpoint)
    assert len(stub.requests) <= s3.MAX_PAGES_WITHOUT_KEYS + 2


def test_a_listing_that_takes_too_long_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MAX_LISTING_S", 0)
    pages = endless_pages()
    with stub_server(lambda _: next(pages)) as stub:
        assert "10 keys" in refusal(stub.endpoint)


@pytest.mark.parametrize("filling", ["<Key>", "<Key>&#" + "9" * 5000 + ";</Key>", "<Key>" + "&" * 5000 + "</Key>"])
def test_a_page_of_anything_is_read_in_a_moment(filling: str) -> None:
    page = f"<ListBucketResult>{filling * (2_000_000 // len(filling))}<Key>metadata/1.json</Key></ListBucketResult>"
    with stub_server(lambda _: Answer(page.encode())) as stub:
        assert open_source(fetch_params("s3://b", stub.endpoint)).ids() == ["1"]


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        (error(404, "NoSuchBucket"), ["the bucket does not exist", "fetch.source"]),
        (error(403, "AccessDenied"), ["access denied", "fetch.ids", "fetch.anonymous: false"]),
        (error(403, "InvalidAccessKeyId"), ["InvalidAccessKeyId", "AWS credentials"]),
        (error(400, "ExpiredToken"), ["ExpiredToken", "AWS credentials"]),
        (error(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"}), ["fetch.region to 'eu-west-1'"]),
        (error(301, "PermanentRedirect", {"x-amz-bucket-region": "\x1b]0;x"}), ["fetch.region", "fetch.endpoint"]),
        (error(307, "TemporaryRedirect", {"Location": "http://169.254.169.254/"}), ["fetch.region"]),
        (
            Answer(b"<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-2</Region>", 400),
            ["fetch.region to 'eu-west-2'"],
        ),
        (error(503, "SlowDown"), ["the server answered SlowDown", "fetch.endpoint"]),
        (Answer(b"\x1b]0;owned\x07", 500), ["the server answered 500"]),
        (Answer(b"<html>Welcome</html>"), ["no listing of S3", "fetch.endpoint"]),
        (listing(["metadata/.DS_Store"]), ["has no metadata/<id>.json", "fetch.source"]),
    ],
)
def test_a_bucket_that_cannot_be_listed_is_one_sentence(answer: Answer, parts: list[str]) -> None:
    with stub_server(lambda _: answer) as stub:
        message = refusal(stub.endpoint)
    assert message.startswith(f"s3://b at {stub.endpoint}")
    assert all(part in message for part in parts)


def test_an_object_is_what_the_source_has_or_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bintally.bins.objects.MAX_RECORD_BYTES", 10_000)
    failed_once: set[str] = set()

    def answer(request: Request) -> Answer:
        name = request.key.removeprefix("metadata/").removesuffix(".json")
        is_first = name not in failed_once
        failed_once.add(name)
        good = Answer(b"good")
        return {
            "good": good,
            "empty": Answer(),
            "says-error": Answer(b"<Code>NoSuchBucket</Code>"),
            "says-slow": Answer(b"<Code>SlowDown</Code>"),
            "missing": error(404, "NoSuchKey"),
            "denied": error(403, "AccessDenied"),
            "denied-by-proxy": Answer(b"<html>", 403),
            "throttled-once": error(503, "SlowDown") if is_first else good,
            "cut-once": Answer(b"go", length=4) if is_first else good,
            "cut": Answer(b"go", length=4),
            "too-short-length": Answer(b"good and more", length=4),
            "broken": error(500, "InternalError"),
            "large": Answer(pieces=itertools.repeat(bytes(4096)), length=2**40),
            "large-without-length": Answer(pieces=itertools.repeat(bytes(4096)), length=-1),
            "odd": Answer(status=418),
        }[name]

    names = ["good", "empty", "says-error", "says-slow", "missing", "denied", "denied-by-proxy", "throttled-once",
             "cut-once", "cut", "too-short-length", "broken", "large", "large-without-length", "odd"]  # fmt: skip
    with stub_server(answer) as stub:
        read = dict(open_source(fetch_params("s3://b", stub.endpoint)).read([record_key(name) for name in names]))
    too_large = Unread("is larger than 10,000 bytes")
    assert {name: read[record_key(name)] for name in names} == {
        "good": b"good",
        "empty": b"",
        "says-error": b"<Code>NoSuchBucket</Code>",
        "says-slow": b"<Code>SlowDown</Code>",
        "missing": None,
        "denied": DENIED,
        "denied-by-proxy": DENIED,
        "throttled-once": b"good",
        "cut-once": b"good",
        "cut": Unread("cannot be read: the connection was cut"),
        "too-short-length": b"good",
        "broken": Unread("cannot be read: the server answered InternalError"),
        "large": too_large,
        "large-without-length": too_large,
        "odd": Unread("cannot be read: the server answered 418"),
    }
    assert sum(request.key == record_key("cut") for request in stub.requests) == s3.MAX_ATTEMPTS_LATER
    assert stub.sent < 20_000_000  # what fits into the buffers of two sockets, of endless objects


@pytest.mark.parametrize("dribble", [itertools.repeat(b""), itertools.repeat(b"x")], ids=["nothing", "byte by byte"])
def test_an_object_that_comes_too_slowly_is_set_aside(
    dribble: Iterator[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "WAIT_S", 0.3)

    def slowly() -> Iterator[bytes]:
        for piece in itertools.islice(dribble, 200):
            yield piece
            time.sleep(0.05)

    with stub_server(
        lambda request: Answer(pieces=slowly(), length=500) if "slow" in request.key else Answer()
    ) as stub:
        read = dict(open_source(fetch_params("s3://b", stub.endpoint)).read(["metadata/slow.json", "metadata/1.json"]))
    assert read["metadata/1.json"] == b""
    slow = read["metadata/slow.json"]
    assert isinstance(slow, Unread) and "stood still" in slow.reason


def pieces_of_90_megabytes() -> Iterator[bytes]:
    for _ in range(9_000):
        yield bytes(10_000)
        time.sleep(0.001)


def test_an_object_that_takes_too_long_as_a_whole_is_set_aside_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_BODY_S", 0.1)
    with stub_server(lambda _: Answer(pieces=pieces_of_90_megabytes(), length=90_000_000)) as stub:
        read = dict(open_source(fetch_params("s3://b", stub.endpoint)).read([image_key("1")]))
        found = read[image_key("1")]
    assert isinstance(found, Unread) and "it took more than" in found.reason
    assert len(stub.requests) == 1 and stub.sent < 80_000_000


def test_what_nobody_waits_for_is_not_read_to_its_end() -> None:
    def answer(request: Request) -> Answer:
        is_slow = request.key == image_key("slow")
        return Answer(pieces=pieces_of_90_megabytes(), length=90_000_000) if is_slow else Answer()

    with stub_server(answer) as stub:
        reading = open_source(fetch_params("s3://b", stub.endpoint)).read([image_key("slow"), image_key("1")])
        assert next(reading) == (image_key("1"), b"")
        reading.close()  # type: ignore[attr-defined]
    assert stub.sent < 80_000_000


@pytest.mark.parametrize(
    "refusal",
    [
        error(301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-1"}),
        error(404, "NoSuchBucket"),
        error(403, "InvalidToken"),
    ],
    ids=["redirect", "NoSuchBucket", "InvalidToken"],
)
def test_a_refusal_of_the_bucket_for_one_object_is_of_that_object(
    refusal: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "MAX_FAILED_IN_A_ROW", 3)
    keys = [record_key(str(number)) for number in range(10)]
    refused = {keys[5]}
    with stub_server(lambda request: refusal if request.key in refused else Answer(b"x")) as stub:
        source = open_source(fetch_params("s3://b", stub.endpoint, concurrency=1))
        read = dict(source.read(keys))
        found = read.pop(keys[5])
        assert isinstance(found, Unread) and found.reason.startswith("cannot be read: the server answered ")
        assert set(read.values()) == {b"x"} and len(read) == 9
        refused.update(keys)
        with pytest.raises(UserError, match=r"fetch\.region to|bucket does not exist|InvalidToken; check the AWS"):
            list(source.read(keys))  # no longer one object
        first = open_source(fetch_params("s3://b", stub.endpoint, concurrency=1))
        before = len(stub.requests)
        with pytest.raises(UserError):
            list(first.read(keys))
    assert len(stub.requests) == before + 1


def test_a_server_that_fails_on_everything_is_a_user_error_before_all_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3, "MAX_FAILED_IN_A_ROW", 8)
    keys = [image_key(str(number)) for number in range(1000)]
    with (
        stub_server(lambda _: Answer(b"go", length=9)) as stub,
        pytest.raises(UserError, match="the connection was cut"),
    ):
        list(open_source(fetch_params("s3://b", stub.endpoint)).read(keys))
    assert len(stub.requests) < 100


def test_every_character_of_a_prefix_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    prefix = "a#b/c?d=e&f+g h%2Fé;*"
    with stub_server(lambda request: listing([f"{prefix}/metadata/1.json"]) if request.query else Answer(b"x")) as stub:
        source = open_source(fetch_params(f"s3://b/{prefix}", stub.endpoint))
        assert source.ids() == ["1"]
        assert dict(source.read([record_key("1")])) == {record_key("1"): b"x"}
    assert stub.requests[0].query["prefix"] == f"{prefix}/metadata/"
    assert stub.requests[1].key == f"{prefix}/metadata/1.json"
    assert not caplog.records


def test_what_is_known_is_not_sent_again() -> None:
    def answer(request: Request) -> Answer:
        return Answer(status=304) if request.headers.get("if-none-match") == '"d41d8cd9"' else Answer(b"new")

    with stub_server(answer) as stub:
        source = open_source(fetch_params("s3://b", stub.endpoint))
        read = dict(source.read(["a", "b", "c"], {"a": "d41d8cd9", "b": "another"}))
    assert read == {"a": UNCHANGED, "b": b"new", "c": b"new"}


def test_no_answer_is_taken_for_unchanged_that_nobody_asked_for() -> None:
    with stub_server(lambda _: Answer(status=304)) as stub:
        read = dict(open_source(fetch_params("s3://b", stub.endpoint)).read(["a"]))
    assert read == {"a": Unread("cannot be read: the server answered 304")}


def test_connections_are_used_again_and_a_closed_one_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with stub_server(lambda _: Answer(b"x", headers={"Connection": "keep-alive"})) as stub:
        source = open_source(fetch_params("s3://b", stub.endpoint, concurrency=1))
        opened: list[int] = []
        connect = source._connections._connect  # type: ignore[attr-defined]

        def counted() -> HTTPConnection:
            opened.append(1)
            return connect()  # type: ignore[no-any-return]

        source._connections._connect = counted  # type: ignore[attr-defined]
        with caplog.at_level(logging.INFO, logger="bintally.source"):
            assert len(list(source.read(["a", "b", "c"]))) == 3
            assert len(opened) == 1
            source._connections._idle[0].sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
            assert list(source.read(["d"])) == [("d", b"x")]
    assert len(opened) == 2 and not caplog.records


def test_a_server_that_is_down_is_a_short_error_that_names_it(closed_port: int) -> None:
    endpoint = f"http://127.0.0.1:{closed_port}"
    down = open_source(fetch_params("s3://bucket/prefix", endpoint))
    for request in (down.ids, lambda: list(down.read([record_key(str(number)) for number in range(20)]))):
        with pytest.raises(UserError) as caught:
            request()
        assert str(caught.value).startswith(f"s3://bucket/prefix at {endpoint} cannot be ")
        assert "connection refused; check fetch.endpoint and the network" in str(caught.value)


def test_nothing_of_the_environment_but_credentials_says_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        stub_server(lambda _: listing(["metadata/2.json"])) as other,
        stub_server(lambda _: listing(["metadata/1.json"])) as named,
    ):
        for name in (
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_S3",
            "AWS_ENDPOINT",
            "http_proxy",
            "HTTP_PROXY",
            "ALL_PROXY",
        ):
            monkeypatch.setenv(name, other.endpoint)
        for name, value in {
            "AWS_REGION": "eu-west-1",
            "AWS_SKIP_SIGNATURE": "false",
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
            "AWS_REQUEST_PAYER": "true",
        }.items():
            monkeypatch.setenv(name, value)
        assert open_source(fetch_params("s3://b", named.endpoint)).ids() == ["1"]
        assert "authorization" not in named.requests[0].headers
        assert open_source(fetch_params("s3://b", named.endpoint, anonymous=False)).ids() == ["1"]
    signature = named.requests[1].headers["authorization"]
    assert "Credential=id/" in signature and "/us-east-1/s3/aws4_request" in signature
    assert not other.requests


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        ({"AWS_PROFILE": "nobody"}, ["nobody", "fetch.anonymous"]),
        ({"AWS_ACCESS_KEY_ID": "id"}, ["AWS_SECRET_ACCESS_KEY", "fetch.anonymous"]),
        ({"AWS_ACCESS_KEY_ID": "i\nd", "AWS_SECRET_ACCESS_KEY": "x"}, ["line ends", "fetch.anonymous"]),
        ({}, ["fetch.anonymous is false but no AWS credentials were found"]),
    ],
)
def test_credentials_that_cannot_be_used_are_a_user_error(
    variables: dict[str, str], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    settings = {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    for name, value in ({"AWS_EC2_METADATA_DISABLED": "true"} | settings | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        open_source(fetch_params("s3://b", "http://127.0.0.1:1", anonymous=False)).ids()
    assert all(part in str(caught.value) for part in parts)


def test_a_real_server_takes_signed_requests_for_keys_with_odd_characters(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = "a#b c/d?e=f&g%2Fh+é"
    files = {f"remote/{prefix}/{record_key(str(number))}": str(number).encode() for number in range(1010)}
    store.filesystem().pipe(files)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", store.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
    source = open_source(fetch_params(f"s3://remote/{prefix}", store.endpoint, anonymous=False, concurrency=16))
    assert source.ids() == sorted(map(str, range(1010)))  # in two pages
    again = open_source(fetch_params(f"s3://remote/{prefix}", store.endpoint, anonymous=False))
    md5 = {record_key(str(number)): hashlib.md5(str(number).encode()).hexdigest() for number in range(1010)}  # noqa: S324
    assert dict(again.digests()) == md5
    with monkeypatch.context() as without_pages:
        without_pages.delattr(S3Source, "_page")
        assert again.ids() == source.ids()  # known from the same listing
    keys = [record_key("0"), record_key("77"), record_key("none")]
    read = dict(source.read(keys))
    assert read == {keys[0]: b"0", keys[1]: b"77", keys[2]: None}
    known = {keys[1]: hashlib.md5(b"77").hexdigest()}  # noqa: S324
    assert dict(source.read(keys[:2], known)) == {keys[0]: b"0", keys[1]: UNCHANGED}
    with pytest.raises(UserError, match="access denied"):
        open_source(fetch_params(f"s3://remote/{prefix}", store.endpoint)).ids()
    with pytest.raises(UserError, match="bucket does not exist"):
        open_source(fetch_params("s3://nowhere", store.endpoint, anonymous=False)).ids()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="SignatureDoesNotMatch; check the AWS credentials"):
        open_source(fetch_params("s3://remote", store.endpoint, anonymous=False)).ids()
