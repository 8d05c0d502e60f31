"""YAML files, with numbers as in YAML 1.2 and no key twice."""

import re
from pathlib import Path
from typing import Any

import yaml

from bintally.errors import UserError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as YAML 1.2 does and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[object] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                reason = f"the key '{key}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, reason, key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where 1e-05, as `dvc exp run -S` writes it, is a string, and 010 is 8.
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_constructor(_NUMBERS[0], lambda _loader, node: int(node.value))
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; UserError if it cannot be read, is not YAML, or gives a key twice."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist here; run this in the repository's root") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or thousands of digits
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
