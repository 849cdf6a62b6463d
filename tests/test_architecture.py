"""The rules of imports hold, `__all__` is complete, and every package is typed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
SOURCE_ROOTS = ("mirror", "routers", "stores", "adapters")


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
def test_each_root_says_that_it_is_typed(root: str) -> None:
    assert list((ROOT / root / "peili").rglob("py.typed")), f"no py.typed below {root}/peili"


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
