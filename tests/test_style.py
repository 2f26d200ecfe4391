"""Rules of the code base that no linter checks."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "negvae"
LONGEST = 60
"""Lines of a function, its docstring apart."""


def functions(path):
    """Name and length of each function: without its docstring, and a command's without the options it declares."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            length = node.end_lineno - node.lineno + 1
            length -= first.end_lineno - first.lineno + 1 if documented else 0
            if "cli" in path.parts:
                length -= first.lineno - node.lineno
            yield node.name, length


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_longer_than_a_screen(path):
    assert {name: length for name, length in functions(path) if length > LONGEST} == {}


def test_no_two_classes_of_the_package_have_one_name():
    homes = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
