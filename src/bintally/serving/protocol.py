"""uvicorn's HTTP/1.1 protocol with bounds on time, bytes and connections, against slow, numerous or hostile clients."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

IDLE_TIMEOUT_S = 5.0  # for a request's head, for the rest of a request that is already answered, and between requests
REFUSAL_TIMEOUT_S = 1.0  # for a client to read why it is refused
MAX_HEAD = 2**16  # bytes
MAX_CONNECTIONS = 512
TOO_MANY_CONNECTIONS = b'{"detail":"too many connections are open; try again in a second"}'


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections that make no progress with a request; the application limits the time for a body."""

    _timer: asyncio.TimerHandle | None = None
    _unread = 0  # bytes since the last complete head or part of a body; -1: refused
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._refused = len(self.connections) > MAX_CONNECTIONS
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._refuse(b"429 Too Many Requests\r\nretry-after: 1", TOO_MANY_CONNECTIONS)
            return
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MAX_HEAD:  # a head, or what follows a body
            self._refuse(b"431 Request Header Fields Too Large", b'{"detail":"a head may have 65,536 bytes"}')

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start_timer()

    def on_headers_complete(self) -> None:
        self._cancel_timer()
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_idle():
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", b'{"detail":"this is not HTTP/1.1; see RFC 9112"}')

    def _refuse(self, status: bytes, body: bytes) -> None:
        """Respond in place of the application, and close once the client has had time to read the response."""
        if self._unread < 0 or self.transport.is_closing():
            return
        if not self._is_idle():
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True  # so that the application stops
            self.cycle.message_event.set()
        self._refused, self._unread = True, -1
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, len(body), body)
        )
        self._start_timer(REFUSAL_TIMEOUT_S)

    def _start_timer(self, seconds: float = IDLE_TIMEOUT_S) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, self._on_timer)

    def _cancel_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _on_timer(self) -> None:
        if self._refused or self._is_idle():
            self.transport.abort()
