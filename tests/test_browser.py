"""Tests of pages find a browser wherever it lies, and name the remedy where there is none."""

from pathlib import Path

import pytest

import browser


@pytest.fixture
def of_playwright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Playwright's own browser would be, on a machine that has none."""
    monkeypatch.setattr(browser, "PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(browser.VARIABLE, raising=False)
    return tmp_path / "own"


def program(path: Path) -> str:
    path.touch(mode=0o755)
    return str(path)


def test_the_variable_goes_before_the_path_and_that_before_playwrights_own(
    of_playwright: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert browser.find_browser(str(of_playwright)) is None
    assert browser.find_browser(program(of_playwright)) == str(of_playwright)
    for command in reversed(browser.COMMANDS):
        assert browser.find_browser(str(of_playwright)) != str(tmp_path / command)
        created = program(tmp_path / command)
        assert browser.find_browser(str(of_playwright)) == created
    monkeypatch.setenv(browser.VARIABLE, "/any/browser")
    assert browser.find_browser(str(of_playwright)) == "/any/browser"


def test_where_there_is_none_one_line_says_what_to_type(of_playwright: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "find_browser", lambda _: None)
    with (
        pytest.raises(AssertionError, match=r"^no Chrome, .*; type: .venv/bin/playwright install"),
        browser.open_browser(),
    ):
        pass
    assert "\n" not in browser.MISSING
