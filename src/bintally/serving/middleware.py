"""What happens to every request before its route: names, HEAD, metrics."""

import time
from collections.abc import Set

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bintally.serving.bodies import QUOTED
from bintally.serving.endpoint import Endpoint


class RequestMiddleware:
    """Refuses requests to or from other names, answers HEAD as GET, and records outcomes of /invocations."""

    def __init__(self, app: ASGIApp, endpoint: Endpoint) -> None:
        self._app, self._endpoint = app, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, endpoint, status = time.perf_counter(), self._endpoint, 500

        async def record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if endpoint.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            app = _refusal(scope, endpoint.names) or self._app
            if scope["method"] == "HEAD":  # the protocol leaves the body out
                scope = {**scope, "method": "GET"}
            await app(scope, receive, record_status)
        finally:
            if scope["path"] == "/invocations":
                endpoint.metrics.requests.labels(status).inc()
                if status == 200:
                    endpoint.metrics.latency.observe(time.perf_counter() - start)


def _refusal(scope: Scope, names: Set[str]) -> JSONResponse | None:
    """The answer to a request that a page of another site may have sent; None for a request to the server's own name.

    A name of another site may stand for 127.0.0.1, so that its pages could read what this server answers.
    """
    if not names:
        return None
    values = {name: [v.decode("latin-1") for k, v in scope["headers"] if k == name] for name in (b"host", b"origin")}
    hosts, origins = values[b"host"], values[b"origin"]
    for status, header, given, wrong in (
        (421, "Host", hosts, len(hosts) != 1 or hosts[0].lower() not in names),
        (403, "Origin", origins, any(one.lower().removeprefix("http://") not in names for one in origins)),
    ):
        if wrong:
            detail = (
                f"the {header} is {', '.join(given)[:QUOTED]!r}; without a token this server answers to "
                f"{', '.join(sorted(names))} alone: use one of these names, or start it with a token or with --open"
            )
            return JSONResponse({"detail": detail}, status)
    return None
