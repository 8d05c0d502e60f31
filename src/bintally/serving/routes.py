"""The routes of the HTTP endpoint, as a SageMaker container has them, what OpenAPI says of them, and the page."""

import base64
import hashlib
import re
import time
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bintally.model.card import Card
from bintally.scoring.calibration import Calibration
from bintally.serving import bodies
from bintally.serving.endpoint import BODY_S, Endpoint, Prediction, Predictions

Responses = dict[int | str, dict[str, Any]]


class Problem(BaseModel):
    detail: str


class State(BaseModel):
    state: str


class About(BaseModel):
    model: Annotated[str, Field(description="a hash of its weights and calibration, as in the header x-model")]
    card: Card
    calibration: Calibration


class MetricsMiddleware:
    """Around the application: how requests to /invocations end; connections are let go while draining."""

    def __init__(self, app: ASGIApp, endpoint: Endpoint) -> None:
        self._app, self._endpoint = app, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, endpoint, status = time.perf_counter(), self._endpoint, 500

        async def measured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if endpoint.draining:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        try:
            await self._app(scope, receive, measured)
        finally:
            if scope["path"] == "/invocations":
                endpoint.metrics.requests.labels(status).inc()
                if status == 200:
                    endpoint.metrics.latency.observe(time.perf_counter() - start)


def _page() -> tuple[str, dict[str, str]]:
    """The page, and headers by which a browser runs nothing but what is in it and asks nobody else."""
    page = files("bintally.apps").joinpath("pages/serve.html").read_text(encoding="utf-8")

    def sources(tag: str) -> str:
        digests = [
            base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            for content in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        ]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    policy = (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _said(description: str, model: object = Problem, **headers: str) -> dict[str, Any]:
    """A response for OpenAPI."""
    described = {
        name.replace("_", "-"): {"description": said, "schema": {"type": "string"}} for name, said in headers.items()
    }
    return {"description": description, "model": model, **({"headers": described} if described else {})}


def create_app(endpoint: Endpoint) -> FastAPI:
    """The application around an endpoint."""
    app = FastAPI(
        title="bintally",
        summary="Counts the items in photographs of storage bins",
        version=version("bintally"),
        docs_url=None,  # they come from a CDN
        redoc_url=None,
    )
    app.add_middleware(MetricsMiddleware, endpoint=endpoint)
    page, page_headers = _page()
    retry = "seconds after which to try again"
    loading: Responses = {503: _said("The model is being loaded, or the server is stopping", retry_after=retry)}
    closed: Responses = {}
    security: dict[str, Any] = {}
    if endpoint.token:
        closed = {401: _said("The token is missing or wrong", www_authenticate="Bearer")}
        security = {"security": [{"token": []}]}
    raw = {"schema": {"type": "string", "format": "binary", "description": "a JPEG or PNG file"}}

    @app.post(
        "/invocations",
        summary="Count the items in photographs",
        description="One file as the body gives one prediction; JSON or a form gives predictions in order. "
        f"At most {endpoint.limits.images} images and {endpoint.limits.bytes:,} bytes.",
        response_class=JSONResponse,
        responses={
            200: _said("What is in the photographs", Prediction | Predictions, x_model="a hash of the model"),
            400: _said("An image, a record or the body is not what it must be"),
            408: _said(f"The body was not whole within {BODY_S:.0f} s"),
            413: _said("The body is too large"),
            415: _said("The Content-Type is none of those taken"),
            429: _said("The queue is full", retry_after=retry),
            **closed,
            **loading,
        },
        openapi_extra=security
        | {
            "parameters": [
                {
                    "name": "expected",
                    "in": "query",
                    "description": "what the record says, of every image that names none of its own",
                    "schema": {"type": "integer", "minimum": 0, "maximum": bodies.MAX_RECORD},
                }
            ],
            "requestBody": {
                "required": True,
                "content": {
                    **dict.fromkeys(bodies.RAW, raw),
                    bodies.JSON: {"schema": {"$ref": "#/components/schemas/Images"}},
                    bodies.FORM: {"schema": bodies.FORM_SCHEMA},
                },
            },
        },
    )
    async def invocations(request: Request) -> Response:
        return await endpoint.invocations(request)

    @app.get("/ping", summary="Whether the model answers, as SageMaker asks", response_model=State, responses=loading)
    async def ping() -> Response:
        if endpoint.model is None:
            endpoint.ready()
        return JSONResponse({"state": "the model answers"})

    @app.get("/ready", summary="Whether photographs are taken in", response_model=State, responses=loading)
    async def ready() -> Response:
        endpoint.ready()
        return JSONResponse({"state": "ready"})

    @app.get("/live", summary="Whether the server runs", response_model=State)
    async def live() -> Response:
        return JSONResponse({"state": "running"})

    @app.get(
        "/model",
        summary="Which model this is",
        response_model=About,
        responses={**closed, **loading},
        openapi_extra=security,
    )
    async def model(request: Request) -> Response:
        endpoint.authorise(request)
        found = endpoint.ready()
        about = About(model=found.name, card=found.card, calibration=found.calibration)
        return JSONResponse(about.model_dump(mode="json"))

    @app.get(
        "/metrics",
        summary="Measures for Prometheus",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(generate_latest(endpoint.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/", summary="A page to try it", response_class=HTMLResponse)
    async def index() -> Response:
        return HTMLResponse(page, headers=page_headers)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            components = schema.setdefault("components", {})
            images = bodies.Images.model_json_schema(ref_template="#/components/schemas/{model}")
            components["schemas"] |= images.pop("$defs") | {"Images": images}
            if endpoint.token:
                components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app
