"""The rules of imports hold, `__all__` is complete, and every package is typed."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = ("mirror", "routers", "stores", "adapters")
SCREEN = 50
"""The lines of the longest function."""
GENERATED = "peili.stores.containerd.protos"


@cache
def product_modules() -> dict[str, ast.Module]:
    """All modules of the product by name, except generated ones. Only the process that runs these tests parses them."""
    modules: dict[str, ast.Module] = {}
    for root in SOURCE_ROOTS:
        for path in sorted((ROOT / root).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT / root).with_suffix("").parts).removesuffix(".__init__")
            if not name.startswith(GENERATED):
                modules[name] = ast.parse(path.read_text(encoding="utf-8"))
    return modules


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Every ``from module import name`` of product modules, wherever it stands: also under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("peili."):
            for alias in node.names:
                yield node.module, alias.name


def imported_modules(name: str) -> set[str]:
    """The product modules that the module `name` imports."""
    found = {
        f"{module}.{each}" if f"{module}.{each}" in product_modules() else module
        for module, each in imports(product_modules()[name])
    }
    return found & set(product_modules())


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: imported_modules(name) for name in product_modules()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"an import cycle: {error.args[1]}")
    assert set(order) == set(product_modules())


def test_the_names_of_classes_are_unique() -> None:
    homes: dict[str, list[str]] = {}
    for name, tree in product_modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(name)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{name}.{node.name} has {lines} lines"
        for name, tree in product_modules().items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > SCREEN
    ]
    assert long == []


def test_no_private_name_is_imported_from_another_folder() -> None:
    wrong = [
        f"{name} imports {each} from {module}"
        for name, tree in product_modules().items()
        for module, each in imports(tree)
        if any(part.startswith("_") for part in (*module.split("."), each)) and folder_of(module) != folder_of(name)
    ]
    assert wrong == []


def folder_of(module: str) -> str:
    return module if is_package(module) else module.rpartition(".")[0]


def is_package(module: str) -> bool:
    return any((ROOT / root / Path(*module.split(".")) / "__init__.py").exists() for root in SOURCE_ROOTS)


def test_an_overview_of_a_folder_names_each_of_its_modules() -> None:
    overviews = {
        name: text
        for name, tree in product_modules().items()
        if is_package(name) and "\n- `" in (text := ast.get_docstring(tree) or "")
    }
    named = {f"{name}.{each}" for name, text in overviews.items() for each in re.findall(r"`([a-z_]+)`", text)}
    modules = {name for name in product_modules() if folder_of(name) in overviews and not is_package(name)}
    assert "peili.mirror.relay.transfer" in modules
    assert modules - named == set()


def test_nobody_imports_what_they_may_not(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_peili_is_a_namespace_that_others_may_add_to() -> None:
    for root in SOURCE_ROOTS:
        assert (ROOT / root / "peili").is_dir()
        assert not (ROOT / root / "peili" / "__init__.py").exists()
        assert not (ROOT / root / "__init__.py").exists()


@pytest.mark.parametrize("root", SOURCE_ROOTS)
def test_each_package_says_that_it_is_typed(root: str) -> None:
    """pyright looks into the outermost package only, and a namespace is none. mypy looks into all folders above."""
    packages = {each.parent for each in (ROOT / root / "peili").rglob("__init__.py")}
    outermost = {each for each in packages if each.parent not in packages}
    assert outermost
    untyped = [str(each.relative_to(ROOT)) for each in outermost if not (each / "py.typed").exists()]
    assert not untyped, f"no py.typed in {', '.join(untyped)}"
    modules = {each.parent for each in (ROOT / root / "peili").rglob("*.py")} - packages
    assert all((each / "py.typed").exists() for each in modules if not packages.intersection(each.parents))


def exporting() -> list[ModuleType]:
    return [importlib.import_module(name) for name in ("peili.mirror", "peili.mirror.testing")]


@pytest.mark.parametrize("module", exporting(), ids=lambda module: module.__name__)
def test_what_is_exported_exists_and_is_all_that_is_public(module: ModuleType) -> None:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(module.__all__) == imported - {"annotations"}
    assert len(module.__all__) == len(set(module.__all__))
    assert all(hasattr(module, name) for name in module.__all__)
