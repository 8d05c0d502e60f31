"""Files that list the ids of bins, or other names, one a line."""

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from bintally.bins.record import ID_PATTERN
from bintally.errors import UserError, printable

MAX_LIST_BYTES = 64 * 2**20


def read_lines(path: Path, argument: str) -> list[str]:
    """Return the lines of a text file that are not empty, without white space around them.

    A byte order mark, which Windows programs write, is no part of the first line. Lines end at CR and LF alone: other
    characters that Unicode calls line ends may be part of a file's name.

    Args:
        argument: the parameter or option that names the file, for error messages.

    Raises UserError if the file cannot be read, is no UTF-8 text or is larger than MAX_LIST_BYTES.
    """
    return _lines(_read_text(path, argument))


def read_id_list(path: Path, key: str = "fetch.ids") -> list[str]:
    """Return the ids in the order of the file, each once.

    Args:
        path: one id a line, or JSON of the form ``{"<count>": ["data/metadata/<id>.json", …], …}`` or ``["<id>", …]``.
        key: the parameter that names the file, for error messages.

    Raises:
        UserError: the file is missing, malformed or empty, or lists something that cannot be an id.
    """
    text = _read_text(path, key)
    if text.lstrip().startswith(("{", "[")):
        try:
            # An object becomes the list of its values, so that a key that occurs twice loses nothing.
            content = json.loads(text, object_pairs_hook=lambda pairs: [value for _, value in pairs])
            lists = content if all(isinstance(names, list) for names in content) else [content]
            names = [PurePosixPath(name).name.removesuffix(".json") for names in lists for name in names]
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{key}: '{path}' must be a list of ids, or counts with lists of record paths") from error
    else:
        names = _lines(text)
    for name in names:
        if not ID_PATTERN.fullmatch(name):
            shown = printable(name[:80])
            raise UserError(f"{key}: '{shown}' in '{path}' is not an id; letters, digits, - and _ are allowed")
    if not names:
        raise UserError(f"{key}: '{path}' lists no ids")
    return list(dict.fromkeys(names))


def with_lost_zeros(missing: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Return the known id that each missing one probably is: the same number with its leading zeros.

    A spreadsheet takes 00123 for a number and saves 123.
    """
    numbers = {
        bin_id.lstrip("0") or "0": bin_id for bin_id in sorted(known, key=len, reverse=True) if bin_id.isdecimal()
    }
    return {bin_id: numbers[bin_id] for bin_id in missing if bin_id in numbers}


def _lines(text: str) -> list[str]:
    return [line.strip(" \t") for line in re.split(r"[\r\n]", text) if line.strip(" \t")]


def _read_text(path: Path, argument: str) -> str:
    try:
        with path.open("rb") as file:
            body = file.read(MAX_LIST_BYTES + 1)
        if len(body) > MAX_LIST_BYTES:
            raise UserError(f"{argument}: '{path}' is larger than {MAX_LIST_BYTES} bytes; it should be a list")
        text = body.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{argument}: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{argument}: '{path}' is not a text file in UTF-8; save it as one") from error
    if "\0" in text:
        raise UserError(f"{argument}: '{path}' is not a text file in UTF-8; save it as one")
    return text
