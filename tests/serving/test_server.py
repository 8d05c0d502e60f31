"""`bintally serve` as a process: token, full queue, stopping, and the page in a browser."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page

from bintally.serving.answers import Prediction
from bintally.serving.batching import Batcher
from bintally.serving.endpoint import Endpoint, Limits, LoadedModel, Seen
from bintally.serving.routes import create_app
from server_process import JPEG, ServerProcess, bin_images, running_server
from small import CALIBRATION
from small_records import copy_model_with_records, record_text

GOOD = bin_images()[0]
SECRET = "correct-horse"  # noqa: S105
SLOTS = 4


@pytest.fixture(scope="module")
def server(exported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with few slots and a token."""
    folder = copy_model_with_records(exported_model, tmp_path_factory.mktemp("serve"))
    token = folder / "token"
    token.write_text(SECRET + "\n")
    with running_server(folder, "--queue", str(SLOTS), "--token-file", str(token)) as running:
        yield running


@pytest.fixture
def page(server: ServerProcess, browser: Browser) -> Iterator[Page]:
    """The page in a browser; it contacts the server alone and logs no error but those that tests provoke."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    urls: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: urls.append(request.url))
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("filechooser", lambda _: None)  # from the start: a chooser that opens before it is awaited is missed
    opened.set_default_timeout(120_000)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server.url)
    yield opened
    context.close()
    assert urls and all(url.startswith((server.url, f"blob:{server.url}")) for url in urls)
    assert [text for text in errors if "401" not in text and "400" not in text] == []


def start_request(server: ServerProcess, body: bytes) -> socket.socket:
    """A connection whose request the server has accepted, with half of its body."""
    sender = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST /invocations HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\nexpect: 100-continue\r\n"
    sender.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode())
    assert sender.recv(9999) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sender.sendall(body[: len(body) // 2])
    return sender


def finish_request(sender: socket.socket, body: bytes) -> bytes:
    sender.sendall(body[len(body) // 2 :])
    return read_response(sender)


def read_response(sender: socket.socket) -> bytes:
    """A complete response with a body of JSON."""
    response = b""
    while not response.endswith(b"}"):
        more = sender.recv(9999)
        assert more, response
        response += more
    return response


def test_predictions_require_the_token(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url) as client:
        for path in ("/ping", "/live", "/ready", "/metrics", "/"):
            assert client.get(path).status_code == 200
        wrong = (
            "",
            "Bearer",
            "Bearer other",
            f"Bearer{SECRET}",
            f"Basic {SECRET}",
            f"Bearer {SECRET} {SECRET}",
            SECRET,
        )
        for headers in ({}, *({"authorization": one} for one in wrong)):
            for response in (
                client.post("/invocations", content=GOOD, headers=JPEG | headers),
                client.get("/model", headers=headers),
            ):
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
                assert "Authorization: Bearer" in response.json()["detail"]
        for scheme in ("Bearer", "bearer", "BEARER "):
            authorised = {
                "authorization": f"{scheme} {SECRET}",
                "host": "any.example",
                "origin": "http://other.example",
            }
            assert client.post("/invocations", content=GOOD, headers=JPEG | authorised).status_code == 200
        schema = client.get("/openapi.json").json()
        assert schema["paths"]["/invocations"]["post"]["security"] == [{"token": []}]


def test_a_full_queue_answers_429(server: ServerProcess) -> None:
    authorised = {"authorization": f"Bearer {SECRET}"}

    def post(body: bytes) -> httpx.Response:
        return httpx.post(f"{server.url}/invocations", content=body, headers=JPEG | authorised, timeout=60)

    with ThreadPoolExecutor(8 * SLOTS) as pool:
        found: list[httpx.Response] = []
        while {200, 429} - {one.status_code for one in found}:
            found += pool.map(post, [GOOD] * 8 * SLOTS)
    for one in found:
        assert one.status_code in (200, 429)
        if one.status_code == 429:
            assert f"of {SLOTS} slots are taken; try again in " in one.text and int(one.headers["retry-after"]) >= 1
    files = [("images", ("bin.jpg", GOOD))] * (SLOTS + 1)
    too_many = httpx.post(f"{server.url}/invocations", files=files, headers=authorised)
    assert too_many.status_code == 400 and "5 images are too many; send at most 4" in too_many.text


def test_a_place_is_taken_by_a_body_that_is_there_and_no_body_is_read_in_vain() -> None:
    go_on, read = threading.Event(), []

    def run(batch: Sequence[torch.Tensor]) -> list[Seen]:
        assert go_on.wait(60)
        prediction = cast(Prediction, {"counts": CALIBRATION.counts, "most_probable": 1, "unsure": False})
        return [Seen(prediction, np.zeros((0, len(CALIBRATION.counts))), 0.5)] * len(batch)

    async def content(name: str, end: asyncio.Event | None = None) -> AsyncIterator[bytes]:
        read.append(name)
        yield b"x"
        if end:
            await end.wait()

    async def work() -> None:
        endpoint = Endpoint(Limits(SLOTS), None)
        batcher = Batcher(lambda _: torch.zeros(1), run, 1, SLOTS, 0, 60, 1000, endpoint.metrics)
        endpoint.model = cast(LoadedModel, SimpleNamespace(batcher=batcher, digest="0", calibration=CALIBRATION))
        transport = httpx.ASGITransport(create_app(endpoint))
        end = asyncio.Event()
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as client:

            def post(name: str, end: asyncio.Event | None = None) -> "asyncio.Future[httpx.Response]":
                request = client.post("/invocations", content=content(name, end=end), headers=JPEG)
                return asyncio.ensure_future(request)

            slow = [post("slow", end) for _ in range(8 * SLOTS)]
            while read.count("slow") < len(slow):
                await asyncio.sleep(0)
            assert batcher.taken == 0
            admitted = [post("admitted") for _ in range(SLOTS)]
            while batcher.taken < SLOTS:
                await asyncio.sleep(0.001)
            refused = await post("refused")
            assert refused.status_code == 429 and "refused" not in read
            end.set()
            assert {one.status_code for one in await asyncio.gather(*slow)} == {429}, "their bodies came too late"
            go_on.set()
            assert {one.status_code for one in await asyncio.gather(*admitted)} == {200} and batcher.taken == 0
        batcher.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_on_sigterm_admitted_requests_are_answered(exported_model: Path) -> None:
    with running_server(exported_model, wait=False) as server, ExitStack() as stack:
        loading = httpx.get(f"{server.url}/ready", timeout=60)
        assert loading.status_code == 503 and "being loaded" in loading.text
        assert httpx.get(f"{server.url}/ping").status_code == 503
        assert httpx.get(f"{server.url}/live").status_code == 200
        server.wait_until_ready()
        held = [stack.enter_context(closing(start_request(server, body))) for body in bin_images()]
        server.process.send_signal(signal.SIGTERM)
        while (draining := httpx.get(f"{server.url}/ready")).status_code == 200:
            time.sleep(0.01)
        assert draining.status_code == 503 and draining.headers["connection"] == "close"
        late = httpx.post(f"{server.url}/invocations", content=GOOD, headers=JPEG)
        assert late.status_code == 503 and "stopping" in late.text
        responses = [finish_request(sender, body) for sender, body in zip(held, bin_images(), strict=True)]
        assert all(one.startswith(b"HTTP/1.1 200 ") for one in responses)
        assert server.process.wait(60) == 0


def test_the_page_works_by_keyboard_alone(page: Page, server: ServerProcess, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for file, body in zip(files, bin_images(), strict=False):
        file.write_bytes(body)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(files)
    page.get_by_label("This server requires a token").wait_for()
    page.keyboard.type(SECRET)
    page.keyboard.press("Enter")
    page.get_by_text("2 of 2 counted.").wait_for()
    authorised = JPEG | {"authorization": f"Bearer {SECRET}"}
    predictions = [
        httpx.post(f"{server.url}/invocations?expected=2", content=file.read_bytes(), headers=authorised).json()
        for file in files
    ]
    predictions.reverse()  # the page shows the newest first
    counts = page.locator(".count").all_inner_texts()
    assert counts == [str(one["most_probable"]) for one in predictions]
    marked = [len(bars.locator(".inside").all()) for bars in page.locator(".bars").all()]
    assert marked == [sum(one["set"][0] <= count <= one["set"][1] for count in one["counts"]) for one in predictions]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    probability = predictions[0]["record"]["error_probability"]
    page.get_by_text("Record 2: likely wrong" if probability >= 0.5 else "Record 2: likely right").wait_for()
    assert page.locator("#bins img").first.evaluate("image => image.naturalWidth") > 0


def test_the_page_judges_a_pasted_record(page: Page, server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "bin.jpg").write_bytes(GOOD)
    page.locator("#files").set_input_files(tmp_path / "bin.jpg")
    page.locator("#secret").fill(SECRET)
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("1 of 1 counted.").wait_for()
    page.get_by_text("Paste the whole record").click()
    field, photograph = page.get_by_label("The record, as JSON"), page.locator(".count").inner_text()
    field.fill("{3")
    page.keyboard.press("Tab")
    page.get_by_text("image 1 of 1: record is not JSON").wait_for()
    assert page.locator(".count").all_inner_texts() == [photograph]

    field.fill(record_text(LAMP=2, CLOCK=1))
    page.keyboard.press("Tab")
    page.get_by_role("heading", name="Given the products in the record").wait_for()
    parts = [("images", ("bin.jpg", GOOD)), ("records", ("bin.json", record_text(LAMP=2, CLOCK=1).encode()))]
    authorised = {"authorization": f"Bearer {SECRET}"}
    answer = httpx.post(f"{server.url}/invocations", files=parts, headers=authorised).json()["predictions"][0]
    headings = page.get_by_role("heading", level=2).all_inner_texts()
    assert headings == ["From the photograph alone", "Given the products in the record"]
    counts = [photograph, str(answer["given_products"]["most_probable"])]
    assert page.locator(".count").all_inner_texts() == counts
    verdict = answer["record"]["verdict"]
    assert page.locator(".verdict").inner_text() == f"{verdict[0].upper()}{verdict[1:]}."
    rows = page.locator("tr td:first-child").all_inner_texts()
    assert rows == [one["text"] for one in answer["record"]["hypotheses"]]
    assert page.get_by_label("The record says").input_value() == "3"
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / "record.png", full_page=True)

    field.fill("")
    page.keyboard.press("Tab")
    page.locator(".verdict").wait_for(state="detached")
    assert page.locator(".count").all_inner_texts() == [photograph]


def test_the_page_fits_a_phone_and_shows_errors(page: Page, server: ServerProcess, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    (tmp_path / "good.jpg").write_bytes(GOOD)
    page.locator("#files").set_input_files([tmp_path / "bad.jpg", tmp_path / "good.jpg"])
    page.locator("#secret").fill(SECRET)
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("image does not decode").wait_for()
    page.get_by_text("1 of 2 counted.").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#camera").get_attribute("capture") == "environment"
    page.get_by_label("The record says").first.fill("7")
    page.keyboard.press("Tab")
    page.get_by_text("the model distinguishes the counts 2, 3, 5, not 7").wait_for()
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / "phone.png", full_page=True)
