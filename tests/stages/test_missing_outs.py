"""A stage that is run by hand before the one it depends on."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("stage", "missing"), [("split", "data/bins/index.csv"), ("train", "data/encoded/encoding.json")]
)
def test_what_an_earlier_stage_writes_is_missing(stage: str, missing: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    command = [sys.executable, "-m", f"bintally.stages.{stage}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"{stage}: {missing} does not exist: `dvc repro` creates it\n" in done.stderr
