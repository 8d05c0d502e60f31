"""`bintally serve` as it is run: who may ask, when it is full, how it stops, which model it takes, and its page."""

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
from playwright.sync_api import Page, sync_playwright

from bintally import cli
from bintally.errors import UserError
from bintally.scoring.calibration import load_calibration, save_calibration
from bintally.serving.server import TOKEN, fetch_model
from served import JPEG, Served, photographs, saved_model, serving
from small import CALIBRATION

GOOD = photographs()[0]
SECRET = "correct-horse"  # noqa: S105
PLACES = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "token").write_text(SECRET + "\n")
    model = saved_model(folder / "model")
    options = ["--model", str(model), "--queue", str(PLACES), "--token-file", "token"]
    with serving(folder, *options) as running:
        yield running


@pytest.fixture
def page(server: Served) -> Iterator[Page]:
    """The page; it may ask none but the server and break no rule of its own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 800})
        asked: list[str] = []
        complaints: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("filechooser", lambda _: None)  # from the start: a chooser that opens before it is awaited is missed
        opened.set_default_timeout(120_000)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(server.url)
        yield opened
        browser.close()
    assert asked and all(url.startswith((server.url, f"blob:{server.url}")) for url in asked)
    assert [text for text in complaints if "401" not in text and "400" not in text] == []


def begun(port: int, body: bytes, token: str | None = None) -> socket.socket:
    """A connection that has sent a head and half a body."""
    sender = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {len(body)}\r\n"
    authorised = f"authorization: Bearer {token}\r\n" if token else ""
    sender.sendall(f"{head}{authorised}\r\n".encode() + body[: len(body) // 2])
    return sender


def wait_for_taken(server: Served, places: int) -> None:
    while f"bintally_queue_images {places:.1f}" not in httpx.get(f"{server.url}/metrics").text:
        assert server.process.poll() is None


def finished(sender: socket.socket, body: bytes) -> bytes:
    sender.sendall(body[len(body) // 2 :])
    return answer(sender)


def answer(sender: socket.socket) -> bytes:
    """A whole one; its body is JSON."""
    said = b""
    while not said.endswith(b"}"):
        more = sender.recv(9999)
        assert more, said
        said += more
    return said


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that says why the command fails."""
    monkeypatch.setattr(sys, "argv", ["bintally", "serve", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr()
    assert caught.value.code == 1 and said.out == "" and said.err.count("\n") == 1
    return said.err


def test_photographs_are_for_those_with_the_token(server: Served) -> None:
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
        known = {"authorization": f"Bearer {SECRET}"}
        assert client.post("/invocations", content=GOOD, headers=JPEG | known).status_code == 200
        schema = client.get("/openapi.json").json()
        assert schema["paths"]["/invocations"]["post"]["security"] == [{"token": []}]


def test_beyond_the_queue_is_429_before_the_body_is_read(server: Served) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(closing(begun(server.port, GOOD, SECRET))) for _ in range(PLACES)]
        wait_for_taken(server, PLACES)
        with closing(begun(server.port, GOOD, SECRET)) as sender:
            said = answer(sender).decode()
        assert said.startswith("HTTP/1.1 429 ") and "4 of 4 places are taken; try again in " in said
        after = int(said.lower().partition("retry-after: ")[2].partition("\r")[0])
        assert after >= 1
        assert all(finished(sender, GOOD).startswith(b"HTTP/1.1 200 ") for sender in held)
    too_many = httpx.post(
        f"{server.url}/invocations",
        files=[("images", ("bin.jpg", GOOD))] * (PLACES + 1),
        headers={"authorization": f"Bearer {SECRET}"},
    )
    assert too_many.status_code == 400 and "5 images are too many; send 4 at most" in too_many.text


def test_asked_to_stop_it_answers_what_it_took_in(tmp_path: Path) -> None:
    saved_model(tmp_path / "models")
    with serving(tmp_path, wait=False) as server, ExitStack() as stack:
        loading = httpx.get(f"{server.url}/ready", timeout=60)
        assert loading.status_code == 503 and "being loaded" in loading.text
        assert httpx.get(f"{server.url}/ping").status_code == 503
        assert httpx.get(f"{server.url}/live").status_code == 200
        server.wait_until_ready()
        held = [stack.enter_context(closing(begun(server.port, body))) for body in photographs()]
        wait_for_taken(server, len(held))
        server.process.send_signal(signal.SIGTERM)
        while (said := httpx.get(f"{server.url}/ready")).status_code == 200:
            time.sleep(0.01)
        assert said.status_code == 503 and said.headers["connection"] == "close"
        late = httpx.post(f"{server.url}/invocations", content=GOOD, headers=JPEG)
        assert late.status_code == 503 and "stopping" in late.text
        answers = [finished(sender, body) for sender, body in zip(held, photographs(), strict=True)]
        assert all(one.startswith(b"HTTP/1.1 200 ") for one in answers)
        assert server.process.wait(60) == 0


def test_beyond_loopback_it_wants_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    everywhere = "0.0.0.0"  # noqa: S104
    assert f"--host {everywhere} can be reached" in refused(monkeypatch, capsys, "--host", everywhere)
    assert "--token-file none cannot be read" in refused(monkeypatch, capsys, "--token-file", "none")
    monkeypatch.setenv(TOKEN, "two words")
    assert f"{TOKEN} holds no token" in refused(monkeypatch, capsys)
    monkeypatch.delenv(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1, port {port}" in refused(monkeypatch, capsys, "--port", port)
    with serving(tmp_path, wait=False) as server:
        assert server.process.wait(60) == 1, "there is no model"


def test_any_revision_can_be_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    saved_model(tmp_path / "models")
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


def test_the_page_counts_by_keyboard_alone(page: Page, server: Served, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for file, body in zip(files, photographs(), strict=False):
        file.write_bytes(body)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(files)
    page.get_by_label("This server asks for its token").wait_for()
    page.keyboard.type(SECRET)
    page.keyboard.press("Enter")
    page.get_by_text("2 of 2 counted.").wait_for()
    known = {"authorization": f"Bearer {SECRET}"}
    said = [
        httpx.post(f"{server.url}/invocations?expected=2", content=file.read_bytes(), headers=JPEG | known).json()
        for file in files
    ]
    counts = page.locator(".count").all_inner_texts()
    assert counts == [str(one["most_probable"]) for one in reversed(said)], "the newest comes first"
    marked = [len(bars.locator(".inside").all()) for bars in page.locator(".bars").all()]
    assert marked == [sum(one["set"][0] <= count <= one["set"][1] for count in one["counts"]) for one in said[::-1]]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    share = said[-1]["record"]["wrong"]
    page.get_by_text("Record 2: likely wrong" if share >= 0.5 else "Record 2: likely right").wait_for()
    assert page.locator("#bins img").first.evaluate("image => image.naturalWidth") > 0


def test_the_page_fits_a_phone_and_says_what_is_wrong(page: Page, server: Served, tmp_path: Path) -> None:
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
    page.get_by_text("the model knows the counts 2, 3, 5, not 7").wait_for()
    if "SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / "phone.png", full_page=True)
