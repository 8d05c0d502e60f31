"""Every preset, and every line of docs/results.md that is not history, is accepted as it stands."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bintally.apps.use import run
from bintally.params import load_params

ROOT = Path(__file__).parents[1]
TABLES = yaml.safe_load((ROOT / "benchmarks/search.yaml").read_text(encoding="utf-8"))
ROWS = [row for table in TABLES for row in table["rows"] if "commit" not in row]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_the_settings_and_options_of_a_row_are_allowed(
    row: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    run(argparse.Namespace(file=ROOT / f"settings/{row['settings']}.yaml"))
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    words = shlex.split(row.get("options", ""))
    assert words[::2] == ["-S"] * (len(words) // 2)
    for option in words[1::2]:
        name, value = option.split("=", 1)
        section, key = name.split(".")
        assert key in params[section]
        params[section][key] = yaml.safe_load(value)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    # Those of published results, or the challenge's.
    assert load_params().answer_counts in ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("preset", sorted((ROOT / "settings").iterdir()), ids=lambda preset: preset.stem)
def test_a_preset_is_allowed(preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    run(argparse.Namespace(file=preset))
    assert load_params().fetch.source == "s3://aft-vbi-pds"


def test_presets_set_the_same_parameters_so_that_nothing_of_another_stays() -> None:
    presets = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "settings").iterdir())]
    keys = [{(section, key) for section, values in preset.items() for key in values} for preset in presets]
    assert keys == [keys[0]] * len(keys)
