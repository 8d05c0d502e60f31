"""What the HTTP endpoint does with a request: photographs in, counts out, within limits."""

import asyncio
import hmac
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NotRequired

import numpy as np
import torch
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import Field
from starlette.requests import ClientDisconnect
from typing_extensions import TypedDict

from bintally.errors import UserError
from bintally.inference.predictor import Predictor
from bintally.scoring.audit import wrong
from bintally.scoring.calibration import Calibration, answer
from bintally.scoring.decoding import DECODINGS
from bintally.serving import bodies
from bintally.serving.batching import Batcher, Full
from bintally.serving.metrics import ServerMetrics

BODY_S = 10.0  # to send a body
GONE = 499  # what a request is counted as whose client did not wait

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Verdict(TypedDict):
    expected: Count
    wrong: Annotated[Share | None, Field(description="the probability that the record is wrong")]
    why: NotRequired[Annotated[str, Field(description="why there is none")]]


class Prediction(TypedDict):
    counts: list[Count]
    probabilities: Annotated[list[Share], Field(description="of each of counts")]
    most_probable: Count
    rounded_mean: Count
    median: Count
    set: Annotated[list[Count], Field(description="its lowest and its highest count", min_length=2, max_length=2)]
    coverage: Annotated[Share, Field(description="the share of bins whose count is in their set")]
    unsure: bool
    record: NotRequired[Verdict]


class Predictions(TypedDict):
    predictions: Annotated[list[Prediction], Field(description="in the order of the images")]


@dataclass(frozen=True)
class Limits:
    """What is taken in."""

    queue: int = 64
    """Photographs admitted and not answered."""
    wait_s: float = 0.005
    """How long a batch waits to become full while photographs are being decoded."""
    bytes: int = 10 * 2**20
    """Of a body."""
    timeout_s: float = 30.0
    """Nothing is admitted that would wait longer."""

    @property
    def images(self) -> int:
        return min(bodies.MAX_IMAGES, self.queue)


class Model:
    """A loaded model with the queue before it."""

    def __init__(self, predictor: Predictor, name: str, limits: Limits, metrics: ServerMetrics) -> None:
        self.name, self.card, self.calibration = name, predictor.card, predictor.calibration
        self._predictor = predictor
        # What comes first takes longer than what follows, by seconds.
        drawn = io.BytesIO()
        Image.new("RGB", (8, 8)).save(drawn, "JPEG")
        predictor.decode(drawn.getvalue())
        blank = [torch.zeros(3, self.card.image_size, self.card.image_size, dtype=torch.uint8)] * predictor.batch
        for _ in range(2):
            start = time.perf_counter()
            self._run(blank)
        rate = len(blank) / (time.perf_counter() - start)
        self.batcher: Batcher[Prediction] = Batcher(
            predictor.decode, self._run, predictor.batch, limits.queue, limits.wait_s, limits.timeout_s, rate, metrics
        )

    def _run(self, pixels: Sequence[torch.Tensor]) -> list[Prediction]:
        probabilities = self._predictor.distributions(torch.stack(list(pixels)))
        answers = answer(probabilities, self.calibration)
        most_probable, rounded_mean, median = (answers.decoded[rule] for rule in DECODINGS)
        return [
            {
                "counts": self.calibration.counts,
                "probabilities": probabilities[row].tolist(),
                "most_probable": int(most_probable[row]),
                "rounded_mean": int(rounded_mean[row]),
                "median": int(median[row]),
                "set": [int(answers.low[row]), int(answers.high[row])],
                "coverage": self.calibration.coverage,
                "unsure": bool(answers.unsure[row]),
            }
            for row in range(len(probabilities))
        ]


def verdict(prediction: Prediction, expected: int, calibration: Calibration) -> Verdict:
    """How likely a record is wrong, of a count the model tells apart."""
    counts = calibration.counts
    record = min(expected, counts[-1]) if calibration.open_ended else expected
    if record not in counts:
        told = ", ".join(map(str, counts))
        return {"expected": expected, "wrong": None, "why": f"the model knows the counts {told}, not {expected}"}
    probabilities = np.array([prediction["probabilities"]])
    share = wrong(probabilities, counts, np.array([record]), calibration.record_error_rate)
    return {"expected": expected, "wrong": float(share[0])}


