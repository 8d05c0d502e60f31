"""Every line the results name is one that the graph takes."""

import shlex
from pathlib import Path

import pytest
import yaml

from bintally.params import load_params

ROOT = Path(__file__).parents[1]
ROWS = [
    row for table in yaml.safe_load((ROOT / "docs/search.yaml").read_text()) for row in table["rows"] if "of" not in row
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_the_options_of_a_row_are_parameters_and_allowed(row: dict[str, str], tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    words = shlex.split((ROOT / "settings" / row["settings"]).read_text() + " " + row.get("options", ""))
    assert words[::2] == ["-S"] * (len(words) // 2)
    for option in words[1::2]:
        name, value = option.split("=", 1)
        section, key = name.split(".")
        assert key in content[section]
        content[section][key] = yaml.safe_load(value)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    assert load_params(tmp_path / "params.yaml").answer_counts[0] in (0, 1)
