"""The layout: tests mirror the package, classes and functions are small, every public name can be imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lightning_freeze

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_freeze"
TESTS = ROOT / "tests"
MODULES = {
    str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("__")
}


def test_every_module_has_its_tests_in_the_same_place() -> None:
    mirrors = {
        module: TESTS / path.relative_to(PACKAGE).parent / f"test_{path.stem.lstrip('_')}.py"
        for module, path in MODULES.items()
    }
    without = {module for module, mirror in mirrors.items() if not mirror.exists()}
    assert not without
    assert all("def test_" in mirror.read_text() for mirror in mirrors.values())


def test_classes_have_fewer_than_250_lines_and_functions_at_most_30() -> None:
    """But for a function with a comment right above it that begins with "long because"."""
    assert not {module: found for module, path in MODULES.items() if (found := _too_long(path))}


def _too_long(path: Path) -> set[str]:
    lines, found = path.read_text().splitlines(), set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.ClassDef) and _body_lines(node) >= 250:
            found.add(node.name)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_lines(node) > 30:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if "long because" not in lines[first - 2]:
                found.add(node.name)
    return found


def _body_lines(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines below the docstring."""
    first, *rest = node.body
    documented = bool(rest) and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    assert node.end_lineno is not None
    return node.end_lineno - (rest[0] if documented else first).lineno + 1


def test_nothing_is_imported_for_type_checkers_only() -> None:
    assert not [module for module, path in MODULES.items() if "TYPE_CHECKING" in path.read_text()]


def test_every_public_name_has_a_home_and_is_known_to_type_checkers() -> None:
    public = set(lightning_freeze.__all__)
    assert lightning_freeze.__all__ == sorted(public)
    assert lightning_freeze._HOMES.keys() == public
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    homes = {
        alias.asname: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert homes == {name: f"lightning_freeze.{home}" for name, home in lightning_freeze._HOMES.items()}


def test_every_public_name_can_be_imported() -> None:
    for name, home in lightning_freeze._HOMES.items():
        found = getattr(lightning_freeze, name)
        assert (found.__name__, found.__module__) == (name, f"lightning_freeze.{home}")


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Freezing'"):
        _ = lightning_freeze.Freezing  # type: ignore[attr-defined]
