"""The laws that hold the project together: who imports whom, sizes, docstrings, no unsafe loading."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
ENTRY_FILES = ("main.py", "preprocess.py", "download.py", "evaluate.py")
FLOORS = (
    ("utils",),
    ("data_preprocessing", "data_loading", "models", "report"),
    ("inference", "training"),
    ("main", "preprocess", "download", "evaluate"),
    ("cross_validation", "benchmarks", "serving"),
    ("scripts",),
)
"""Rooms by floor: whoever imports another room goes down; rooms of one floor know nothing of each other."""
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
ROOMS = tuple(room for room in FLOOR if f"{room}.py" not in ENTRY_FILES)
PRODUCT = sorted(
    path for root in (*ROOMS, *ENTRY_FILES) for path in
    ([PROJECT / root] if root.endswith(".py") else (PROJECT / root).rglob("*.py"))
)  # fmt: skip
UNSAFE_MODULES = {"pickle", "dill", "shelve", "joblib", "cloudpickle"}
UNSAFE_ARGUMENTS = {"shell": True, "allow_pickle": True, "weights_only": False}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def _modules() -> dict[str, Path]:
    """Our modules by their dotted names."""
    dotted = {path: ".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in PRODUCT}
    return {name.removesuffix(".__init__"): path for path, name in dotted.items()}


def _imported_modules(path: Path, modules: dict[str, Path]) -> set[str]:
    """Our modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & modules.keys()


@pytest.mark.slow
def test_rooms_import_what_lies_on_lower_floors_only():
    modules = _modules()
    for name, path in modules.items():
        room = name.split(".")[0]
        others = {other.split(".")[0] for other in _imported_modules(path, modules)} - {room}
        above = {other for other in others if FLOOR[other] >= FLOOR[room]}
        assert not above, f"{path} imports {above}"


@pytest.mark.slow
def test_only_scripts_import_benchmarks():
    modules = _modules()
    for name, path in modules.items():
        if name.split(".")[0] not in ("scripts", "benchmarks"):
            assert not any(other.split(".")[0] == "benchmarks" for other in _imported_modules(path, modules)), path


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    modules = _modules()
    # A package's own file says nothing of the modules in it.
    uses = {name: {other for other in _imported_modules(path, modules) if modules[other].name != "__init__.py"} - {name}
            for name, path in modules.items()}  # fmt: skip
    reached = {name: set(others) for name, others in uses.items()}
    changed = True
    while changed:
        changed = False
        for others in reached.values():
            more = set().union(*(uses[other] for other in others)) - others
            if more:
                others |= more
                changed = True
    circles = {frozenset(b for b in reached[a] if a in reached[b]) for a in modules if a in reached[a]}
    assert not circles, circles


@pytest.mark.slow
@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(PROJECT)))
def test_file_is_small_and_safe(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert not _imports(path) & UNSAFE_MODULES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            arguments = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            assert not any(arguments.get(name) is value for name, value in UNSAFE_ARGUMENTS.items()), ast.unparse(node)


def test_no_folder_shadows_an_importable_package():
    folders = {path.name for path in PROJECT.iterdir() if path.is_dir()}
    assert not folders & {"triton", "onnx", "lightning", "torch", "monai", "nvidia", "nibabel"}


def _functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods of a file with their dotted names, nested ones included."""
    waiting: list[tuple[str, ast.AST]] = [("", ast.parse(path.read_text(encoding="utf-8")))]
    while waiting:
        prefix, parent = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            waiting.append((f"{prefix}{node.name}." if named else prefix, node))
            if isinstance(node, ast.FunctionDef):
                yield f"{prefix}{node.name}", node


@pytest.mark.slow
def test_functions_fit_a_screen():
    long = [
        f"{path.relative_to(PROJECT)}: {name}"
        for path in PRODUCT
        for name, node in _functions(path)
        if node.end_lineno - node.lineno + 1 > 60
    ]
    assert not long


def _without_docstring(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[str]:
    """Public functions, classes and methods that say nothing."""
    for child in node.body:
        if isinstance(child, ast.If | ast.Try):
            yield from _without_docstring(child, prefix)
        if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        # An overload says no more than types; what it overloads says the rest.
        if not ast.get_docstring(child) and "overload" not in map(ast.unparse, child.decorator_list):
            yield f"{prefix}{child.name}"
        # What a protocol asks for, its own docstring says.
        if isinstance(child, ast.ClassDef) and "Protocol" not in map(ast.unparse, child.bases):
            yield from _without_docstring(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(PROJECT)))
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body, "the module says nothing"
    assert not list(_without_docstring(tree))


@pytest.mark.slow
def test_no_test_imports_another():
    for path in (PROJECT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert not node.module.rpartition(".")[2].startswith("test_"), f"{path} imports {node.module}"
