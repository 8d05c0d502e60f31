"""The generated parts of the pages are what the package says today."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_parts_of_pages_are_up_to_date() -> None:
    for path, text in runpy.run_path(str(ROOT / "docs/generate.py"))["pages"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date; type: python docs/generate.py"