class Endpoint:
    """What the routes answer from; it is up before its model is loaded."""

    def __init__(self, limits: Limits, token: str | None) -> None:
        self.limits, self.token = limits, token
        self.metrics = ServerMetrics()
        self.model: Model | None = None
        self.draining = False
        self.metrics.queue.set_function(lambda: self.model.batcher.taken if self.model else 0)

    def ready(self) -> Model:
        """Raises HTTPException 503 while loading or draining."""
        if self.model is None:
            raise HTTPException(503, "the model is being loaded; try again in a few seconds", {"retry-after": "5"})
        if self.draining:
            raise HTTPException(503, "the server is stopping; ask another", {"retry-after": "5"})
        return self.model

    def authorise(self, request: Request) -> None:
        """Raises HTTPException 401 unless the request has the token, where there is one."""
        given = request.headers.get("authorization", "").encode()
        if self.token and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            raise HTTPException(401, "send the header 'Authorization: Bearer TOKEN'", {"www-authenticate": "Bearer"})

    async def invocations(self, request: Request) -> Response:
        self.authorise(request)
        model = self.ready()
        content_type = request.headers.get("content-type", "")
        kind = bodies.kind_of(content_type)
        if kind is None:
            shown = content_type[: bodies.SHOWN]
            raise HTTPException(415, f"the Content-Type is {shown!r}; send an image, {bodies.JSON} or {bodies.FORM}")
        try:
            expected = _expected(request)
            with model.batcher.place() as place:
                body = await self._read(request)
                if kind == bodies.RAW[0]:
                    photographs = [bodies.Photograph(body, expected)]
                else:
                    photographs = await asyncio.to_thread(_several, kind, body, content_type, expected)
                    if len(photographs) > self.limits.images:
                        raise UserError(f"{len(photographs)} images are too many; send {self.limits.images} at most")
                    place.take(len(photographs) - 1)
                del body
                predictions = await _answered(model, photographs, request)
        except UserError as fault:
            raise HTTPException(400, str(fault)) from fault
        except Full as full:
            raise HTTPException(
                429,
                f"{model.batcher.taken} of {model.batcher.places} places are taken; try again in {full.after_s} s",
                {"retry-after": str(full.after_s)},
            ) from full
        except ClientDisconnect:
            predictions = None
        if predictions is None:
            return Response(status_code=GONE)
        content = predictions[0] if kind == bodies.RAW[0] else {"predictions": predictions}
        return JSONResponse(content, headers={"x-model": model.name})

    async def _read(self, request: Request) -> bytes:
        """Raises HTTPException 413 or 408 for a body that is too large or too slow."""
        most = self.limits.bytes
        too_large = HTTPException(413, f"the body has more than {most:,} bytes; send smaller or fewer images")
        length = request.headers.get("content-length", "0")
        if len(length) > len(str(most)) or int(length) > most:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > most:
                        raise too_large
                    chunks.append(chunk)
        except TimeoutError:
            said = f"{size:,} bytes came within {BODY_S:.0f} s and the body is not whole; send it faster"
            raise HTTPException(408, said, {"connection": "close"}) from None
        return b"".join(chunks)


def _expected(request: Request) -> int | None:
    texts = request.query_params.getlist("expected")
    if len(texts) > 1:
        raise UserError(f"expected is given {len(texts)} times; give it once")
    return bodies.read_record(texts[0]) if texts else None


def _several(kind: str, body: bytes, content_type: str, expected: int | None) -> list[bodies.Photograph]:
    if kind == bodies.JSON:
        return bodies.read_json(body, expected)
    return bodies.read_form(body, content_type, expected)


async def _answered(
    model: Model, photographs: Sequence[bodies.Photograph], request: Request
) -> list[Prediction] | None:
    """Predictions with what is said of records; None if the client has gone. Raises UserError for the first bad one."""
    results = model.batcher.submit([photograph.body for photograph in photographs])

    def drop(_: object = None) -> None:
        for result in results:
            result.cancel()

    gone = asyncio.ensure_future(request.receive())  # the body is read: only a disconnect can come
    gone.add_done_callback(drop)
    try:
        predictions = []
        for number, (result, photograph) in enumerate(zip(results, photographs, strict=True), 1):
            prediction = await result
            if isinstance(prediction, UserError):
                raise UserError(f"image {number} of {len(results)}: {prediction}") if len(results) > 1 else prediction
            if photograph.expected is not None:
                prediction["record"] = verdict(prediction, photograph.expected, model.calibration)
            predictions.append(prediction)
        return predictions
    except asyncio.CancelledError:
        if not gone.done():
            raise
        return None
    finally:
        gone.cancel()
        drop()
