"""`bintally use`: write a preset into params.yaml."""

import argparse
import io
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from bintally.errors import UserError
from bintally.files import file_lock, write_text
from bintally.params import PARAMS_FILE, load_params, validate_params
from bintally.yaml_files import read_yaml

SETTINGS = Path("settings")
Keys = tuple[str, ...]
MAPPINGS = [("tune", "space"), ("tune", "fixed")]  # values, whose keys are no parameters


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="sections and keys as in params.yaml: settings/*.yaml")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the values of a file into params.yaml, keep its comments and layout, and print what changed.

    Raises UserError, and changes nothing, if a key or a value is not allowed.
    """
    with file_lock(PARAMS_FILE):
        _use(arguments.file)


def _use(file: Path) -> None:
    load_params()
    if not file.exists():
        presets = ", ".join(map(str, sorted(SETTINGS.glob("*.yaml"))))
        raise UserError(f"{file} does not exist; choose one of {presets}, or write your own")
    current, settings = read_yaml(PARAMS_FILE), read_yaml(file)
    if not isinstance(settings, dict):
        raise UserError(f"{file} must hold sections of params.yaml, such as `train:`, not {settings!r}")
    validate_params(_merged(current, settings), f"{PARAMS_FILE} with {file}")
    before = dict(_leaves(current))
    changes = {path: value for path, value in _leaves(settings, current) if before.get(path) != value}
    if not changes:
        print(f"{PARAMS_FILE}: nothing changed, it has the values of {file} already")
        return
    write_text(PARAMS_FILE, replace_values(PARAMS_FILE.read_bytes().decode(), changes))
    width = max(len(".".join(path)) for path in changes)
    for path, value in changes.items():
        print(f"{'.'.join(path) + ':':{width + 1}} {_text(before.get(path))} → {_text(value)}")
    print(f"`git checkout {PARAMS_FILE}` restores what is committed.")


def _merged(current: Any, settings: Any) -> Any:
    """``settings`` over what there is, section within section."""
    if not isinstance(current, dict) or not isinstance(settings, dict):
        return settings
    return current | {key: _merged(current.get(key), value) for key, value in settings.items()}


def _leaves(values: Any, like: Any = None, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """The values that are no sections, each with the keys that lead to it; ``like`` says what is a section."""
    is_section = isinstance(values, dict) and (like is None or isinstance(like, dict)) and path not in MAPPINGS
    if not is_section:
        yield path, values
        return
    for key, value in values.items():
        yield from _leaves(value, None if like is None else like.get(key), (*path, key))


def replace_values(text: str, changes: Mapping[Keys, object]) -> str:
    """A YAML text with other values at some paths of keys, and every other byte as it was."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    mark = "\ufeff" if text.startswith("\ufeff") else ""
    end = "\r\n" if "\r\n" in text else "\n"
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 2**16  # no line is folded
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    document = yaml.load(text.removeprefix(mark).replace("\r\n", "\n"))
    for path, value in changes.items():
        values, key = reduce(getitem, path[:-1], document), path[-1]
        old = values[key]
        if isinstance(old, CommentedSeq) and isinstance(value, list):
            old[:] = value
            comment = (old.ca.comment or [None])[0]
        else:
            if isinstance(old, CommentedSeq) and old.ca.comment:  # a list has the comment that a key has otherwise
                values.ca.items[key] = [None, None, old.ca.comment[0], None]
            if isinstance(value, list):
                value = CommentedSeq(value)
                value.fa.set_flow_style()
            values[key] = value
            comment = values.ca.items.get(key, [None] * 3)[2]
        if comment:
            comment.start_mark.column = 0  # one space before it, however long the value was
    output = io.StringIO()
    yaml.dump(document, output)
    return mark + output.getvalue().replace("\n", end)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
