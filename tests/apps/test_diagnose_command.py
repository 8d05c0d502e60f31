"""`bintally diagnose`: what can be found out before its minutes of work is found out before."""

import sys
from pathlib import Path

import pytest

from bintally import cli


def test_a_folder_that_cannot_be_written_ends_with_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((Path(__file__).parents[2] / "params.yaml").read_bytes())
    Path("report/index.html").mkdir(parents=True)
    Path("file").touch()
    for to, reason in (("report", "'report/index.html' cannot be written (it is a"), ("file", "'file/trace.json.gz'")):
        monkeypatch.setattr(sys, "argv", ["bintally", "diagnose", "--to", to])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        err = capsys.readouterr().err  # no `dvc repro` has said anything
        assert caught.value.code == 1 and err.count("\n") == 1 and err.startswith(f"bintally: {reason}")
