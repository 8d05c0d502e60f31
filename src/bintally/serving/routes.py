"""Routes of the HTTP endpoint (those of a SageMaker container among them), their OpenAPI schema, and the page."""

import base64
import hashlib
import re
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from bintally.model.card import ModelCard
from bintally.scoring.calibration import Calibration
from bintally.scoring.record_model import RecordModel
from bintally.serving import bodies
from bintally.serving.answers import Prediction, Predictions
from bintally.serving.endpoint import Endpoint
from bintally.serving.incoming import BODY_TIMEOUT_S
from bintally.serving.middleware import RequestMiddleware

Responses = dict[int | str, dict[str, Any]]


class Problem(BaseModel):
    detail: str


class State(BaseModel):
    state: str


class ModelInfo(BaseModel):
    model: Annotated[str, Field(description="hash of its files, as in the header x-model")]
    card: ModelCard
    calibration: Calibration
    records: Annotated[
        RecordModel | None, Field(description="how records are judged; null: the model has no such part")
    ]


def _page() -> tuple[str, dict[str, str]]:
    """The page, and headers that let a browser run its own script alone and contact this server alone."""
    page = files("bintally.serving").joinpath("page.html").read_text(encoding="utf-8")

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


def _response(description: str, model: object = Problem, **headers: str) -> dict[str, Any]:
    """A response in FastAPI's notation for OpenAPI."""
    described = {
        name.replace("_", "-"): {"description": meaning, "schema": {"type": "string"}}
        for name, meaning in headers.items()
    }
    return {"description": description, "model": model, **({"headers": described} if described else {})}


def create_app(endpoint: Endpoint) -> FastAPI:
    """The FastAPI application of an endpoint."""
    foreign: Responses = {}
    if endpoint.names:
        foreign = {403: _response("The Origin is another site"), 421: _response("The Host is another name")}
    app = FastAPI(
        title="bintally",
        summary="Counts the items in photographs of storage bins",
        version=version("bintally"),
        docs_url=None,  # these load scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,  # a redirect names the host that the client named
        responses=foreign,
    )
    app.add_middleware(RequestMiddleware, endpoint=endpoint)
    page, page_headers = _page()
    retry = "seconds to wait before trying again"
    unavailable: Responses = {503: _response("The model is being loaded, or the server is stopping", retry_after=retry)}
    unauthorised: Responses = {}
    security: dict[str, Any] = {}
    if endpoint.token:
        unauthorised = {401: _response("The token is missing or wrong", www_authenticate="Bearer")}
        security = {"security": [{"token": []}]}
    raw = {"schema": {"type": "string", "format": "binary", "description": "a JPEG or PNG file"}}

    @app.post(
        "/invocations",
        summary="Count the items in photographs",
        description="A body of one file gives one prediction; JSON or a form gives a list, in order. "
        f"At most {endpoint.limits.images} images and {endpoint.limits.body_bytes:,} bytes.",
        response_class=JSONResponse,
        responses={
            200: _response("The predicted counts", Prediction | Predictions, x_model="hash of the model"),
            400: _response("An image, a record or the body is malformed"),
            408: _response(f"The body was incomplete after {BODY_TIMEOUT_S:.0f} s"),
            413: _response("The body is too large"),
            415: _response("The Content-Type or the encoding is not supported"),
            429: _response("The queue or the memory for bodies is full", retry_after=retry),
            **unauthorised,
            **unavailable,
        },
        openapi_extra=security
        | {
            "parameters": [
                {
                    "name": "expected",
                    "in": "query",
                    "description": "number of items in the record, for images without one of their own",
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

    @app.get("/ping", summary="Health check of SageMaker: the model is loaded", responses=unavailable)
    async def ping() -> State:
        if endpoint.model is None:
            endpoint.ready_model()
        return State(state="healthy")

    @app.get("/ready", summary="Readiness: images are accepted", responses=unavailable)
    async def ready() -> State:
        endpoint.ready_model()
        return State(state="ready")

    @app.get("/live", summary="Liveness: the server runs")
    async def live() -> State:
        return State(state="running")

    @app.get(
        "/model",
        summary="Card, calibration and the record model",
        responses={**unauthorised, **unavailable},
        openapi_extra=security,
    )
    async def model(request: Request) -> ModelInfo:
        endpoint.authorise(request)
        loaded = endpoint.ready_model()
        return ModelInfo(model=loaded.digest, card=loaded.card, calibration=loaded.calibration, records=loaded.records)

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        return Response(generate_latest(endpoint.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/", summary="A page to try it", response_class=HTMLResponse)
    async def index() -> Response:
        return HTMLResponse(page, headers=page_headers)

    schema = app.openapi()  # kept by FastAPI, so that additions to it are served
    images = bodies.Images.model_json_schema(ref_template="#/components/schemas/{model}")
    schema["components"]["schemas"] |= images.pop("$defs") | {"Images": images}
    if endpoint.token:
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return app
