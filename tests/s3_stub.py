"""A server on loopback that answers as a test tells it to, as S3 does or as it should not."""

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from bintally.params import Fetch
from bintally.yaml_files import read_yaml

ROOT = Path(__file__).parents[1]


@dataclass
class Request:
    """What was asked: the path and the query as S3 understands them."""

    target: str  # as it came
    headers: dict[str, str]
    key: str = ""
    query: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        split = urlsplit(self.target)
        self.key = unquote(split.path).removeprefix("/b/")
        self.query = {name: values[0] for name, values in parse_qs(split.query).items()}


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: Iterator[bytes] | None = None  # in place of the body, as they come
    length: int | None = None  # Content-Length, true unless given; -1: none, and the connection's end ends the body


class Stub:
    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.requests: list[Request] = []
        self.sent = 0  # bytes of bodies


@contextmanager
def stub_server(answer: Callable[[Request], Answer], certificate: tuple[Path, Path] | None = None) -> Iterator[Stub]:
    """Answer requests until the block ends; with a certificate and its key, over TLS."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            request = Request(self.path, {name.lower(): value for name, value in self.headers.items()})
            stub.requests.append(request)
            reply = answer(request)
            length = len(reply.body) if reply.length is None else reply.length
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if length >= 0 and reply.status != 304:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            try:
                for piece in reply.pieces or [reply.body]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    stub.sent += len(piece)
            except ConnectionError:
                self.close_connection = True  # the client has had enough
            if length != len(reply.body) or reply.pieces:
                self.close_connection = True

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    stub = Stub(server.server_address[1])
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def listing(keys: Sequence[str], token: str | None = None) -> Answer:
    """A page of a listing; with a token there are more."""
    contents = "".join(f"<Contents><Key>{escape(key)}</Key><Size>1</Size></Contents>" for key in keys)
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    return Answer(f"<ListBucketResult>{more}{contents}</ListBucketResult>".encode())


def error(status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
    return Answer(f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode(), status, headers or {})


def fetch_params(source: object, endpoint: str | None = None, **changes: object) -> Fetch:
    return Fetch.model_validate(
        {
            "source": str(source),
            "table": read_yaml(ROOT / "params.yaml")["fetch"]["table"],
            "endpoint": endpoint,
            "region": "us-east-1",
            "anonymous": True,
            "ids": None,
            "counts": [1, 2],
            "open_ended": False,
            "per_count": None,
            "concurrency": 3,
            "seed": 1,
            "demo_bins": 4,
        }
        | changes
    )
