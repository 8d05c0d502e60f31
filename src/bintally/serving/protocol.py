"""uvicorn's HTTP, for clients that are slow, many or hostile: what it leaves unbounded is bounded here."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

PATIENCE_S = 5.0  # for a request's head, for the rest of a request that is answered already, and between requests
MAX_HEAD = 2**16  # bytes
CONNECTIONS = 512
BUSY = b'{"detail":"too many connections are open; try again in a second"}'


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection that does not get on with its request; the time for a body is the application's business."""

    _deadline: asyncio.TimerHandle | None = None
    _unread = 0
    _busy = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._busy = len(self.connections) > CONNECTIONS
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._busy:
            self._refuse(b"429 Too Many Requests\r\nretry-after: 1", BUSY)
            return
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MAX_HEAD:  # a head, or what follows a body
            self._refuse(b"431 Request Header Fields Too Large", b'{"detail":"a head may have 65,536 bytes"}')

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
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
        if self._idle():
            self._wait()

    def send_400_response(self, msg: str) -> None:
        self._refuse(b"400 Bad Request", b'{"detail":"this is no HTTP/1.1; see RFC 9112"}')

    def _refuse(self, status: bytes, body: bytes) -> None:
        """Answer in place of the application and close once the client has had time to read it."""
        if self._unread < 0 or self.transport.is_closing():
            return
        if not self._idle():
            if self.cycle.response_started:
                self.transport.abort()
                return
            self.cycle.disconnected = True  # so that the application stops
            self.cycle.message_event.set()
        self._busy, self._unread = True, -1
        self.transport.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (status, len(body), body)
        )
        self._wait(1.0)

    def _wait(self, seconds: float = PATIENCE_S) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _give_up(self) -> None:
        if self._busy or self._idle():
            self.transport.abort()
