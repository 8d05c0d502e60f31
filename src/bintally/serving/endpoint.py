"""What the HTTP endpoint does with a request: images in, predicted counts out, within limits."""

import asyncio
import hmac
import io
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.requests import ClientDisconnect

from bintally.bins.images import WEB
from bintally.errors import UserError
from bintally.inference.predictor import Predictor
from bintally.scoring.metrics import Floats
from bintally.scoring.record_model import RecordModel
from bintally.serving import bodies
from bintally.serving.answers import Prediction, check_count, counted_items, read_records
from bintally.serving.batching import Batcher, QueueFull
from bintally.serving.incoming import Incoming
from bintally.serving.metrics import ServerMetrics

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that closed the connection, in the metrics only


@dataclass(frozen=True)
class Limits:
    """Limits on what the endpoint admits; see `bintally serve --help`."""

    queue: int = 64
    wait_s: float = 0.005
    body_bytes: int = 10 * 2**20
    timeout_s: float = 30.0

    @property
    def images(self) -> int:
        """Images in one request."""
        return min(bodies.MAX_IMAGES, self.queue)


@dataclass(frozen=True)
class Seen:
    """What the model says of a photograph."""

    prediction: Prediction
    table: Floats
    """(features, counts) of evidence."""
    distance_rank: float
    """NaN by a model that does not say."""


class LoadedModel:
    """A model that is ready to predict, and its queue.

    Args:
        records: None for a model without one.
    """

    def __init__(
        self, predictor: Predictor, records: RecordModel | None, digest: str, limits: Limits, metrics: ServerMetrics
    ) -> None:
        self.digest, self.card, self.calibration = digest, predictor.card, predictor.calibration
        self.records = records
        metrics.expect(self.calibration)
        self._predictor = predictor
        # The first image and the first batch take seconds longer than later ones.
        image = io.BytesIO()
        Image.new("RGB", (8, 8)).save(image, "JPEG")
        predictor.decode(image.getvalue())
        blank = [torch.zeros(3, self.card.image_size, self.card.image_size, dtype=torch.uint8)] * predictor.batch_size
        for _ in range(2):
            start = time.perf_counter()
            self._predict(blank)
        rate = len(blank) / (time.perf_counter() - start)
        self.batcher: Batcher[Seen] = Batcher(
            partial(predictor.decode, formats=WEB),
            self._predict,
            predictor.batch_size,
            limits.queue,
            limits.wait_s,
            limits.timeout_s,
            rate,
            metrics,
        )

    def _predict(self, pixels: Sequence[torch.Tensor]) -> list[Seen]:
        found = self._predictor.predict(torch.stack(list(pixels)))
        answers = counted_items(found.probabilities, self.calibration)
        rows = zip(answers, found.tables, found.distance_ranks.tolist(), strict=True)
        return [Seen(Prediction(**one), table, rank) for one, table, rank in rows]  # type: ignore[typeddict-item]


