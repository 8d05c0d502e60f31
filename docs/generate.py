"""Write the generated parts of the pages: the tables of docs/parameters.md and docs/diagnose.md.

python docs/generate.py
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bintally.diagnosis import rules
from bintally.params import Params
from bintally.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[1]
UNITS = ("fraction", "pixels", "seconds", "degrees", "epochs")


def pages() -> dict[Path, str]:
    """The pages with generated parts, as they should be."""
    return {
        ROOT / "docs/parameters.md": _fill("docs/parameters.md", "parameters", parameters()),
        ROOT / "docs/diagnose.md": _fill("docs/diagnose.md", "rules", rules.markdown_table()),
    }


def parameters() -> str:
    """A table for each section of params.yaml."""
    defaults = read_yaml(ROOT / "params.yaml")
    parts = []
    for name, section in Params.model_fields.items():
        model = section.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        parts += [f"## {name}", "", " ".join((model.__doc__ or "").split()), ""]
        parts += ["| parameter | default | type | allowed | unit | meaning |", "|---|---|---|---|---|---|"]
        parts += [*_rows(name, model, defaults[name]), ""]
    return "\n".join(parts).strip()


def _rows(name: str, section: type[BaseModel], defaults: dict[str, Any]) -> Iterator[str]:
    """A line for each parameter of a section, and for each in the sections within it."""
    for key, field in section.model_fields.items():
        path, inner = f"{name}.{key}", field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _rows(path, inner, defaults[key])
            continue
        meaning = _cell((field.description or "").replace("``", "`"))
        kind, allowed = _type(_annotation(field))
        cells = [f"`{path}`", f"`{_yaml(defaults[key])}`", kind, allowed, _unit(kind, meaning), meaning]
        yield f"| {' | '.join(cells)} |"


def _annotation(field: FieldInfo) -> Any:
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _type(annotation: Any, metadata: Sequence[object] = ()) -> tuple[str, str]:
    """Words for a type and for the values it allows."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0], [part for item in arguments[1:] for part in getattr(item, "metadata", [item])])
    if origin in (Union, UnionType):
        kinds = [("null", "") if argument is NoneType else _type(argument) for argument in arguments]
        return " or ".join(kind for kind, _ in kinds), "; ".join(allowed for _, allowed in kinds if allowed)
    if origin is Literal:
        return "string", ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        (kind, allowed), length = _type(arguments[0]), _length(metadata)
        return f"list of {kind}", "; ".join(filter(None, (allowed, length)))
    if origin is dict:
        return "mapping", ""
    if annotation is bool:
        return "bool", "`true`, `false`"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping", ""
    return {int: "int", float: "float", str: "string"}[annotation], _range(annotation, metadata)


def _range(kind: type, metadata: Sequence[object]) -> str:
    """Such as "0 to below 1"."""
    low = high = ""
    for item in metadata:
        if isinstance(item, Ge):
            low = f"{item.ge:,}"
        elif isinstance(item, Gt):
            low = f"above {item.gt:,}"
        elif isinstance(item, Le):
            high = f"{item.le:,}"
        elif isinstance(item, Lt):
            assert isinstance(item.lt, (int, float))
            high = f"{item.lt - 1:,}" if kind is int else f"below {item.lt:,}"
    if low and high:
        return f"{low} to {high}"
    return low if low.startswith("above") else f"{low} or more" if low else high


def _length(metadata: Sequence[object]) -> str:
    least = next((item.min_length for item in metadata if isinstance(item, MinLen)), 0)
    most = next((item.max_length for item in metadata if isinstance(item, MaxLen)), None)
    return f"{least} to {most} values" if most else f"at least {least} values" if least else ""


def _unit(kind: str, meaning: str) -> str:
    """The unit that the description of a number names."""
    if not kind.startswith(("int", "float")):
        return ""
    return next((unit for unit in UNITS if re.search(rf"\b{unit}\b", meaning, re.IGNORECASE)), "")


def _yaml(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _fill(page: str, name: str, content: str) -> str:
    """A page with other content between the markers of a generated part."""
    start, end = f"<!-- generated: {name} -->", f"<!-- end of generated: {name} -->"
    before, rest = (ROOT / page).read_text(encoding="utf-8").split(start)
    return f"{before}{start}\n\n{content.strip()}\n\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
