"""`bintally serve` as a process: token, full queue, stopping, the model of a revision, and the page in a browser."""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest
from dvc.repo import Repo
from playwright.sync_api import Browser, Page

from bintally import cli
from bintally.apps.serve import TOKEN_VARIABLE, fetch_model
from bintally.errors import UserError
from bintally.scoring.calibration import load_calibration, save_calibration
from server_process import JPEG, ServerProcess, bin_images, running_server, save_small_model
from small import CALIBRATION

GOOD = bin_images()[0]
SECRET = "correct-horse"  # noqa: S105
SLOTS = 4


@pytest.fixture(scope="module")
def server(exported_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with few slots and a token."""
    token = tmp_path_factory.mktemp("serve") / "token"
    token.write_text(SECRET + "\n")
    with running_server(exported_model, "--queue", str(SLOTS), "--token-file", str(token)) as running:
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


def start_request(port: int, body: bytes, token: str | None = None) -> socket.socket:
    """A connection that has sent a head and half a body."""
    sender = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {len(body)}\r\n"
    authorised = f"authorization: Bearer {token}\r\n" if token else ""
    sender.sendall(f"{head}{authorised}\r\n".encode() + body[: len(body) // 2])
    return sender


def wait_for_taken_slots(server: ServerProcess, slots: int) -> None:
    while f"bintally_queue_images {slots:.1f}" not in httpx.get(f"{server.url}/metrics").text:
        assert server.process.poll() is None


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


def error_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that fails."""
    monkeypatch.setattr(sys, "argv", ["bintally", "serve", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    assert caught.value.code == 1 and captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_predictions_require_the_token(server: ServerProcess) -> None:
    with httpx.Client(base_url=server.url) as client:
        for path in ("/ping", "/live", "/ready", "/metrics", "/"):
            assert client.get(path).status_code == 200
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": SECRET}):
            for response in (
                client.post("/invocations", content=GOOD, headers=JPEG | headers),
                client.get("/model", headers=headers),
            ):
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
                assert "Authorization: Bearer" in response.json()["detail"]
        authorised = {"authorization": f"Bearer {SECRET}"}
        assert client.post("/invocations", content=GOOD, headers=JPEG | authorised).status_code == 200
        schema = client.get("/openapi.json").json()
        assert schema["paths"]["/invocations"]["post"]["security"] == [{"token": []}]


def test_a_full_queue_answers_429_before_the_body_is_read(server: ServerProcess) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(closing(start_request(server.port, GOOD, SECRET))) for _ in range(SLOTS)]
        wait_for_taken_slots(server, SLOTS)
        with closing(start_request(server.port, GOOD, SECRET)) as sender:
            response = read_response(sender).decode()
        assert response.startswith("HTTP/1.1 429 ") and "4 of 4 slots are taken; try again in " in response
        after = int(response.lower().partition("retry-after: ")[2].partition("\r")[0])
        assert after >= 1
        assert all(finish_request(sender, GOOD).startswith(b"HTTP/1.1 200 ") for sender in held)
    too_many = httpx.post(
        f"{server.url}/invocations",
        files=[("images", ("bin.jpg", GOOD))] * (SLOTS + 1),
        headers={"authorization": f"Bearer {SECRET}"},
    )
    assert too_many.status_code == 400 and "5 images are too many; send at most 4" in too_many.text


def test_on_sigterm_admitted_requests_are_answered(exported_model: Path) -> None:
    with running_server(exported_model, wait=False) as server, ExitStack() as stack:
        loading = httpx.get(f"{server.url}/ready", timeout=60)
        assert loading.status_code == 503 and "being loaded" in loading.text
        assert httpx.get(f"{server.url}/ping").status_code == 503
        assert httpx.get(f"{server.url}/live").status_code == 200
        server.wait_until_ready()
        held = [stack.enter_context(closing(start_request(server.port, body))) for body in bin_images()]
        wait_for_taken_slots(server, len(held))
        server.process.send_signal(signal.SIGTERM)
        while (draining := httpx.get(f"{server.url}/ready")).status_code == 200:
            time.sleep(0.01)
        assert draining.status_code == 503 and draining.headers["connection"] == "close"
        late = httpx.post(f"{server.url}/invocations", content=GOOD, headers=JPEG)
        assert late.status_code == 503 and "stopping" in late.text
        responses = [finish_request(sender, body) for sender, body in zip(held, bin_images(), strict=True)]
        assert all(one.startswith(b"HTTP/1.1 200 ") for one in responses)
        assert server.process.wait(60) == 0


def test_unusable_arguments_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    everywhere = "0.0.0.0"  # noqa: S104
    assert f"--host {everywhere} can be reached" in error_message(monkeypatch, capsys, "--host", everywhere)
    assert "--token-file none cannot be read" in error_message(monkeypatch, capsys, "--token-file", "none")
    monkeypatch.setenv(TOKEN_VARIABLE, "two words")
    assert f"{TOKEN_VARIABLE} holds no token" in error_message(monkeypatch, capsys)
    monkeypatch.delenv(TOKEN_VARIABLE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1, port {port}" in error_message(monkeypatch, capsys, "--port", port)
    with running_server(tmp_path, wait=False) as server:
        assert server.process.wait(60) == 1, "the model does not exist"


def test_the_model_of_any_revision_can_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    save_small_model(tmp_path / "models")
    assert os.system("git init -q . && dvc init -q && dvc remote add -q -d store remote") == 0  # noqa: S605
    second = CALIBRATION.model_copy(update={"temperature": 0.5})
    for number, calibration in enumerate((CALIBRATION, second), 1):
        save_calibration(tmp_path / "models", calibration)
        with Repo() as repo:
            repo.add("models")
        assert os.system(f"git add -A . && git commit -qm {number} && git tag v{number}") == 0  # noqa: S605
    first = fetch_model("v1")
    assert first == fetch_model("HEAD~1") and first.is_relative_to(".bintally")
    assert load_calibration(first) == CALIBRATION and load_calibration(fetch_model("v2")) == second
    assert (first / "model.safetensors").read_bytes() == Path("models/model.safetensors").read_bytes()
    with pytest.raises(UserError, match="--rev v3 is no revision here"):
        fetch_model("v3")


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


def test_the_page_fits_a_phone_and_shows_errors(page: Page, server: ServerProcess, tmp_path: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    (tmp_path / "good.jpg").write_bytes(GOOD)
    page.locator("#files").set_input_files([tmp_path / "bad.jpg", tmp_path / "good.jpg"])
    page.locator("#secret").fill(SECRET)
    page.get_by_role("button", name="Use it").click()
    page.get_by_text("an image of 3 bytes does not decode").wait_for()
    page.get_by_text("1 of 2 counted.").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#camera").get_attribute("capture") == "environment"
    page.get_by_label("The record says").first.fill("7")
    page.keyboard.press("Tab")
    page.get_by_text("the model distinguishes the counts 2, 3, 5, not 7").wait_for()
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / "phone.png", full_page=True)