class Endpoint:
    """The state behind the routes; its model is loaded after the server is up.

    Args:
        names: ``host:port`` that requests must be sent to, and pages that send them come from; empty: any.
    """

    def __init__(self, limits: Limits, token: str | None, names: Set[str] = frozenset()) -> None:
        self.limits, self.token, self.names = limits, token, names
        self.incoming = Incoming(limits.body_bytes)
        self.metrics = ServerMetrics()
        self.model: LoadedModel | None = None
        self.draining = False
        self.metrics.queue.set_function(lambda: self.model.batcher.taken if self.model else 0)

    def ready_model(self) -> LoadedModel:
        """The model. Raises HTTPException 503 while it is loading or the server is draining."""
        if self.model is None:
            raise HTTPException(503, "the model is being loaded; try again in a few seconds", {"retry-after": "5"})
        if self.draining:
            raise HTTPException(503, "the server is stopping; try another one", {"retry-after": "5"})
        return self.model

    def authorise(self, request: Request) -> None:
        """Raise HTTPException 401 if a token is set and the request lacks it."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), (self.token or "").encode())
        if self.token and not (right and scheme.lower() == "bearer"):
            raise HTTPException(401, "send the header 'Authorization: Bearer TOKEN'", {"www-authenticate": "Bearer"})

    async def invocations(self, request: Request) -> Response:
        """The response with the predictions for the images in a request's body."""
        self.authorise(request)
        model = self.ready_model()
        content_type = request.headers.get("content-type", "")
        kind = bodies.body_kind(content_type)
        if kind is None:
            quoted = content_type[: bodies.QUOTED]
            raise HTTPException(
                415, f"the Content-Type is {quoted!r}; send image/jpeg, image/png, {bodies.JSON} or {bodies.FORM}"
            )
        _require_plain(request)
        single = kind == bodies.RAW[0]
        try:
            expected = _expected(request)
            model.batcher.require_room()  # before a client sends a body in vain
            async with self.incoming.body(request) as body:
                with model.batcher.slot() as slot:
                    if single:
                        uploads = [bodies.Upload(body, expected)]
                    else:
                        uploads = await model.batcher.in_decoder(bodies.parse, body, content_type, expected)
                        if len(uploads) > self.limits.images:
                            raise UserError(f"{len(uploads)} images are too many; send at most {self.limits.images}")
                        slot.take(len(uploads) - 1)
                    del body
                    seen = await _predict_uploads(model, uploads, request)
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        except QueueFull as full:
            raise HTTPException(
                429,
                f"{model.batcher.taken} of {model.batcher.slots} slots are taken; try again in {full.retry_after_s} s",
                {"retry-after": str(full.retry_after_s)},
            ) from full
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        predictions = [one.prediction for one in seen]
        self.metrics.count_answers(predictions, [one.distance_rank for one in seen])
        content = predictions[0] if single else {"predictions": predictions}
        return JSONResponse(content, headers={"x-model": model.digest})


def _require_plain(request: Request) -> None:
    """Raise HTTPException 415 if the body is compressed or encoded in another way."""
    for header in ("Content-Encoding", "Transfer-Encoding"):
        for value in request.headers.getlist(header):
            for encoding in value.split(","):
                if encoding.strip().lower() not in ("", "identity", "chunked"):
                    detail = (
                        f"the {header} is {value[: bodies.QUOTED]!r}; send the body without encoding or compression"
                    )
                    raise HTTPException(415, detail, {"accept-encoding": "identity"})


def _expected(request: Request) -> int | None:
    values = request.query_params.getlist("expected")
    if len(values) > 1:
        raise UserError(f"expected is given {len(values)} times; give it once")
    return bodies.parse_expected(values[0]) if values else None


async def _predict_uploads(model: LoadedModel, uploads: Sequence[bodies.Upload], request: Request) -> list[Seen]:
    """What is seen in each upload. Raises UserError for the first bad one, ClientDisconnect if the client has left."""
    predicting = asyncio.gather(*(model.batcher.predict(one.content) for one in uploads), return_exceptions=True)
    disconnected = asyncio.ensure_future(request.receive())  # after the body only a disconnect can come
    disconnected.add_done_callback(lambda _: predicting.cancel())
    try:
        outcomes = await predicting
    except asyncio.CancelledError:
        if not disconnected.done():
            raise
        raise ClientDisconnect from None
    finally:
        disconnected.cancel()
    seen: list[Seen] = []
    for number, outcome in enumerate(outcomes, 1):
        if isinstance(outcome, UserError) and len(uploads) > 1:
            raise UserError(f"image {number} of {len(uploads)}: {outcome}") from outcome
        if isinstance(outcome, BaseException):
            raise outcome
        seen.append(outcome)
    await _add_records(model, uploads, seen)
    return seen


async def _add_records(model: LoadedModel, uploads: Sequence[bodies.Upload], seen: Sequence[Seen]) -> None:
    """Add to each prediction what is known by its record, or by the count of its record."""
    listed = []
    for upload, one in zip(uploads, seen, strict=True):
        if upload.products is not None:
            listed.append((one, upload.products))
        elif upload.expected is not None:
            probabilities = one.prediction["probabilities"]
            one.prediction["record"] = check_count(probabilities, upload.expected, model.calibration)
    if not listed:
        return
    readings = await model.batcher.in_decoder(
        read_records,
        model.records,
        model.calibration,
        np.array([one.prediction["probabilities"] for one, _ in listed]),
        np.stack([one.table for one, _ in listed]),
        [products for _, products in listed],
    )
    for (one, _), reading in zip(listed, readings, strict=True):
        if reading.given_products:
            one.prediction["given_products"] = reading.given_products
        one.prediction["record"] = reading.record
