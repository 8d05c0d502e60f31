"""`bintally serve` before it serves: its arguments, and the model of a revision."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bintally import cli
from bintally.apps.remote import remote_server
from bintally.apps.seaweedfs import free_ports
from bintally.apps.serve import TOKEN_VARIABLE, fetch_model
from bintally.errors import UserError
from bintally.scoring.calibration import load_calibration, save_calibration
from bintally.scoring.record_model import load_record_model, save_record_model
from bintally.serving.server import listen
from server_process import running_server, save_small_model
from small import CALIBRATION
from small_records import record_model

EVERYWHERE = "0.0.0.0"  # noqa: S104


def error_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that fails prints to standard error."""
    monkeypatch.setattr(sys, "argv", ["bintally", "serve", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    captured = capsys.readouterr()
    assert caught.value.code and captured.out == ""
    return captured.err


def test_unusable_arguments_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def message(*arguments: str) -> str:
        said = error_message(monkeypatch, capsys, *arguments)
        assert said.count("\n") == 1
        return said

    # Before the model of a revision is looked for: there is no repository here.
    for more in ((), ("--rev", "v1")):
        assert f"--host {EVERYWHERE} can be reached" in message("--host", EVERYWHERE, *more)
        assert "--host 'nowhere.invalid' is no address" in message("--host", "nowhere.invalid", *more)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            assert f"cannot listen on 127.0.0.1, port {port}" in message("--port", port, *more)
    assert "--token-file none cannot be read" in message("--token-file", "none")
    monkeypatch.setenv(TOKEN_VARIABLE, "two words")
    assert f"{TOKEN_VARIABLE} holds no token" in message()
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    assert f"{TOKEN_VARIABLE} holds no token" in message()
    monkeypatch.delenv(TOKEN_VARIABLE)
    with running_server(tmp_path, wait=False) as server:
        assert server.process.wait(60) == 1, "the model does not exist"


@pytest.mark.parametrize("option", ["--rev", "--model", "--host"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_option_without_its_value_starts_no_server(
    model_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
) -> None:
    said = error_message(monkeypatch, capsys, "--port", "0", option, value)
    assert f"{option}: {value!r} is empty" in said


def test_names_are_those_of_loopback_unless_a_token_or_the_user_allows_others() -> None:
    with listen("localhost", 0, protected=False, open_access=False) as address:
        port = address.listener.getsockname()[1]
        assert address.names == {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}
        assert address.url == f"http://localhost:{port}"
    with listen("127.0.0.7", 0, protected=False, open_access=False) as address:
        assert f"127.0.0.7:{address.listener.getsockname()[1]}" in address.names
    for protected, open_access in ((True, False), (False, True)):
        with listen("127.0.0.1", 0, protected, open_access) as address:
            assert not address.names


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository of git and DVC, with the small model, as the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    save_small_model(tmp_path / "models")
    run("git init -q")
    run("dvc init -q")
    return tmp_path


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


def test_the_model_of_any_revision_can_be_fetched(repository: Path) -> None:
    second = CALIBRATION.model_copy(update={"temperature": 0.5})
    for number, calibration in enumerate((CALIBRATION, second), 1):
        save_calibration(repository / "models", calibration)
        if number == 2:
            save_record_model(repository / "models", record_model())
        for command in ("dvc add -q models", "git add -A .", f"git commit -qm {number}", f"git tag v{number}"):
            run(command)
    first = fetch_model("v1")
    assert first == fetch_model("HEAD~1") and first.is_relative_to(".bintally")
    assert load_calibration(first) == CALIBRATION and load_calibration(fetch_model("v2")) == second
    assert (first / "model.safetensors").read_bytes() == Path("models/model.safetensors").read_bytes()
    assert load_record_model(first) is None and load_record_model(fetch_model("v2")) == record_model()
    with pytest.raises(UserError, match="--rev v3 is no revision here"):
        fetch_model("v3")


def test_a_model_that_lies_in_the_loopback_store_alone_is_fetched(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("dvc remote add -q -d store s3://bintally")
    run(f"dvc remote modify -q store endpointurl http://127.0.0.1:{free_ports(1)[0]}")
    for command in ("dvc add -q models", "git add -A .", "git commit -qm 1"):
        run(command)
    with remote_server():
        run("dvc push -q")
    # As in a clone: no cache, and no keys.
    for name in (".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(repository / name)
    (repository / ".dvc/config.local").unlink()
    assert load_calibration(fetch_model("HEAD")) == CALIBRATION

    shutil.rmtree(repository / ".bintally/served")
    shutil.rmtree(repository / ".dvc/cache", ignore_errors=True)
    (repository / ".dvc/config.local").unlink(missing_ok=True)
    run("dvc remote modify -q --local store endpointurl https://nothing.invalid")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match=r"the model of commit \w{7} cannot be fetched: Unable to locate credentials"):
        fetch_model("HEAD")
