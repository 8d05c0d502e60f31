"""What may import what, and that each stage depends on the code it runs."""

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src/bintally"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]

# A room imports only rooms that stand after it.
ROOMS = (
    "stages",
    "apps",
    "serving",
    "diagnosis",
    "inference",
    "training",
    "model",
    "distributed",
    "scoring",
    "demo",
    "bins",
)
WITHOUT_TORCH = ("scoring", "demo", "bins")

# Imported by stages, and no dependency of theirs.
EXEMPT = {
    "__init__.py": "a docstring",
    "stages/__init__.py": "starts a stage and reports how it ended",
    "params.py": "its values are tracked as params",
    "section.py": "what params.py is made of",
    "table_columns.py": "its values are tracked as params",
    "paths.py": "a path that changes changes dvc.yaml, too",
    "errors.py": "messages",
    "files.py": "tests/test_files.py pins its formats",
    "hashing.py": "keys of the scratch folders",
    "interruption.py": "signals",
    "memory.py": "where memory comes from",
    "monitor.py": "shows a training to a person",
    "page.py": "shows a training to a person",
    "progress.py": "shows progress to a person",
    "yaml_files.py": "reads params.yaml, whose values are tracked as params",
    "resources.py": "cores and devices, no part of the data's history",
    "distributed/launch.py": "how processes are started",
    "distributed/network_address.py": "how processes reach each other",
    "distributed/rank.py": "how processes are started",
    "distributed/stores.py": "how processes find each other",
    "demo/warehouse.py": "demo/edition.py stands for what the demo renders",
    "demo/render.py": "demo/edition.py stands for what the demo renders",
}


def module_file(name: str) -> Path | None:
    """The file of a module of the package, by its dotted name."""
    path = ROOT / "src" / Path(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def imports(file: Path) -> frozenset[str]:
    """Dotted names of all that a module imports, at its top or in a function, but for type checking."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return frozenset(names)


def own_imports(file: Path) -> set[Path]:
    """Files of the package that a module imports, their packages' ``__init__.py`` among them."""
    found = set[Path]()
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "bintally":
            modules = (module_file(".".join(parts[:end])) for end in range(1, len(parts) + 1))
            found.update(module for module in modules if module)
    return found


def closure(file: Path) -> set[Path]:
    """Files of the package that a module imports, directly or not, itself among them."""
    seen, todo = set[Path](), [file]
    while todo:
        one = todo.pop()
        if one not in seen:
            seen.add(one)
            todo += own_imports(one)
    return seen


def relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def room(file: Path) -> str | None:
    first = file.relative_to(PACKAGE).parts[0]
    return first if first in ROOMS else None


FILES = sorted(PACKAGE.rglob("*.py"))


def test_a_room_imports_only_rooms_below_it() -> None:
    wrong = [
        f"{relative(file)} imports {relative(other)}"
        for file in FILES
        if (here := room(file))
        for other in own_imports(file)
        if (there := room(other)) and ROOMS.index(there) < ROOMS.index(here)
    ]
    assert not wrong


def test_nothing_but_the_command_line_imports_stages_and_apps() -> None:
    wrong = [
        f"{relative(file)} imports {relative(other)}"
        for file in FILES
        for other in own_imports(file)
        if room(other) in ("stages", "apps") and room(file) != room(other) and relative(file) != "cli.py"
    ]
    assert not wrong


def test_top_level_modules_import_no_room() -> None:
    wrong = [
        f"{relative(file)} imports {relative(other)}"
        for file in FILES
        if room(file) is None and relative(file) != "cli.py"
        for other in own_imports(file)
        if room(other)
    ]
    assert not wrong


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_rooms_that_need_no_torch_import_none(name: str) -> None:
    wrong = [
        relative(other)
        for file in FILES
        if room(file) == name
        for other in closure(file)
        if room(other) and any(module.split(".")[0] in ("torch", "torchvision") for module in imports(other))
    ]
    assert not wrong


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_modules_it_imports_and_on_no_others(stage: str) -> None:
    deps = [ROOT / dep for dep in STAGES[stage]["deps"] if dep.startswith("src/bintally/")]
    files = {file for dep in deps for file in (dep.glob("*.py") if dep.is_dir() else [dep])}
    code = {relative(file) for file in files if file.name != "__init__.py"}
    used = {relative(file) for file in closure(PACKAGE / f"stages/{stage}.py")}
    needed = {file for file in used - EXEMPT.keys() if not file.endswith("/__init__.py")}
    assert needed - code == set(), "imported, but no dependency in dvc.yaml"
    assert code - needed == set(), "a dependency in dvc.yaml that is not imported"


def test_what_is_exempt_is_imported_by_a_stage() -> None:
    used = {relative(file) for stage in STAGES for file in closure(PACKAGE / f"stages/{stage}.py")}
    assert set(EXEMPT) <= used


def test_every_path_of_the_graph_stands_in_paths_alone() -> None:
    outs = {
        next(iter(out)) if isinstance(out, dict) else out
        for stage in STAGES.values()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
    }
    wrong = [
        f"{relative(file)}: {node.value!r}"
        for file in FILES
        if relative(file) != "paths.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in outs
    ]
    assert not wrong
