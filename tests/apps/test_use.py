"""`bintally use` changes the values in params.yaml that a file names, and no other byte."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bintally.apps.use import replace_values, run
from bintally.errors import UserError
from bintally.params import load_params
from bintally.yaml_files import read_yaml

ROOT = Path(__file__).parents[2]
PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")
ADDED: dict[tuple[str, ...], object] = {
    ("fetch", "source"): "s3://aft-vbi-pds",
    ("fetch", "counts"): [0, 1, 2],
    ("fetch", "per_count"): None,
    ("model", "trainable"): 2,
    ("train", "lr"): 1e-05,
    ("train", "initial_image_size"): 96,
    ("calibrate", "counts"): [1, 2],
    ("tune", "prune"): False,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def use(settings: str) -> None:
    Path("settings.yaml").write_text(settings, encoding="utf-8")
    run(argparse.Namespace(file=Path("settings.yaml")))


def test_values_are_replaced_and_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use("train:\n  lr: 0.002\n  epochs: 30 # as it is\nfetch: {source: s3://bins, per_count: null}\n")
    expected = PARAMS.replace("  lr: 0.01\n", "  lr: 0.002\n")
    expected = expected.replace("source: demo #", "source: s3://bins #").replace(
        "per_count: 700 #", "per_count: null #"
    )
    assert (folder / "params.yaml").read_text(encoding="utf-8") == expected
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "train.lr:        0.01 → 0.002",
        "fetch.source:    demo → s3://bins",
        "fetch.per_count: 700 → null",
    ]
    use("train: {lr: 0.002}\n")
    assert capsys.readouterr().out == "params.yaml: nothing changed, it has the values of settings.yaml already\n"


def test_every_other_byte_stays_and_back_again() -> None:
    changed = replace_values(PARAMS, ADDED)
    before, after = PARAMS.splitlines(), changed.splitlines()
    assert len(before) == len(after)
    different = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(different) == len(ADDED)
    assert all(old.partition(" #")[2] == new.partition(" #")[2] for old, new in different)
    content = yaml.safe_load(PARAMS)
    assert replace_values(changed, {(section, key): content[section][key] for section, key in ADDED}) == PARAMS


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_a_byte_order_mark_stay(folder: Path, mark: str, end: str) -> None:
    def as_bytes(text: str) -> bytes:
        return (mark + text.replace("\n", end)).encode()

    (folder / "params.yaml").write_bytes(as_bytes(PARAMS))
    use(mark + "train:" + end + "  lr: 0.002" + end)
    assert (folder / "params.yaml").read_bytes() == as_bytes(PARAMS.replace("  lr: 0.01\n", "  lr: 0.002\n"))
    assert load_params().train.lr == 0.002


@pytest.mark.parametrize("counts", [[1, 2, 3], [7], None])
def test_a_list_that_dvc_has_written_over_several_lines_is_replaced(counts: list[int] | None) -> None:
    text = "a:\n  counts: # the classes\n  - 1\n  - 2\n  seed: '1' # quoted\n\n# the end\n"
    changed = replace_values(text, {("a", "counts"): counts})
    assert yaml.safe_load(changed) == {"a": {"counts": counts, "seed": "1"}}
    assert changed.endswith("  seed: '1' # quoted\n\n# the end\n") and "# the classes" in changed


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("train: {lrr: 0.1}", r"train\.lrr: there is no such parameter \(its value: 0\.1\), only counts, "),
        ("training: {lr: 0.1}", r"training: there is no such parameter"),
        ("train: {lr: -1}", r"train\.lr: -1 is not allowed: "),
        ("train: 3", r"train: 3 is not allowed: "),
        ("train: {initial_image_size: 96}", r"train\.initial_image_size: 96 needs pixels"),
        ("lr", r"settings\.yaml must hold sections of params\.yaml, such as `train:`, not 'lr'"),
        ("train: {lr: 0.1, lr: 0.2}", r"settings\.yaml is not valid YAML: .*'lr' is given twice"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_sentence(folder: Path, settings: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        use(settings)
    assert "\n" not in str(caught.value)
    assert (folder / "params.yaml").read_text(encoding="utf-8") == PARAMS


def test_a_file_that_does_not_exist_is_named_with_those_that_do(folder: Path) -> None:
    shutil.copytree(ROOT / "settings", "settings")
    with pytest.raises(UserError, match=r"settings/fast\.yaml does not exist; .*settings/quick\.yaml"):
        run(argparse.Namespace(file=Path("settings/fast.yaml")))
    with pytest.raises(UserError, match=r"settings cannot be read"):
        run(argparse.Namespace(file=Path("settings")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, r"params\.yaml does not exist here"), ("", r"params\.yaml: "), ("train: {lr: 1}\n", r"fetch: is missing")],
)
def test_parameters_that_are_missing_are_the_reason(folder: Path, content: str | None, reason: str) -> None:
    path = folder / "params.yaml"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=reason):
        use("train: {lr: 0.002}\n")
    assert path.exists() == (content is not None)


def test_two_at_once_lose_nothing(folder: Path) -> None:
    values = {"train.lr": 0.002, "train.epochs": 7, "fetch.seed": 8, "split.seed": 9}
    processes = []
    for key, value in values.items():
        section, name = key.split(".")
        file = folder / f"{key}.yaml"
        file.write_text(f"{section}: {{{name}: {value}}}\n")
        processes.append(subprocess.Popen([Path(sys.executable).with_name("bintally"), "use", file]))
    assert [process.wait() for process in processes] == [0] * len(values)
    params = load_params().model_dump()
    assert all(params[key.split(".")[0]][key.split(".")[1]] == value for key, value in values.items())


def test_one_file_of_settings_after_another_leaves_nothing_of_the_first(folder: Path) -> None:
    files = sorted((ROOT / "settings").glob("*.yaml"))
    keys = [{(section, key) for section, values in read_yaml(file).items() for key in values} for file in files]
    assert len(files) > 2 and all(one == keys[0] for one in keys)
    for file in files:
        run(argparse.Namespace(file=file))
        params = load_params().model_dump()
        for section, values in read_yaml(file).items():
            assert params[section] | values == params[section]


def test_keys_of_sections_within_sections_are_replaced_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("fetch:\n  source: stock.csv\n  table: {photograph: Bild, count: Soll}\n")
    run(argparse.Namespace(file=Path("mine.yaml")))
    table = load_params().fetch.table
    assert (table.photograph, table.count, table.id) == ("Bild", "Soll", "id")
    assert "fetch.table.count:      count → Soll" in capsys.readouterr().out
    space = "tune:\n  space: {train.epochs: [1, 2]}\n"
    Path("space.yaml").write_text(space)
    run(argparse.Namespace(file=Path("space.yaml")))
    assert load_params().tune.space == {"train.epochs": [1, 2]}
