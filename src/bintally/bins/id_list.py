"""Files that list the ids of bins."""

import json
from pathlib import Path, PurePosixPath

from bintally.bins.record import ID_PATTERN
from bintally.errors import UserError


def read_id_list(path: Path, key: str = "fetch.ids") -> list[str]:
    """Return the ids in the order of the file, each once.

    Args:
        path: one id a line, or JSON of the form ``{"<count>": ["data/metadata/<id>.json", …], …}`` or ``["<id>", …]``.
        key: the parameter that names the file, for error messages.

    Raises:
        UserError: the file is missing, malformed or empty, or lists something that cannot be an id.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{key}: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: '{path}' is not a text file") from error
    if text.lstrip().startswith(("{", "[")):
        try:
            content = json.loads(text)
            lists = content.values() if isinstance(content, dict) else [content]
            if not all(isinstance(names, list) for names in lists):
                raise TypeError
            names = [PurePosixPath(name).name.removesuffix(".json") for names in lists for name in names]
        except (ValueError, TypeError) as error:
            raise UserError(f"{key}: '{path}' must be a list of ids, or counts with lists of record paths") from error
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    for name in names:
        if not ID_PATTERN.fullmatch(name):
            raise UserError(f"{key}: '{name[:80]}' in '{path}' is not an id; letters, digits, - and _ are allowed")
    if not names:
        raise UserError(f"{key}: '{path}' lists no ids")
    return list(dict.fromkeys(names))
