"""uvicorn's HTTP/1.1 protocol with bounds on time, bytes and connections, against slow, numerous or hostile clients."""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

IDLE_TIMEOUT_S = 5.0  # for a head, for the rest of an answered request, between requests, and to read a response
REFUSAL_TIMEOUT_S = 1.0  # for a client to read why it is refused
MAX_HEAD = 2**16  # bytes
MAX_URL = 2**14
MAX_HEADERS = 100
MAX_CHUNKS = 50_000  # of one body
MAX_PIPELINED = 16  # requests that wait for the response to an earlier one
MAX_CONNECTIONS = 512


class Refused(Exception):
    """Stops the parser: the client has been told why, or is disconnected."""


class _Transport:
    """A transport that ignores what is written after it was closed: uvloop's raises, and an application cannot know."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections that make no progress with a request; the application limits the time for a body."""

    waiting: ClassVar[dict["BoundedProtocol", None]] = {}
    """Connections of the process whose client is to send or read something, longest first."""

    _timer: asyncio.TimerHandle | None = None
    _unread = 0  # bytes since the last complete head or part of a body
    _chunks = 0
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport))  # type: ignore[arg-type]
        self._wait()
        if len(self.connections) > MAX_CONNECTIONS:  # health checks must get through, however many others are open
            longest = next(iter(self.waiting))
            longest._stop_waiting()
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MAX_HEAD:  # a head, or what follows a body
            self._refuse(b"431 Request Header Fields Too Large", b"a head may have 65,536 bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._is_idle():
            self._wait()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self._refuse(b"414 URI Too Long", b"a URL may have %d bytes" % MAX_URL)
            raise Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse(b"431 Request Header Fields Too Large", b"a head may have %d fields" % MAX_HEADERS)
            raise Refused

    def on_headers_complete(self) -> None:
        if not self.flow.write_paused:
            self._cancel_timer()
        self._unread = self._chunks = 0
        super().on_headers_complete()
        if self.parser.should_upgrade():  # the parser ignores what follows
            self.cycle.keep_alive = False
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.abort()
            raise Refused

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            self._refuse(b"400 Bad Request", b"a body may have %d chunks; send larger ones" % MAX_CHUNKS)
            raise Refused

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
        if not self._is_clients_turn():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_idle():
            self._wait()
        elif self._is_clients_turn():  # the body of a pipelined request is to come
            self.waiting[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._is_clients_turn():
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", b"this is not HTTP/1.1; see RFC 9112")

    def _refuse(self, status: bytes, detail: bytes) -> None:
        """Respond in place of the application, and close once the client has had time to read the response."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if not self._is_idle():
            if self.pipeline or self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True  # so that the application stops
            self.cycle.message_event.set()
        body = b'{"detail":"%b"}' % detail
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, len(body), body)
        )
        self._wait(REFUSAL_TIMEOUT_S)

    def _wait(self, seconds: float = IDLE_TIMEOUT_S) -> None:
        """Disconnect the client unless it does something within these seconds."""
        self._stop_waiting()
        self.waiting[self] = None
        self._timer = self.loop.call_later(seconds, self._on_timer)

    def _stop_waiting(self) -> None:
        self.waiting.pop(self, None)
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_clients_turn(self) -> bool:
        """Whether nothing happens until the client sends a request or the rest of its body, or reads a response."""
        waits = self._refused or self._is_idle() or self.flow.write_paused
        return waits or (self.cycle.more_body and not self.pipeline)

    def _on_timer(self) -> None:
        if self._refused or self._is_idle() or self.flow.write_paused:
            self.transport.abort()
