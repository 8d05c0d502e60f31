"""The pages of the repository and the commands they tell a reader to type."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
NOT_COMMANDS = ("mermaid", "json", "csv", "text", "yaml")  # languages of fenced blocks
LISTINGS = ("dvc.yaml  params.yaml  dvc.lock", "mybins/")  # how indented blocks begin that show files


def blocks(page: Path) -> Iterator[list[str]]:
    """The lines of each fenced or indented block that holds commands."""
    block: list[str] = []
    fence: str | None = None
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if mark := re.match(r"\s*```(\w*)", line):
            if fence is not None and fence not in NOT_COMMANDS:
                yield block
            block, fence = [], mark[1] if fence is None else None
        elif fence is not None or line.startswith("    "):
            block.append(line.strip())
        elif block:
            if not block[0].startswith(LISTINGS):
                yield block
            block = []


def commands(page: Path) -> list[str]:
    """Every command of a page, continued lines joined, comments left out."""
    lines = [line for block in blocks(page) for line in "\n".join(block).replace("\\\n", "").splitlines()]
    without_comments = (re.sub(r"(^|\s+)#.*", "", line) for line in lines)
    return [" ".join(line.split()) for line in without_comments if line.strip()]


def words_in_backticks(page: Path) -> list[str]:
    """The inline code of a page, a line each."""
    text = re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
