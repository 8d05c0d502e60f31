"""`bintally` lists its commands at once and turns errors into one line and an exit code."""

import argparse
import subprocess
import sys
from types import ModuleType

import pytest

from bintally import cli
from bintally.errors import UserError

HEAVY = ("torch", "dvc", "optuna", "matplotlib", "sklearn", "onnxruntime", "fastapi", "PIL", "s3fs")
LIST_HEAVY = f"import sys; print([name for name in {HEAVY} if name in sys.modules])"


def output_of(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_imports_nothing_heavy_and_lists_what_there_is(command: str | None) -> None:
    arguments = [command] if command else []
    code = f"""
import sys
from bintally.cli import main
sys.argv = ["bintally", *{arguments}, "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
{LIST_HEAVY}"""
    *lines, heavy = output_of(code).splitlines()
    assert heavy == "[]"
    text = "\n".join(lines)
    if command:
        assert text.startswith(f"usage: bintally {command}")
    else:
        assert all(f"\n    {name} " in text for name in cli.COMMANDS)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a command, to be given a ``run``."""
    module = ModuleType("bintally.apps.example")
    module.configure = lambda parser: parser.set_defaults(func=module.run)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "example", ("example", "do nothing"))
    monkeypatch.setattr(sys, "argv", ["bintally", "example"])
    return module


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (20, 20, ""),
        (UserError("params.yaml does not exist here"), 1, "bintally: params.yaml does not exist here\n"),
        (UserError("said \x1b]0;x\x07,\nand more"), 1, "bintally: said \\x1b]0;x\\x07,\\nand more\n"),
        (PermissionError(13, "Permission denied", "a.csv"), 1, "bintally: 'a.csv': Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_the_outcome_of_a_command_becomes_the_exit_code(
    command: ModuleType, capsys: pytest.CaptureFixture[str], outcome: object, code: int, message: str
) -> None:
    def run(_arguments: argparse.Namespace) -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    command.run = run  # type: ignore[attr-defined]
    try:
        cli.main()
        exit_code: object = 0
    except SystemExit as end:
        exit_code = end.code
    assert (exit_code, capsys.readouterr().err) == (code, message)


def test_an_unknown_command_is_refused_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bintally", "errors"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "invalid choice: 'errors' (choose from" in capsys.readouterr().err
