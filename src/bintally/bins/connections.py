"""HTTP connections to one server, on which every wait has an end, whatever the server does."""

import contextlib
import errno
import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections import deque
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from bintally.errors import UserError, printable

CONNECT_S = 10.0
WAIT_S = 30.0  # for an answer's head, and for each PIECE of its body: a server that is slower is not waited for
PIECE = 128 * 2**10
MAX_BODY_S = 600.0  # for the whole body


class Unreachable(Exception):
    """No connection; the message is the reason, in a few words."""


class BodyGivenUp(Exception):
    """A body took more than MAX_BODY_S, or nobody waits for it any more."""


class _Timed(io.RawIOBase):
    """Bytes of a socket, until a deadline."""

    def __init__(self, stream: io.RawIOBase, connection: socket.socket) -> None:
        self._stream, self._connection = stream, connection
        self.deadline = time.monotonic() + WAIT_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


class Answer(http.client.HTTPResponse):
    """An answer of which the head, and each piece of the body, must come within WAIT_S."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._timed = _Timed(self.fp.detach(), sock)
        self.fp = io.BufferedReader(self._timed)

    def body(self, limit: int, stopped: threading.Event | None = None) -> bytes | None:
        """Return the whole body, or None if it has more than ``limit`` bytes.

        Args:
            stopped: set when nobody waits for the body any more.

        Raises HTTPException if it was cut, BodyGivenUp if it comes too slowly as a whole or ``stopped`` is set.
        """
        expected, pieces, size, start = self.length, list[bytes](), 0, time.monotonic()
        while size <= limit:
            now = time.monotonic()
            if now - start > MAX_BODY_S or (stopped and stopped.is_set()):
                raise BodyGivenUp
            self._timed.deadline = now + WAIT_S
            piece = self.read(PIECE)
            if not piece:
                if expected is not None and size < expected:
                    raise http.client.IncompleteRead(b"", expected - size)
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
        return None


class Connections:
    """Connections to the server of a URL, through a proxy where the environment names one; used by many threads."""

    def __init__(self, url: str) -> None:
        """Raises UserError if the URL is not that of a server, or the environment names an unusable proxy."""
        self._idle: deque[http.client.HTTPConnection] = deque()
        try:
            self._url = _split_url(url)
        except ValueError as error:
            raise UserError(f"'{url}' is not the URL of a server: check fetch.endpoint and fetch.region") from error
        self._tls = ssl.create_default_context() if self._url.scheme == "https" else None
        self._proxy = _proxy(self._url)
        # A proxy for http takes the whole URL as the path, and is asked anew each time; one for https makes a tunnel.
        is_forwarded = self._proxy is not None and self._tls is None
        self._base = f"{self._url.scheme}://{self._url.netloc}" if is_forwarded else ""
        self._authorization = _authorization(self._proxy) if self._proxy and is_forwarded else {}

    def get(self, path: str, headers: dict[str, str]) -> tuple[http.client.HTTPConnection, Answer]:
        """Send a request; return the connection and the answer, whose body is still to be read.

        Raises Unreachable if there is no connection, HTTPException or OSError for what happens on it.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._send(self._connect(), path, headers)
        try:
            return self._send(connection, path, headers)
        except (http.client.HTTPException, ConnectionError):
            self.close()  # the server has closed what it heard nothing on for a while
            return self._send(self._connect(), path, headers)

    def keep(self, connection: http.client.HTTPConnection, answer: Answer) -> None:
        """Use a connection again whose answer was read, or close it."""
        if answer.isclosed() and connection.sock is not None:
            self._idle.append(connection)
        else:
            answer.close()
            connection.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        with contextlib.suppress(IndexError):  # another thread may have taken the last one
            while True:
                self._idle.pop().close()

    def _send(
        self, connection: http.client.HTTPConnection, path: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, Answer]:
        try:
            connection.sock.settimeout(WAIT_S)
            connection.request("GET", self._base + path, headers=headers | self._authorization)
            answer = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        assert isinstance(answer, Answer)
        return connection, answer

    def _connect(self) -> http.client.HTTPConnection:
        through = self._proxy or self._url
        host, port = through.hostname or "", through.port
        if self._tls:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port or (80 if self._proxy else 443), timeout=CONNECT_S, context=self._tls
            )
            if self._proxy:
                connection.set_tunnel(self._url.hostname or "", self._url.port or 443, _authorization(self._proxy))
        else:
            connection = http.client.HTTPConnection(host, port or 80, timeout=CONNECT_S)
        connection.response_class = Answer
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            via = f"the proxy {host} of the environment: " if self._proxy else ""
            raise Unreachable(via + _reason(error, host)) from error
        return connection


def _reason(error: Exception, host: str) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message}); SSL_CERT_FILE names authorities to trust"
        case ssl.SSLError():
            return f"it does not speak TLS as expected ({error.reason})"
        case socket.gaierror():
            return f"the name '{host}' does not resolve"
        case TimeoutError():
            return f"no connection within {CONNECT_S:.0f} s"
        case OSError(errno=errno.EMFILE | errno.ENFILE):
            return "too many files are open; lower fetch.concurrency"
        case OSError(strerror=str(text)):
            return text.lower()
    return printable(str(error) or type(error).__name__)[:100]


def _split_url(url: str) -> SplitResult:
    """Raises ValueError if it has no host, a host with an empty or too long part, or no such port."""
    split = urlsplit(url)
    if not (split.hostname or "").encode("idna") or split.port == 0:
        raise ValueError(url)
    return split


def _proxy(url: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for a URL; none for this machine itself."""
    host = url.hostname or ""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or _is_loopback(host) or proxy_bypass(host):
        return None
    try:
        split = _split_url(proxy if "://" in proxy else f"http://{proxy}")
        if split.scheme != "http":
            raise ValueError(proxy)
    except ValueError:
        shown = printable(re.sub(r"(?s)^([A-Za-z0-9+.-]+://)?.*@", r"\1", proxy)[:100])  # without the password
        variables = f"{url.scheme.upper()}_PROXY or ALL_PROXY"
        remedy = "it must be of the form http://host:port; set it, or NO_PROXY"
        raise UserError(f"the proxy {shown} that {variables} names cannot be used: {remedy}") from None
    return split


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(pair.encode(errors='surrogateescape')).decode()}"}
